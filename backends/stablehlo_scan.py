"""A linear recurrence as an associative scan: in about 2 log2(n) steps instead of n, with 2 n work."""

from __future__ import annotations

from ..ir.graph import Node
from ..ir.ops.program import SCALES
from ..ir.types import TensorType
from .stablehlo_text import Block, Value


def linear_scan(block: Block, node: Node, decay: Value, inflow: Value, start: Value) -> Value:
    """h[:, t] = decay[:, t] * h[:, t - 1] + inflow[:, t], and ``start`` before the first."""
    join = node.params.get("join", "add")
    first = _every(block, decay, 0, 1, 1)
    before = block.same(SCALES[join], first, block.reshape(start, first.type.static_shape))
    first_state = block.same(join, before, _every(block, inflow, 0, 1, 1))
    if inflow.type.static_shape[1] == 1:
        return first_state
    rest = _every(block, inflow, 1, 1, inflow.type.static_shape[1])
    return _states(block, join, decay, _joined(block, first_state, rest))


def _states(block: Block, join: str, decay: Value, inflow: Value) -> Value:
    """The states when nothing comes before: pairs of steps are joined to one step, these are solved
    for the odd positions, and each even position follows from the odd one before it."""
    count = inflow.type.static_shape[1]
    if count == 1:
        return inflow
    pairs, scale = count // 2, SCALES[join]
    decay_even, decay_odd = _every(block, decay, 0, 2, count), _every(block, decay, 1, 2, count)
    inflow_even, inflow_odd = _every(block, inflow, 0, 2, count), _every(block, inflow, 1, 2, count)
    joined_decay = block.same(scale, decay_odd, _every(block, decay_even, 0, 1, pairs))
    carried = block.same(scale, decay_odd, _every(block, inflow_even, 0, 1, pairs))
    odd = _states(block, join, joined_decay, block.same(join, carried, inflow_odd))
    even = _every(block, inflow_even, 0, 1, 1)
    evens = inflow_even.type.static_shape[1]
    if evens > 1:
        before = _every(block, odd, 0, 1, evens - 1)
        carried = block.same(scale, _every(block, decay_even, 1, 1, evens), before)
        later = block.same(join, carried, _every(block, inflow_even, 1, 1, evens))
        even = _joined(block, even, later)
    return block.same("add", _spaced(block, even, 0, count), _spaced(block, odd, 1, count))


def _every(block: Block, x: Value, first: int, step: int, limit: int) -> Value:
    """Positions first, first + step … below ``limit`` of ``[B, n, …]``."""
    rows, count, *rest = x.type.static_shape
    if (first, step, limit) == (0, 1, count):
        return x
    ranges = ", ".join([f"0:{rows}", f"{first}:{limit}:{step}", *(f"0:{size}" for size in rest)])
    type_ = x.type.with_shape((rows, len(range(first, limit, step)), *rest))
    return block.call(f"stablehlo.slice {x} [{ranges}]", (x,), type_)


def _joined(block: Block, x: Value, y: Value) -> Value:
    """``x`` and behind it ``y``, along positions."""
    rows, count, *rest = x.type.static_shape
    type_ = x.type.with_shape((rows, count + y.type.static_shape[1], *rest))
    return block.call(f"stablehlo.concatenate {x}, {y}, dim = 1", (x, y), type_)


def _spaced(block: Block, x: Value, first: int, count: int) -> Value:
    """Every other of ``count`` positions from ``first`` on taken by ``x``, zeros between them."""
    rows, size, *rest = x.type.static_shape
    zero = block.number(0, TensorType((), x.type.dtype))
    none = [0] * len(rest)
    low, high, inner = [0, first, *none], [0, count - first - (2 * size - 1), *none], [0, 1, *none]
    text = f"stablehlo.pad {x}, {zero}, low = {low}, high = {high}, interior = {inner}"
    return block.call(text, (x, zero), x.type.with_shape((rows, count, *rest)))
