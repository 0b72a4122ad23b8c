"""Layers that repeat in a program without time, found by their structure."""

from .units import Repetition, find_repetition

__all__ = ["Repetition", "find_repetition"]
