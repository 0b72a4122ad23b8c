"""Choosing the next token: a chain of small functions over the scores, compiled with the model."""

from .host import sample
from .settings import Sampling, is_integer

__all__ = ["Sampling", "is_integer", "sample"]
