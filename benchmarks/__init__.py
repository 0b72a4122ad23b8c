"""Benchmarks: each compares us with peers in one interleaved run and prints ratios with their spread."""
