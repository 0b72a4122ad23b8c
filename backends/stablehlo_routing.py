"""StableHLO lowerings of the ops of routed models, by name."""

from __future__ import annotations

from ..ir.graph import Node
from ..ir.types import TensorType
from .stablehlo_text import Block, Lowering, Value, highest, lowest, mlir_type


def _top_k(block: Block, node: Node, x: Value) -> Value:
    """The first index of the maximum, k times, each time without those found before.

    For the few of a router this is faster than a sort, and unlike XLA's own it takes -0.0 for 0.0.
    """
    axis = x.type.rank - 1
    shape = x.type.static_shape
    each = x.type.with_dtype("i32")
    index = block.emit(f"stablehlo.iota dim = {axis} : {mlir_type(each)}", each)
    none, outside = block.number(lowest(x.type.dtype), x.type), block.number(shape[-1], each)
    free = block.constant(True, x.type.with_dtype("bool"))  # type: ignore[arg-type]
    found: list[Value] = []
    for _ in range(node.params["k"]):
        candidates = block.select(free, x, none)
        largest = block.reduce(candidates, [axis], "maximum", lowest(x.type.dtype))
        is_largest = block.compare("EQ", candidates, block.spread(largest, range(axis), shape))
        places = block.select(block.same("and", free, is_largest), index, outside)
        first = block.reduce(places, [axis], "minimum", highest("i32"))
        found.append(block.reshape(first, (*shape[:-1], 1)))
        free = block.same("and", free, block.compare("NE", index, block.spread(first, range(axis), shape)))
    names = ", ".join(place.name for place in found)
    type_ = TensorType((*shape[:-1], len(found)), "i32")
    return block.call(f"stablehlo.concatenate {names}, dim = {axis}", found, type_)


ROUTING: dict[str, Lowering] = {"top_k": _top_k}
