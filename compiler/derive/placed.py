"""Values of a derived program: where the rows and positions of a stream ended up.

A stream of ``f32[4, past]`` becomes an array whose leading axes say what it varies with:

    lead 0   [4, S]          the same for all rows: weights and constants
    lead 1   [B, 4, S]       the same for all positions of the chunk: a history, a finished clock
    lead 2   [B, n, 4, S]    one value for each position
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir.graph import Node, make_node
from ...ir.ops import OPS
from ...ir.types import DTYPES, Dim, Shape, Whole, is_ragged

# What a value holds beyond the part of time that its position may see.
ZERO, FINITE, ANY = "zero", "finite", "any"


@dataclass(frozen=True, eq=False)
class Placed:
    """A derived value: its node, its leading axes, the shape of one value as the stream has it, and
    what it holds along ragged dimensions outside of what is visible."""

    node: Node
    lead: int
    shape: Shape
    outside: str = FINITE


@dataclass(frozen=True)
class Maker:
    """Makes nodes of a derived program that keep the name, scope and source line of a stream."""

    origin: Node | None = None
    suffix: str = ""

    def __call__(self, op: str, *sources: Node, label: str = "", **params: Any) -> Node:
        origin = self.origin
        name = (origin.name if origin else "") + self.suffix
        if label:
            name = f"{name}.{label}" if name else label
        scope = origin.scope if origin else ""
        location = origin.location if origin else None
        return make_node(OPS[op], sources, params, name=name, scope=scope, location=location)

    def constant(self, value: Any, dtype: str) -> Node:
        array = np.array(value, DTYPES[dtype])
        array.setflags(write=False)
        return make_node(OPS["constant"], (), {"value": array})

    def integer(self, value: int) -> Node:
        return self.constant(value, "i32")

    def reshape(self, node: Node, shape: tuple[int, ...], label: str = "shape") -> Node:
        if node.tensor.shape == shape:
            return node
        return self("reshape", node, label=label, shape=shape)

    def broadcast(self, node: Node, shape: tuple[int, ...], label: str = "broadcast") -> Node:
        if node.tensor.shape == shape:
            return node
        return self("broadcast_to", node, label=label, shape=shape)


def align(make: Maker, value: Placed, lead: int, rank: int) -> Node:
    """The value with ones inserted so that its axes broadcast against ``lead`` and ``rank``.

    ``[B, S]`` (lead 1, rank 1) against lead 2, rank 2 becomes ``[B, 1, 1, S]``.
    """
    node = value.node
    if value.lead == 0:
        return node  # broadcasting aligns from the right already
    shape = node.tensor.static_shape
    leading = shape[: value.lead] + (1,) * (lead - value.lead)
    own = (1,) * (rank - len(value.shape)) + shape[value.lead :]
    return make.reshape(node, leading + own, "align")


def stretch(make: Maker, value: Placed, rows: int, size: int) -> Placed:
    """The value with one copy for each row and position: lead 2."""
    if value.lead == 2:
        return value
    node = align(make, value, 2, len(value.shape))
    own = value.node.tensor.static_shape[value.lead :]
    return replace(value, node=make.broadcast(node, (rows, size, *own)), lead=2)


def slot_axis(value: Shape) -> int:
    """The axis of the slots in a buffer [B, …]: before the last one, [B, H, S, D] for heads of D numbers.

    Products that are batched over heads then read the buffer as it is. With the slots in front, XLA's CPU
    backend copies the whole buffer into such a layout at each step.
    """
    return max(1, len(value))


def with_slots(value: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The shape of one row of a buffer: ``count`` slots for values of this shape."""
    axis = slot_axis(value) - 1
    return (*value[:axis], count, *value[axis:])


def constant_axis(shape: Shape) -> int:
    """The axis of the slots in what a finished clock left: as in a buffer, if it is a sequence of values."""
    return slot_axis(shape[1:]) if is_sequence(shape) else 1


def is_sequence(shape: Shape) -> bool:
    """Whether this is one value for each position of a finished clock."""
    return bool(shape) and isinstance(shape[0], Whole) and not any(map(is_ragged, shape[1:]))


def slots_first(make: Maker, buffer: Node, axis: int) -> Node:
    """The buffer [B, …, S, …] with slots at ``axis`` as [B, S, …]."""
    order = (0, axis, *(i for i in range(1, buffer.tensor.rank) if i != axis))
    return buffer if axis == 1 else make("transpose", buffer, permutation=order)


def slots_inside(make: Maker, values: Node, axis: int) -> Node:
    """The values [B, S, …] as a buffer [B, …, S, …] with slots at ``axis``."""
    rest = range(2, values.tensor.rank)
    order = (0, *rest[: axis - 1], 1, *rest[axis - 1 :])
    return values if axis == 1 else make("transpose", values, permutation=order)


Extent = Callable[[Dim], int]


def settle(shape: Shape, extent: Extent) -> tuple[int, ...]:
    """The shape as numbers, with each ragged dimension as long as its slots."""
    return tuple(dim if isinstance(dim, int) else extent(dim) for dim in shape)
