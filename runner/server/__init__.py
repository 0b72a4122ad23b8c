"""An HTTP server that speaks OpenAI's interface: rows of one executable, continuous batching."""
