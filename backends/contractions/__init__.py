"""Products of vectors with matrices: found in programs, and written in the form that is the fastest."""
