"""Steps that look at the text so far, or at lists of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import (
    absolute,
    add_at,
    cumulative_sum,
    history,
    max_at,
    minimum,
    position,
    sum,
    where,
    zeros,
)
from ...compiler.stream import Stream
from .step import Moment, Step, kept
from .structure import MATCH, NONE

ALWAYS = 2**31 - 1
NEVER = float("-inf")  # the score of a removed token


def _counts(moment: Moment, first: Stream, last: Stream) -> Stream:
    """f32[V]: how often each token occurs among the positions from ``first``, the newest ``last``."""
    seen = moment.counted(first, last).cast("i32")
    return add_at(zeros((moment.vocabulary,), "i32"), moment.past, seen).cast("f32")


def _listed(moment: Moment, tokens: Stream) -> Stream:
    """bool[V]: which tokens a list names."""
    ones = (tokens >= 0).cast("i32")
    return add_at(zeros((moment.vocabulary,), "i32"), tokens, ones) > 0


@dataclass(frozen=True)
class Repetition(Step):
    """Divides the positive scores of tokens that occurred by ``penalty`` and multiplies negative ones.

    It counts the prompt, from position ``first`` on, and of all that the newest ``last`` (0: all).
    """

    penalty: float = 1.0
    first: int = 0
    last: int = 0
    remembers: ClassVar[bool] = True

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, penalty: Stream, first: Stream, last: Stream) -> Stream:
        reduced = where(scores < 0.0, scores * penalty, scores / penalty)
        return where(_counts(moment, first, last) > 0.0, reduced, scores)


@dataclass(frozen=True)
class Presence(Step):
    """Takes ``penalty`` from the score of each token that was generated before."""

    penalty: float = 0.0
    last: int = 0
    remembers: ClassVar[bool] = True

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, penalty: Stream, last: Stream) -> Stream:
        return scores - where(_counts(moment, moment.prompt, last) > 0.0, penalty, 0.0)


@dataclass(frozen=True)
class Frequency(Step):
    """Takes ``penalty`` from the score of a token for each time that it was generated before."""

    penalty: float = 0.0
    last: int = 0
    remembers: ClassVar[bool] = True

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, penalty: Stream, last: Stream) -> Stream:
        return scores - penalty * _counts(moment, moment.prompt, last)


def _matches(moment: Moment, breaks: Stream | None = None) -> Stream:
    """i32[past]: how many tokens before each position are those that the text ends in, up to ``MATCH``.

    The token at such a position is what followed last time. ``breaks`` bool[MATCH] ends a match.
    """
    earlier = history(moment.recent)[:, 1:]  # i32[past, MATCH]: what came before each position
    differs = earlier != moment.recent[:MATCH]
    if breaks is not None:
        differs = differs | breaks
    run = sum((cumulative_sum(differs.cast("i32"), axis=1) == 0).cast("i32"), axis=1)
    return minimum(run, moment.places)  # a match does not reach before the start


@dataclass(frozen=True)
class NoRepeatNgram(Step):
    """Removes tokens that would complete ``size`` tokens that occurred in that order before; 0 is off."""

    size: int = 0
    remembers: ClassVar[bool] = True

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, size: Stream) -> Stream:
        completes = ((_matches(moment) >= size - 1) & (size > 0)).cast("i32")
        return kept(scores, max_at(zeros((moment.vocabulary,), "i32"), moment.past, completes) == 0)


@dataclass(frozen=True)
class Dry(Step):
    """Takes ``multiplier`` * ``base`` ** (n - ``allowed``) from a token that would go on repeating n
    tokens of the text, where n is at least ``allowed``; n counts up to ``MATCH``.

    No repetition is seen across one of the tokens in ``breakers``; ``last`` as in ``Repetition``.
    """

    multiplier: float = 0.0
    base: float = 1.75
    allowed: int = 2
    last: int = 0
    breakers: tuple[int, ...] = ()
    remembers: ClassVar[bool] = True

    @staticmethod
    def apply(
        scores: Stream,
        moment: Moment,
        *,
        multiplier: Stream,
        base: Stream,
        allowed: Stream,
        last: Stream,
        breakers: Stream,
    ) -> Stream:
        recent = moment.recent[:MATCH].reshape(MATCH, 1)
        breaks = sum(((recent == breakers) & (recent >= 0)).cast("i32"), axis=1) > 0
        run = where(moment.counted(position() * 0, last), _matches(moment, breaks), 0)
        longest = max_at(zeros((moment.vocabulary,), "i32"), moment.past, run)
        penalty = multiplier * base ** (longest - allowed).cast("f32")
        return scores - where((longest >= allowed) & (longest > 0), penalty, 0.0)


@dataclass(frozen=True)
class LogitBias(Step):
    """Adds ``biases`` to the scores of ``tokens``."""

    tokens: tuple[int, ...] = ()
    biases: tuple[float, ...] = ()

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, tokens: Stream, biases: Stream) -> Stream:
        return scores + add_at(zeros((moment.vocabulary,)), tokens, biases)


@dataclass(frozen=True)
class Banned(Step):
    """Removes ``tokens`` from new tokens ``since`` … ``until`` - 1. The end tokens until the tenth, say, make
    that a least length."""

    tokens: tuple[int, ...] = ()
    since: int = 0
    until: int = ALWAYS

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, tokens: Stream, since: Stream, until: Stream) -> Stream:
        now = (moment.step >= since) & (moment.step < until)
        return kept(scores, ~(_listed(moment, tokens) & now))


@dataclass(frozen=True)
class Forced(Step):
    """New token number ``at``, from 0, is the one of ``tokens`` in the same place, or one of several."""

    at: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, at: Stream, tokens: Stream) -> Stream:
        now = at == moment.step
        forced = where(_listed(moment, where(now, tokens, NONE)), 0.0, NEVER)
        return where(sum(now.cast("i32")) > 0, forced, scores)


@dataclass(frozen=True)
class BadWords(Step):
    """Removes the last token of each of ``words`` where the text ends in the tokens before it."""

    words: tuple[tuple[int, ...], ...] = ()
    remembers: ClassVar[bool] = True

    def value(self, name: str) -> tuple[tuple[int, ...], ...]:
        """The words from back to front, so that one index means one distance."""
        return tuple(word[::-1] for word in self.words)

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, words: Stream) -> Stream:
        _, length = words.node.tensor.static_shape
        before = words[:, 1:]
        differs = (before != moment.recent[: length - 1]) & (before != NONE)
        completes = sum(differs.cast("i32"), axis=1) == 0
        return kept(scores, ~_listed(moment, where(completes, words[:, 0], NONE)))


@dataclass(frozen=True)
class LengthDecay(Step):
    """From new token ``start`` on, adds |score| * (``factor`` ** n - 1) to ``tokens`` after n more."""

    tokens: tuple[int, ...] = ()
    start: int = 0
    factor: float = 1.0

    @staticmethod
    def apply(scores: Stream, moment: Moment, *, tokens: Stream, start: Stream, factor: Stream) -> Stream:
        over = (moment.step - start).cast("f32")
        raised = scores + absolute(scores) * (factor**over - 1.0)
        return where(_listed(moment, tokens) & (over > 0.0) & (scores > NEVER), raised, scores)
