"""What a sampling program is compiled for, and the numbers that rows give it.

A batch whose rows have different chains runs one chain that contains them all, in their order; where a row
lacks a step, the step gets the values that change nothing. What steps do to scores stands elsewhere, and is
loaded where a chain has any: the best token can be taken without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from .step import Step

MATCH = 32  # how many tokens back a repetition is followed
NONE = -1  # fills lists of tokens: no token has this id
DAMAGED, NOTHING_LEFT = -1, -2  # in place of a token: the logits are no numbers; every token was removed
LONGEST_CALL = 64  # tokens that one call of a decode loop makes at most
SMALLEST_LIST = 4  # lists are filled up to 4, 8, 16 …, so that few lengths have a program

Chain: TypeAlias = "tuple[Step, ...]"


def _steps() -> Mapping[str, type[Step]]:
    """The steps in their default order, by name."""
    from .chain import STEPS

    return STEPS


def _rank(step: str) -> int:
    """The place of a step in the default order."""
    return list(_steps()).index(step)


@dataclass(frozen=True)
class Slot:
    """One step of a structure: its class, the fields that are part of it, the shapes of the others."""

    step: str
    fixed: tuple[tuple[str, int], ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @staticmethod
    def of(step: Step) -> Slot:
        shapes = ((name, tuple(map(_bucket, array.shape))) for name, array in step.values.items())
        return Slot(type(step).__name__, tuple(step.fixed.items()), tuple(shapes))

    def fits(self, other: Slot) -> bool:
        """Whether one step can stand for both."""
        return (self.step, self.fixed) == (other.step, other.fixed)

    def widened(self, other: Slot) -> Slot:
        """With room for the lists of both."""
        pairs = zip(self.shapes, other.shapes, strict=True)
        shapes = ((name, tuple(map(max, shape, wide))) for (name, shape), (_, wide) in pairs)
        return Slot(self.step, self.fixed, tuple(shapes))


def _bucket(size: int) -> int:
    return max(SMALLEST_LIST, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class Structure:
    """What a sampling program is compiled for.

    ``draws``: a token is drawn from what is left, instead of the best one being taken. ``logprobs``: how
    many of the likeliest tokens are listed with their log-probabilities (0: only the chosen one; None:
    nothing). ``yields_scores``: the scores that are left are results too.
    """

    slots: tuple[Slot, ...] = ()
    draws: bool = False
    logprobs: int | None = None
    yields_scores: bool = False

    @property
    def name(self) -> str:
        """Words for it: ``greedy``, ``temperature.top_k.top_p``."""
        words = [snake_case(slot.step) for slot in self.slots]
        words += [] if self.draws else ["greedy"]
        words += [] if self.logprobs is None else [f"logprobs{self.logprobs}"]
        return ".".join(words) or "plain"

    @property
    def remembers(self) -> bool:
        """Whether the chain looks at the text so far."""
        return any(_steps()[slot.step].remembers for slot in self.slots)

    @property
    def fields(self) -> list[tuple[str, int, str]]:
        """(input name, slot, field) of every number that a row gives."""
        seen: dict[str, int] = {}
        listed = []
        for at, slot in enumerate(self.slots):
            word = snake_case(slot.step)
            seen[word] = seen.get(word, 0) + 1
            count = f"_{seen[word]}" if seen[word] > 1 else ""
            listed += [(f"{word}{count}_{field}", at, field) for field, _ in slot.shapes]
        return listed


def snake_case(name: str) -> str:
    """``TopNSigma`` as ``top_n_sigma``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@dataclass(frozen=True)
class Row:
    """What one row of a batch is sampled with. ``stream`` numbers rows that share a seed; ``prompt`` is the
    length of what it was given."""

    chain: Chain = ()
    draws: bool = False
    seed: int = 0
    stream: int = 0
    prompt: int = 0

    @property
    def drawn_chain(self) -> Chain:
        """The chain in a batch in which others draw: a greedy row leaves only its best token."""
        if self.draws:
            return self.chain
        greedy = _steps()["Greedy"](1)  # type: ignore[call-arg]
        return tuple(sorted((*self.chain, greedy), key=lambda step: _rank(type(step).__name__)))


def structure_of(rows: Sequence[Row], logprobs: int | None = None) -> Structure:
    """The structure that holds the chains of all rows."""
    draws = any(row.draws for row in rows)
    slots: list[Slot] = []
    for row in rows:
        slots = _joined(slots, [Slot.of(step) for step in (row.drawn_chain if draws else row.chain)])
    return Structure(tuple(slots), draws, logprobs)


def _joined(first: list[Slot], second: list[Slot]) -> list[Slot]:
    """A sequence that contains both in their order; in the default order if both are."""
    result: list[Slot] = []
    at = 0
    for slot in second:
        found = next((i for i in range(at, len(first)) if first[i].fits(slot)), None)
        if found is None:
            while at < len(first) and _rank(first[at].step) < _rank(slot.step):
                result.append(first[at])
                at += 1
            result.append(slot)
        else:
            result += [*first[at:found], first[found].widened(slot)]
            at = found + 1
    return result + first[at:]


def row_inputs(structure: Structure, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The numbers of all rows, by input name, each [B, 1, …]."""
    parts = [_row_values(structure, row) for row in rows]
    return {name: np.stack([part[name] for part in parts])[:, None] for name in parts[0]}


def _row_values(structure: Structure, row: Row) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {
        "seed": np.array([row.seed & 0xFFFFFFFF, row.seed >> 32], np.uint32),
        "stream": np.array(row.stream, np.uint32),
        "prompt": np.array(row.prompt, np.int32),
    }
    placed = _placed(structure, row.drawn_chain if structure.draws else row.chain)
    for name, at, field in structure.fields:
        shape = dict(structure.slots[at].shapes)[field]
        values[name] = _filled(placed[at].values[field], shape)
    return values


def _placed(structure: Structure, chain: Chain) -> list[Step]:
    """The step of each slot: the row's own, or one that changes nothing."""
    pending = list(chain)
    placed = []
    for slot in structure.slots:
        if pending and slot.fits(Slot.of(pending[0])):
            placed.append(pending.pop(0))
        else:
            placed.append(_steps()[slot.step](**dict(slot.fixed)))
    if pending:
        raise ValueError(f"{structure.name} has no room for {pending[0]}")
    return placed


def _filled(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    filled = np.full(shape, NONE if array.dtype == np.int32 else 0, array.dtype)
    filled[tuple(slice(size) for size in array.shape)] = array
    return filled
