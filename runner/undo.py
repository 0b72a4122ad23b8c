"""Going back: what each kind of state can undo by itself, and what must be computed again.

append    any position: what lies behind it is never visible, and is written over
ring      the last ``reserve`` positions, slots - window + 1; before slots are written over, any
tail      nothing by itself: a checkpoint, and the positions from there on again
carry     the same
constant  nothing to undo
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..compiler.derive.moves import slot_count
from ..compiler.program import State
from ..ir.errors import SystolicError

BY_POSITION = ("append",)  # kept by position: a piece can be moved
AS_A_WHOLE = ("ring", "tail", "carry")  # moved as whole rows, and what a checkpoint holds
SHORTEST_INTERVAL = 64


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Copies [1, …] of what cannot be set back, as it was behind ``position`` positions.

    ``written`` is how many positions had been written then: what rings had lost follows from it.
    """

    position: int
    written: int
    arrays: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Rewind:
    """How a row gets back to ``position``: ``resume`` positions stay as they are, the rest is read again.

    ``checkpoint`` is where the states are taken from; None keeps them as they are, or, with ``resume``
    0, begins anew.
    """

    position: int
    resume: int
    checkpoint: Checkpoint | None = None

    @property
    def recomputed(self) -> int:
        """How many positions must be read again."""
        return self.position - self.resume


@dataclass(frozen=True)
class Undo:
    """What the states of a model can undo."""

    states: tuple[State, ...]

    @cached_property
    def is_exact(self) -> bool:
        """Whether some state, a tail or a carry, only knows the newest position."""
        return any(state.kind in ("tail", "carry") for state in self.states)

    @cached_property
    def rings(self) -> tuple[tuple[int, int], ...]:
        """(slots, reserve) of the rings."""
        found = []
        for state in self.states:
            if state.kind == "ring":
                assert state.access.oldest is not None
                found.append((slot_count(state), slot_count(state) + state.access.oldest))
        return tuple(dict.fromkeys(found))

    @property
    def needs_checkpoints(self) -> bool:
        """Whether going back far needs checkpoints, as everything but ``append`` does."""
        return self.is_exact or bool(self.rings)

    @property
    def interval(self) -> int | None:
        """How often checkpoints are worth their bytes, in positions; None where they are not needed.

        A copy of a ring holds all its slots, so one for as many positions costs what keeping every
        value would.
        """
        slots = [slots for slots, _ in self.rings]
        return max(SHORTEST_INTERVAL, *slots, 0) if self.needs_checkpoints else None

    def reach(self, position: int, written: int) -> int:
        """The first position that states behind ``position`` can be set back to as they are."""
        if self.is_exact:
            return position
        return max((written - reserve for slots, reserve in self.rings if written > slots), default=0)

    def plan(self, position: int, seen: int, written: int, checkpoints: Sequence[Checkpoint]) -> Rewind:
        """The cheapest way back to ``position`` of a row that has ``seen`` positions.

        ``SystolicError`` for a position that the row does not have.
        """
        if not 0 <= position <= seen:
            raise SystolicError(f"position {position} is not one of the {seen} that were read")
        if position == 0 or self.reach(seen, written) <= position:
            return Rewind(position, position)
        usable = [c for c in checkpoints if self.reach(c.position, c.written) <= position]
        best = max(usable, key=lambda c: c.position, default=None)
        return Rewind(position, 0) if best is None else Rewind(position, min(best.position, position), best)

    def __str__(self) -> str:
        """One line for each kind of state that there is."""
        lines = {
            "append": "append: any position, at no cost",
            "ring": f"ring: the last {min((r for _, r in self.rings), default=0)} positions at no cost, "
            "further back from a checkpoint",
            "tail": "tail: from a checkpoint",
            "carry": "carry: from a checkpoint",
            "constant": "constant: nothing to undo",
        }
        kinds = {state.kind for state in self.states}
        return "\n".join(line for kind, line in lines.items() if kind in kinds)
