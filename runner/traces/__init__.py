"""Traces of generation: what was chosen at each step, what else could have been, and where attention went."""
