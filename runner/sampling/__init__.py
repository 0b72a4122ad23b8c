"""Choosing the next token: a chain of small functions over the scores, compiled with the model."""

from .settings import Sampling, is_integer
from .structure import Row

__all__ = ["Row", "Sampling", "is_integer"]
