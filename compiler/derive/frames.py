"""Frames: the positions for which a program computes values, and what each of them may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...ir.graph import Node
from ...ir.types import Dim, Past, Shape, Whole
from .placed import Maker, Placed


@dataclass(frozen=True, eq=False)
class Slots:
    """Where the past of one window class is kept: ``count`` slots, and the position in each.

    ``positions`` is i32[B, count], or i32[count] where slot s always holds position s. A negative
    position is a slot that was never written. ``place`` names the class: ``past``, ``past8``.
    """

    count: int
    positions: Node
    place: str = "past"
    is_ring: bool = False


@dataclass(frozen=True, eq=False)
class Frame:
    """``size`` positions in each of ``rows`` rows, with what is needed to see the past from there.

    ``positions`` is i32[B, n]; ``valid`` bool[B, n] is false for padding. ``slots`` gives, for each
    ragged dimension of this clock, where its values are; ``ends`` bool[B, S] for each finished clock
    which of its positions are real.
    """

    rows: int
    size: int
    positions: Node
    valid: Node
    slots: Mapping[Past, Slots]
    ends: Mapping[str, Node]
    default: Slots | None = None  # for every dimension that ``slots`` does not name
    masks: dict[Dim, Placed] = field(default_factory=dict)  # made once, shared by all layers

    def slots_of(self, dim: Past) -> Slots:
        slots = self.slots.get(dim, self.default)
        assert slots is not None, f"no slots for {dim}"
        return slots

    def extent(self, dim: Dim) -> int:
        """How many slots a ragged dimension has."""
        if isinstance(dim, Past):
            return self.slots_of(dim).count
        if isinstance(dim, Whole):
            return self.ends[dim.clock].tensor.static_shape[-1]
        raise ValueError(f"the size {dim} is open; give it a number with graph.bind({dim.name}=…)")  # type: ignore[union-attr]

    def visible(self, dim: Dim) -> Placed:
        """bool, shape (dim,): lead 2 for the past, lead 1 for a finished clock."""
        if dim not in self.masks:
            shape: Shape = (dim,)
            if isinstance(dim, Past):
                self.masks[dim] = Placed(self._visible_past(dim), 2, shape)
            else:
                assert isinstance(dim, Whole)
                self.masks[dim] = Placed(self.ends[dim.clock], 1, shape)
        return self.masks[dim]

    def _visible_past(self, dim: Past) -> Node:
        """bool[B, n, S]: slots that hold a position from t - window + 1 up to t."""
        slots, make = self.slots_of(dim), Maker(None, f"visible.{dim}")
        there = slots.positions
        there = make.reshape(there, (*there.tensor.static_shape[:-1], 1, slots.count), "slots")
        here = make.reshape(self.positions, (self.rows, self.size, 1), "here")
        seen = make("less_equal", there, here, label="causal")
        if dim.window is not None:
            oldest = make("subtract", here, make.integer(dim.window), label="before")
            seen = make("logical_and", seen, make("greater", there, oldest, label="recent"), label="window")
        if slots.is_ring:
            written = make("greater_equal", there, make.integer(0), label="written")
            seen = make("logical_and", seen, written, label="ring")
        return seen


def chunk_positions(rows: int, size: int, offset: Node, length: Node) -> tuple[Node, Node]:
    """Positions i32[B, n] of a chunk that begins at ``offset``, and which of them are real."""
    make = Maker()
    steps = make("arange", label="chunk.steps", size=size)
    column = make.reshape(offset, (rows, 1), "column")
    positions = make("add", column, steps, label="chunk.positions")
    valid = make("less", steps, make.reshape(length, (rows, 1), "column"), label="chunk.valid")
    return positions, valid


def append_slots(place: str, count: int) -> Slots:
    """Slot s holds position s."""
    return Slots(count, Maker()("arange", label=f"slots.{place}", size=count), place)


def ring_slots(place: str, count: int, rows: int, offset: Node, length: Node) -> Slots:
    """Slot s holds the newest position that is s modulo ``count``, once the chunk is written."""
    make = Maker(None, f"slots.{place}")
    end = make.reshape(make("add", offset, length, label="end"), (rows, 1), "column")
    slot = make("arange", label="slot", size=count)
    last = make("subtract", end, make.integer(1), label="last")
    turns = make(
        "floor_divide", make("subtract", last, slot, label="since"), make.integer(count), label="turns"
    )
    positions = make(
        "add", slot, make("multiply", turns, make.integer(count), label="base"), label="positions"
    )
    return Slots(count, positions, place, is_ring=True)
