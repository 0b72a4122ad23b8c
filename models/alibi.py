"""ALiBi: scores fall with the distance, faster in some heads than in others (Press et al., 2022)."""

from __future__ import annotations

import numpy as np

from ..compiler.language import history, position
from ..compiler.stream import Stream


def slopes(heads: int) -> np.ndarray:
    """What one position of distance costs each head, f32[heads]: powers of 2 from 2^(-8/n) to 2^-8.

    n is the largest power of two up to ``heads``; further heads take every second step between them.
    """
    count = 2 ** (heads.bit_length() - 1)
    steps = np.concatenate([np.arange(1, count + 1), np.arange(0.5, count)])[:heads]
    return (2.0 ** (-8.0 * steps / count)).astype(np.float32)


def falling_with_distance(heads: int) -> Stream:
    """What the scores of the past gain: [H, 1, past]."""
    distance = (position() - history(position())).cast("f32")
    return (distance * -slopes(heads)[:, None, None]).named("alibi")
