"""Choosing the next token from logits: greedy, or drawn with numbers that depend on nothing but the
seed, the row and the step, so that every backend draws the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from ...ir.errors import SystolicError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 filter nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not _is_real(self.temperature) or not 0 <= self.temperature < math.inf:
            raise SystolicError(f"temperature must be a number of at least 0, not {self.temperature!r}")
        if not is_integer(self.top_k) or self.top_k < 0:
            raise SystolicError(f"top_k must be an integer of at least 0, not {self.top_k!r}")
        if not _is_real(self.top_p) or not 0 <= self.top_p <= 1:
            raise SystolicError(f"top_p must be a number from 0 to 1, not {self.top_p!r}")
        if not is_integer(self.seed) or not 0 <= self.seed < 2**64:
            raise SystolicError(f"seed must be an integer from 0 to 2**64 - 1, not {self.seed!r}")


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: object) -> bool:
    """Whether a value is an integer, also one of NumPy, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def keep_top_k(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Scores [V] with everything below the k-th best at -inf; ties with the k-th stay. 0 keeps all."""
    if not 0 < top_k < scores.size:
        return scores
    threshold = np.partition(scores, -top_k)[-top_k]
    return np.where(scores < threshold, -np.inf, scores)


def keep_top_p(scores: np.ndarray, top_p: float) -> np.ndarray:
    """Scores [V] without the least likely tokens that together have at most 1 - p; the best stays."""
    if top_p >= 1:
        return scores
    order = np.argsort(scores, kind="stable")
    tail = np.cumsum(probabilities(scores)[order]) <= 1 - top_p
    tail[-1] = False
    kept = scores.copy()
    kept[order[tail]] = -np.inf
    return kept


def probabilities(scores: np.ndarray) -> np.ndarray:
    """softmax [V] in float64."""
    exponentials = np.exp(np.asarray(scores, np.float64) - scores.max())
    return exponentials / exponentials.sum()


def filtered(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The scores [V] that tokens are drawn from, float64: temperature, then top-k, then top-p."""
    scores = np.asarray(logits, np.float64)
    with np.errstate(over="ignore"):  # at a tiny temperature all but the best become -inf
        scores = (scores - scores.max()) / sampling.temperature
    return keep_top_p(keep_top_k(scores, sampling.top_k), sampling.top_p)


def sample(logits: np.ndarray, sampling: Sampling, step: int, row: int = 0) -> int:
    """The token id chosen from logits [V] at the ``step``-th new position of ``row``.

    Greedy takes the first of equal maxima. Raises ``SystolicError`` if the logits are not numbers.
    """
    best = logits.max()
    if not np.isfinite(best):  # also NaN, which max() passes on
        raise SystolicError(
            f"the model gave the logit {best} at new token {step}; its weights may be damaged"
        )
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    cumulative = np.cumsum(probabilities(filtered(logits, sampling)))
    point = uniform(sampling.seed, row, step) * cumulative[-1]
    below_all = np.nextafter(cumulative[-1], 0)  # the product may round up to the sum itself
    return int(np.searchsorted(cumulative, min(point, below_all), side="right"))


def uniform(seed: int, row: int, step: int) -> float:
    """A number in [0, 1) that depends on its arguments only (Philox, keyed and counted by them)."""
    generator = np.random.Philox(key=np.array([seed, row], np.uint64), counter=step)
    return float(np.random.Generator(generator).random())
