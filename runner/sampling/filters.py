"""Steps that reshape the distribution or cut it off. The ``keep`` best tokens stay whatever a step says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import (
    absolute,
    argmax,
    argsort,
    constant,
    cumulative_sum,
    cut,
    exp,
    feedback,
    log,
    maximum,
    minimum,
    softmax,
    sqrt,
    sum,
    take,
    where,
)
from ...compiler.language import max as largest
from ...compiler.language import min as smallest
from ...compiler.stream import Stream
from .step import XTC_PURPOSE, Moment, Step, entropy, kept, log_softmax


def _best(scores: Stream, count: int) -> Stream:
    """bool[V]: the ``count`` best tokens, and those that equal the last of them."""
    if count == 1:
        return scores >= largest(scores)
    return scores >= _ranked(scores, constant(count))


def _ranked(scores: Stream, count: Stream) -> Stream:
    """f32[]: the best score but ``count`` - 1."""
    (size,) = scores.node.tensor.static_shape
    return cut(scores, constant(1), maximum(size - count, 0))


@dataclass(frozen=True)
class Greedy(Step):
    """Keeps the first of the best tokens, where ``on`` is 1."""

    on: int = 0

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, on: Stream) -> Stream:
        return kept(scores, (on == 0) | (moment.index == argmax(scores)))


@dataclass(frozen=True)
class Temperature(Step):
    """Divides the scores; above 1 they become more even."""

    temperature: float = 1.0

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, temperature: Stream) -> Stream:
        return scores / temperature


@dataclass(frozen=True)
class DynamicTemperature(Step):
    """A temperature from ``low`` to ``high``: the surer the model is, the lower.

    low + (high - low) * (entropy / the largest entropy that is possible) ** exponent.
    """

    low: float = 1.0
    high: float = 1.0
    exponent: float = 1.0

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, low: Stream, high: Stream, exponent: Stream) -> Stream:
        count = sum((scores > -math.inf).cast("f32"))
        share = minimum(maximum(entropy(scores), 0.0) / maximum(log(count), 1e-9), 1.0)
        return scores / (low + (high - low) * share**exponent)


@dataclass(frozen=True)
class TopK(Step):
    """Keeps the ``k`` best tokens and those that equal the last of them; 0 keeps all."""

    k: int = 0
    keep: int = 1
    structure: ClassVar[tuple[str, ...]] = ("keep",)

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, k: Stream, keep: int) -> Stream:
        return kept(scores, (k <= 0) | (scores >= _ranked(scores, maximum(k, keep))))


@dataclass(frozen=True)
class TopP(Step):
    """Drops the least likely tokens that together have at most 1 - ``p``, but for equals of what stays."""

    p: float = 1.0
    keep: int = 1
    structure: ClassVar[tuple[str, ...]] = ("keep",)

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, p: Stream, keep: int) -> Stream:
        last = cut(scores, softmax(scores), 1.0 - p)
        return kept(scores, (p >= 1.0) | (scores >= last) | _best(scores, keep))


@dataclass(frozen=True)
class MinP(Step):
    """Drops tokens that are less than ``p`` times as likely as the best one."""

    p: float = 0.0
    keep: int = 1
    structure: ClassVar[tuple[str, ...]] = ("keep",)

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, p: Stream, keep: int) -> Stream:
        return kept(scores, (scores >= largest(scores) + log(p)) | _best(scores, keep))


@dataclass(frozen=True)
class Typical(Step):
    """Keeps the tokens whose surprise is nearest to the entropy, until they have the ``mass``
    (Meister et al., "Locally typical sampling", 2022)."""

    mass: float = 1.0
    keep: int = 1
    structure: ClassVar[tuple[str, ...]] = ("keep",)

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, mass: Stream, keep: int) -> Stream:
        distance = absolute(-log_softmax(scores) - entropy(scores))
        order = argsort(distance)
        below = sum((cumulative_sum(take(softmax(scores), order)) < mass).cast("i32"))
        last = minimum(maximum(below, keep - 1), moment.vocabulary - 1)
        return kept(scores, (mass >= 1.0) | (distance <= take(take(distance, order), last)))


@dataclass(frozen=True)
class Epsilon(Step):
    """Drops tokens less likely than ``cutoff`` (Hewitt et al., "Truncation sampling", 2022)."""

    cutoff: float = 0.0

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, cutoff: Stream) -> Stream:
        return kept(scores, (softmax(scores) >= cutoff) | _best(scores, 1))


@dataclass(frozen=True)
class Eta(Step):
    """Drops tokens less likely than ``cutoff``, or than sqrt(cutoff) * exp(-entropy) if that is less."""

    cutoff: float = 0.0

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, cutoff: Stream) -> Stream:
        limit = minimum(cutoff, sqrt(cutoff) * exp(-entropy(scores)))
        return kept(scores, (softmax(scores) >= limit) | _best(scores, 1))


@dataclass(frozen=True)
class TopNSigma(Step):
    """Drops scores more than ``n`` standard deviations below the best one; 0 keeps all
    (Tang et al., "Top-nσ", 2024)."""

    n: float = 0.0

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, n: Stream) -> Stream:
        there = scores > -math.inf
        count = sum(there.cast("f32"))
        mean = sum(where(there, scores, 0.0)) / count
        away = where(there, scores - mean, 0.0)
        deviation = sqrt(sum(away * away) / count)
        return kept(scores, (n <= 0.0) | (scores >= largest(scores) - n * deviation))


@dataclass(frozen=True)
class Xtc(Step):
    """With ``probability``, drops all tokens that are at least ``threshold`` likely but the least likely
    of them: what is too obvious is left out."""

    probability: float = 0.0
    threshold: float = 0.1

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, probability: Stream, threshold: Stream) -> Stream:
        chances = softmax(scores)
        above = chances >= threshold
        least = smallest(where(above, chances, math.inf))
        fires = moment.uniform(XTC_PURPOSE) < probability
        return kept(scores, ~(fires & above & (chances > least)))


@dataclass(frozen=True)
class LogSoftmax(Step):
    """Scores as log-probabilities; what was removed stays so, even where nothing else is left."""

    @staticmethod
    def apply(scores: Stream, moment: Moment) -> Stream:
        return where(scores == -math.inf, scores, log_softmax(scores))


@dataclass(frozen=True)
class Mirostat(Step):
    """Drops tokens that surprise by more than mu bits, and moves mu so that the chosen ones surprise by
    ``tau`` bits on average: mu - ``eta`` * (surprise - tau), from 2 tau on. ``tau`` 0 keeps all.

    Version 2 (Basu et al., "Mirostat", 2021); the surprise is that of the token among what was left.
    """

    tau: float = 0.0
    eta: float = 0.1

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, tau: Stream, eta: Stream) -> Stream:
        before = feedback(0.0)
        bound = where(moment.step <= 0, 2.0 * tau, before)
        bits = log_softmax(scores) * (-1.0 / math.log(2.0))
        left = kept(scores, (tau <= 0.0) | (bits <= bound) | _best(scores, 1))

        def learn(token: Stream) -> None:
            surprise = take(log_softmax(left), token) * (-1.0 / math.log(2.0))
            before.close((bound - eta * (surprise - tau)).named("mu"))

        moment.closing.append(learn)
        return left
