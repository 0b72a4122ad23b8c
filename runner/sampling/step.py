"""What a step of a chain is, and what it may look at.

A step is a function from scores f32[V] to scores, written in the stream language; a removed token has the
score -inf. Its fields are numbers of one row and become inputs of the program, so changing one compiles
nothing. What the defaults say leaves the scores as they are: a row that lacks a step of its batch has that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ...compiler.language import arange, delay, exp, history, log, position, softmax, stack, sum, where
from ...compiler.language import max as largest
from ...compiler.stream import Stream
from .random import Words, threefry
from .random import uniform as uniform_number
from .structure import MATCH, NONE

TOKEN_PURPOSE, XTC_PURPOSE = 0, 1  # what random numbers are for


@dataclass(frozen=True)
class Step:
    """One step of a chain; see the top of this module.

    ``structure`` names the fields that are part of the program and not of its inputs.
    """

    structure: ClassVar[tuple[str, ...]] = ()
    remembers: ClassVar[bool] = False  # whether it looks at the text so far

    # (scores, moment, the fixed fields as numbers and the others as streams) -> scores
    apply: ClassVar[Callable[..., Stream]]

    @property
    def fixed(self) -> Mapping[str, int]:
        """The fields that are part of the program."""
        return {name: getattr(self, name) for name in self.structure}

    def value(self, name: str) -> Any:
        """A field as the program takes it."""
        return getattr(self, name)

    @property
    def values(self) -> dict[str, np.ndarray]:
        """The other fields as arrays: a number, a list, or a table of lists filled up with ``NONE``."""
        given = (f for f in fields(self) if f.name not in self.structure)
        return {f.name: _array(str(f.type), self.value(f.name)) for f in given}


def _array(kind: str, value: Any) -> np.ndarray:
    if kind.startswith("tuple[tuple"):
        table = np.full((len(value), max(map(len, value), default=0)), NONE, np.int32)
        for row, numbers in enumerate(value):
            table[row, : len(numbers)] = numbers
        return table
    return np.asarray(value, np.float32 if "float" in kind else np.int32)


@dataclass(frozen=True)
class Moment:
    """What is known when the next token is chosen: the text so far, and the numbers of the row.

    ``token`` is the newest one, ``prompt`` how many tokens the row was given, ``seed`` two words, ``stream``
    the number of the row's own random stream. ``closing`` collects what waits for the chosen token.
    """

    logits: Stream
    token: Stream
    prompt: Stream
    seed: Stream
    stream: Stream
    closing: list[Callable[[Stream], None]]

    @property
    def vocabulary(self) -> int:
        (size,) = self.logits.node.tensor.static_shape
        return size

    @cached_property
    def index(self) -> Stream:
        """i32[V]: 0, 1, …"""
        return arange(self.vocabulary)

    @cached_property
    def step(self) -> Stream:
        """The index of the token that is chosen now among the row's new tokens."""
        return position() + 1 - self.prompt

    @cached_property
    def past(self) -> Stream:
        """i32[past]: all tokens, with the prompt."""
        return history(self.token)

    @cached_property
    def places(self) -> Stream:
        """i32[past]: the position of each."""
        return history(position())

    @cached_property
    def recent(self) -> Stream:
        """i32[MATCH + 1]: the newest tokens, newest first; ``NONE`` before the start."""
        return stack([delay(self.token, back, NONE) for back in range(MATCH + 1)])

    def counted(self, first: Stream, last: Stream) -> Stream:
        """bool[past]: positions from ``first`` on, and only the newest ``last`` unless that is 0."""
        return (self.places >= first) & ((last <= 0) | (self.places > position() - last))

    @cached_property
    def key(self) -> Words:
        """The key of this row's random numbers at this step."""
        return threefry((self.seed[0], self.seed[1]), (self.stream, self.step.cast("u32")))

    def uniform(self, purpose: int) -> Stream:
        """A number above 0 and below 1 that depends on seed, stream, step and purpose only."""
        return uniform_number(self.key, purpose)


def kept(scores: Stream, keep: Stream) -> Stream:
    """The scores where ``keep`` holds, and -inf elsewhere."""
    return where(keep, scores, -np.inf)


def log_softmax(scores: Stream) -> Stream:
    """log P of each token."""
    shifted = scores - largest(scores, keepdims=True)
    return shifted - log(sum(exp(shifted), keepdims=True))


def entropy(scores: Stream) -> Stream:
    """The entropy f32[] of the distribution, in nats."""
    chances = softmax(scores)
    return -sum(where(chances > 0.0, chances * log_softmax(scores), 0.0))
