"""Positions that are added to the token's embedding: learned, or sines and cosines."""

from __future__ import annotations

import numpy as np

from ..compiler.language import concatenate, cos, parameter, position, sin, take
from ..compiler.stream import Stream

UNLIMITED = 2**31 - 1  # the context of a model that has no positions: they are counted in i32


def learned_positions(name: str, count: int, width: int, *, offset: int = 0) -> Stream:
    """Row t + ``offset`` of the table ``name``.weight [count, width]: f32[width]."""
    table = parameter(f"{name}.weight", (count, width))
    return take(table, position() + offset if offset else position())


def sinusoidal_positions(width: int, *, base: float = 10000.0) -> Stream:
    """Sines of t * base^(-2i/width) in the first half, cosines in the second: f32[width]."""
    frequencies = (base ** (-np.arange(0, width, 2) / width)).astype(np.float32)
    angles = position().cast("f32") * frequencies
    return concatenate([sin(angles), cos(angles)[: width // 2]])
