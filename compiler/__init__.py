"""From a Python function to programs: tracing, passes, derivation, cost."""
