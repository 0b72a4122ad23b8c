"""Choosing the next token: a chain of small functions over the scores, compiled with the model."""

from .chain import Row
from .settings import Sampling, is_integer

__all__ = ["Row", "Sampling", "is_integer"]
