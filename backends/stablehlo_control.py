"""StableHLO control flow: while loops with regions, and the slices that their steps read and write."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir.graph import Node
from ..ir.types import TensorType
from .stablehlo_text import Block, Value, mlir_type, mlir_types

COUNTER = TensorType((), "i32")


def repeat_while(
    block: Block,
    node: Node,
    initial: Sequence[Value],
    going_on: Callable[[Block, Sequence[Value]], Value],
    step: Callable[[Block, Sequence[Value]], Sequence[Value]],
) -> tuple[Value, ...]:
    """The carried values after the last step: ``step`` is repeated as long as ``going_on`` holds before it.

    Both write into a region of their own, and get it with the values carried so far.
    """
    inside = tuple(Value(block.fresh(), value.type) for value in initial)
    pairs = ", ".join(f"{name} = {value}" for name, value in zip(inside, initial, strict=True))
    condition = _region(block, node, lambda region: [going_on(region, inside)])
    body = _region(block, node, lambda region: step(region, inside))
    text = (
        f"stablehlo.while({pairs}) : {mlir_types(initial)}\n"
        f"{block.indent}  cond {{\n{condition}\n{block.indent}  }} do {{\n{body}\n{block.indent}  }}"
    )
    return block.emit_many(text, [value.type for value in initial])


def _region(block: Block, node: Node, write: Callable[[Block], Sequence[Value]]) -> str:
    region = block.nested()
    region.begin(node)
    results = write(region)
    region.finish(())
    region.leave("stablehlo.return", results)
    return region.text


def dynamic_slice(block: Block, x: Value, starts: Sequence[Value | int], sizes: Sequence[int]) -> Value:
    """``sizes`` elements of ``x`` from ``starts`` on, which are moved so that all of them are inside."""
    type_ = x.type.with_shape(tuple(sizes))
    named, types = _starts(block, starts)
    text = f"stablehlo.dynamic_slice {x}, {named}, sizes = {list(sizes)}"
    return block.emit(f"{text} : ({mlir_type(x.type)}, {types}) -> {mlir_type(type_)}", type_)


def dynamic_update(block: Block, x: Value, part: Value, starts: Sequence[Value | int]) -> Value:
    """``x`` with ``part`` in place of its elements from ``starts`` on."""
    named, types = _starts(block, starts)
    signature = f"({mlir_type(x.type)}, {mlir_type(part.type)}, {types}) -> {mlir_type(x.type)}"
    return block.emit(f"stablehlo.dynamic_update_slice {x}, {part}, {named} : {signature}", x.type)


def _starts(block: Block, starts: Sequence[Value | int]) -> tuple[str, str]:
    values = [s if isinstance(s, Value) else block.number(s, COUNTER) for s in starts]
    return ", ".join(value.name for value in values), mlir_types(values)


# ---- counters ----


def advanced(block: Block, i: Value) -> Value:
    """``i`` + 1."""
    return block.same("add", i, block.number(1, i.type))


def times(block: Block, i: Value, factor: int) -> Value:
    """``i`` times a number."""
    return i if factor == 1 else block.same("multiply", i, block.number(factor, i.type))


def divided(block: Block, i: Value, size: int) -> tuple[Value, Value]:
    """``i`` divided by a number, and the rest; neither is negative."""
    if size == 1:
        return i, block.number(0, i.type)
    divisor = block.number(size, i.type)
    return block.same("divide", i, divisor), block.same("remainder", i, divisor)
