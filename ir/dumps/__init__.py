"""How graphs are written and read: text, JSON, DOT, folded views, and what leads to a node."""
