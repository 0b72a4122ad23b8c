"""The state of one text as a value: tokens, and the arrays that were kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..backends.interface import described
from .undo import Checkpoint, Undo


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a model keeps behind ``tokens``. Immutable: any number of rows can go on from it.

    ``piece`` holds what is kept by position, f32[1, …, slots, …] with at least as many slots as tokens;
    ``whole`` one row [1, …] of every other state, ``constants`` what the ``source`` of an
    encoder-decoder left. All are arrays of the backend, by the state's name. ``written`` is as in
    ``Checkpoint``; ``adapter`` is the number of the one that the text speaks with.
    """

    tokens: tuple[int, ...]
    written: int
    piece: Mapping[str, Any] = field(repr=False)
    whole: Mapping[str, Any] = field(repr=False)
    undo: Undo = field(repr=False)
    checkpoints: tuple[Checkpoint, ...] = field(default=(), repr=False)
    source: tuple[int, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict, repr=False)
    adapter: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def bytes(self) -> int:
        """Bytes of all arrays, those of checkpoints included."""
        groups = [self.piece, self.whole, self.constants, *(c.arrays for c in self.checkpoints)]
        return sum(described(array).nbytes for group in groups for array in group.values())

    def recomputed(self, position: int) -> int:
        """How many positions must be read again to get back to ``position``."""
        return self.undo.plan(position, len(self), self.written, self.checkpoints).recomputed

    def rewind(self, position: int) -> tuple[Snapshot, tuple[int, ...]]:
        """The state as close before ``position`` as it can be had, and the tokens from there on.

        Nothing is copied. ``SystolicError`` for a position behind the end.
        """
        plan = self.undo.plan(position, len(self), self.written, self.checkpoints)
        kept = tuple(c for c in self.checkpoints if c.position <= plan.resume)
        back = replace(self, tokens=self.tokens[: plan.resume], checkpoints=kept)
        if plan.checkpoint is not None:
            back = replace(back, whole=plan.checkpoint.arrays, written=plan.checkpoint.written)
        elif plan.resume == 0:
            back = replace(back, written=0)
        return back, self.tokens[plan.resume : position]
