"""Passes: pure functions from graph to graph, one file each. ``compiler.pipeline`` lists them."""
