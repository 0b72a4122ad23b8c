"""Models: config.json and safetensors in, a per-token graph and its weights out."""
