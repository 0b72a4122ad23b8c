"""The viewer: one page that holds its graphs, opens without a network, and draws what is open."""
