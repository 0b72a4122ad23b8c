"""Where guesses come from: a smaller model, or the text itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from .batch import Batch

if TYPE_CHECKING:
    from .executable import Executable

GUESS = 0  # the stream of random numbers that guesses are drawn with

# Logits [V] and the text before them → the distribution f64[V] of the next token.
Chances = Callable[[np.ndarray, Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Guesses:
    """Tokens that may come next, and the distribution [V] that each was drawn from; none if certain."""

    tokens: list[int]
    chances: Sequence[np.ndarray] = ()


@runtime_checkable
class Drafter(Protocol):
    """Something that guesses."""

    def guess(self, text: Sequence[int], count: int, chances: Chances, seed: int) -> Guesses:
        """At most ``count`` tokens that may follow the text; ``chances`` says how they are chosen."""


@dataclass(frozen=True)
class PromptLookup:
    """Guesses what followed the last tokens when they came before: for texts that repeat themselves.

    The last ``longest`` tokens are looked for, then fewer, down to ``shortest``; the latest place counts.
    """

    longest: int = 3
    shortest: int = 1

    def guess(self, text: Sequence[int], count: int, chances: Chances, seed: int) -> Guesses:
        for size in range(min(self.longest, len(text) - 1), self.shortest - 1, -1):
            tail = list(text[-size:])
            for start in range(len(text) - size - 1, -1, -1):
                if list(text[start : start + size]) == tail:
                    return Guesses(list(text[start + size : start + size + count]))
        return Guesses([])


class DraftModel:
    """Guesses with another model, which follows the text in a row of its own."""

    def __init__(self, executable: Executable) -> None:
        self._rows = Batch(executable, checkpoint_every=0)

    def guess(self, text: Sequence[int], count: int, chances: Chances, seed: int) -> Guesses:
        rows, row = self._rows, self._rows.rows[0]
        count = min(count, rows.capacity - len(text))
        if count < 1:
            return Guesses([])
        same = common_length(row.tokens, text[:-1])
        again = rows.rewind(0, same)
        rows.read({0: [*again, *text[same:-1]]})
        if rows.undo.is_exact:  # it will be set back to here
            row = rows.rows[0]
            row.checkpoints = row.checkpoints[-1:]
            rows.checkpoint(0)
        guessed: list[int] = []
        drawn_from: list[np.ndarray] = []
        for _ in range(count):
            logits = rows.read({0: [[*text, *guessed][-1]]})[0]
            drawn_from.append(chances(logits, [*text, *guessed]))
            guessed.append(draw(drawn_from[-1], uniform(seed, GUESS, len(text) + len(guessed))))
        return Guesses(guessed, drawn_from)


def uniform(seed: int, stream: int, step: int) -> float:
    """A number in [0, 1) that depends on its arguments only (Philox, keyed and counted by them)."""
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=step)
    return float(np.random.Generator(generator).random())


def draw(chances: np.ndarray, point: float) -> int:
    """The token at ``point`` in [0, 1) of a distribution [V], which need not add up to 1."""
    cumulative = np.cumsum(chances)
    below_all = np.nextafter(cumulative[-1], 0)  # the product may round up to the sum itself
    return int(np.searchsorted(cumulative, min(point * cumulative[-1], below_all), side="right"))


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
