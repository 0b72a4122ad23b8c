"""StableHLO lowerings of the ops on bits, of sorting, and of adding at indices, by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..ir.graph import Node
from ..ir.types import FLOATS, TensorType
from .stablehlo_control import repeat_while
from .stablehlo_text import Block, Lowering, Value, mlir_type


def _binary(name: str) -> Lowering:
    return lambda block, node, x, y: block.same(name, *block.fitted(x, y))


def _shift_right(block: Block, node: Node, x: Value, y: Value) -> Value:
    kind = "logical" if x.type.dtype.startswith("u") else "arithmetic"
    return block.same(f"shift_right_{kind}", *block.fitted(x, y))


def _comparison(block: Block, x: Value, others: int, direction: str = "LT") -> str:
    """The region that compares two elements of x, and looks at nothing of the ``others`` beside them."""
    scalar, index = mlir_type(TensorType((), x.type.dtype)), mlir_type(TensorType((), "i32"))
    first, second, holds = (block.names.numbered(name) for name in ("%first", "%second", "%holds"))
    ignored = [block.names.numbered("%beside") for _ in range(2 * others)]
    arguments = [f"{first}: {scalar}", f"{second}: {scalar}", *(f"{name}: {index}" for name in ignored)]
    kind = "FLOAT" if x.type.dtype in FLOATS else "UNSIGNED"
    kind = "SIGNED" if x.type.dtype.startswith("i") else kind
    compared = (
        f"stablehlo.compare {direction}, {first}, {second}, {kind} : ({scalar}, {scalar}) -> tensor<i1>"
    )
    body = f"{holds} = {compared} stablehlo.return {holds} : tensor<i1>"
    return f"({{ ^block({', '.join(arguments)}): {body} }})"


def sort_elements(block: Block, x: Value, axis: int) -> Value:
    """The elements along ``axis``, smallest first."""
    order = f"<{{dimension = {axis} : i64, is_stable = false}}>"
    return block.call(f'"stablehlo.sort"({x}) {order} {_comparison(block, x, 0)}', (x,), x.type)


def sort_indices(block: Block, x: Value, axis: int, direction: str = "LT") -> Value:
    """The indices of the elements along ``axis``, smallest first (``GT``: largest), equal ones in order."""
    type_ = x.type.with_dtype("i32")
    index = block.emit(f"stablehlo.iota dim = {axis} : {mlir_type(type_)}", type_)
    order = f"<{{dimension = {axis} : i64, is_stable = true}}>"
    types = f"({mlir_type(x.type)}, {mlir_type(type_)})"
    comparison = _comparison(block, x, 1, direction)
    text = f'"stablehlo.sort"({x}, {index}) {order} {comparison} : {types} -> {types}'
    return block.emit_many(text, (x.type, type_))[1]


def _sort(block: Block, node: Node, x: Value) -> Value:
    return sort_elements(block, x, node.params["axis"])


def _argsort(block: Block, node: Node, x: Value) -> Value:
    return sort_indices(block, x, node.params["axis"])


def _cut(block: Block, node: Node, x: Value, weights: Value, limit: Value) -> Value:
    """Found bit by bit, the highest first, in the order of the floats as unsigned integers: 32 sums instead
    of a sort, which XLA's CPU backend takes some ten times as long for."""
    axis, word = x.type.rank - 1, x.type.with_dtype("u32")
    bits = block.call(f"stablehlo.bitcast_convert {x}", (x,), word)
    sign = block.number(1 << 31, word)
    is_negative = block.compare("GE", bits, sign)
    keys = block.select(is_negative, block.same("not", bits), block.same("or", bits, sign))
    found, bit = block.number(0, limit.type.with_dtype("u32")), block.number(1 << 31, TensorType((), "u32"))

    def going_on(region: Block, carried: Sequence[Value]) -> Value:
        return region.compare("NE", carried[1], region.number(0, carried[1].type))

    def step(region: Block, carried: Sequence[Value]) -> list[Value]:
        below, bit = carried
        higher = region.same("or", below, region.broadcast(bit, below.type.static_shape))
        lead = range(axis)
        is_below = region.compare("LT", keys, region.spread(higher, lead, keys.type.static_shape))
        lighter = region.select(is_below, weights, region.number(0, weights.type))
        mass = region.reduce(lighter, [axis], "add", 0)
        chosen = region.select(region.compare("LE", mass, limit), higher, below)
        return [chosen, region.same("shift_right_logical", bit, region.number(1, bit.type))]

    found = repeat_while(block, node, (found, bit), going_on, step)[0]
    found = block.same("minimum", found, block.reduce(keys, [axis], "maximum", 0))
    sign = block.number(1 << 31, found.type)
    is_positive = block.compare("GE", found, sign)
    bits = block.select(is_positive, block.same("xor", found, sign), block.same("not", found))
    return block.call(f"stablehlo.bitcast_convert {bits}", (bits,), node.tensor)


def _join_at(join: str) -> Lowering:
    return lambda block, node, x, indices, values: scatter(block, join, x, indices, values)


def scatter(block: Block, join: str, x: Value, indices: Value, values: Value) -> Value:
    """A scatter, which by definition drops what lies outside; leading axes are one batching axis."""
    *leading, size = x.type.static_shape
    rows, count = math.prod(leading), indices.type.static_shape[-1]
    flat = block.reshape(x, (rows, size))
    index, added = block.reshape(indices, (rows, count, 1)), block.reshape(values, (rows, count))
    scalar = mlir_type(TensorType((), x.type.dtype))
    old, new, both = (block.names.numbered(name) for name in ("%old", "%new", "%both"))
    text = (
        f'"stablehlo.scatter"({flat}, {index}, {added}) <{{scatter_dimension_numbers = #stablehlo.scatter<'
        "inserted_window_dims = [1], input_batching_dims = [0], scatter_indices_batching_dims = [0], "
        "scatter_dims_to_operand_dims = [1], index_vector_dim = 2>}> "
        f"({{ ^block({old}: {scalar}, {new}: {scalar}): {both} = stablehlo.{join} {old}, {new} : {scalar} "
        f"stablehlo.return {both} : {scalar} }})"
    )
    return block.reshape(block.call(text, (flat, index, added), flat.type), x.type.static_shape)


ORDER: dict[str, Lowering] = {
    "bitwise_and": _binary("and"),
    "bitwise_or": _binary("or"),
    "bitwise_xor": _binary("xor"),
    "shift_left": _binary("shift_left"),
    "shift_right": _shift_right,
    "sort": _sort,
    "argsort": _argsort,
    "cut": _cut,
    "add_at": _join_at("add"),
    "max_at": _join_at("maximum"),
}
