"""StableHLO lowerings of the ops of routed models, by name.

XLA's CPU backend has no product of groups of rows with a matrix each, so a routed contraction is a loop whose
steps read a part of one matrix. With few rows, as in decoding, it goes from row to row. With many, rows are
put in the order of their matrices, and a step multiplies a block of rows that share one.

Measured on 2 cores, f32: a step may copy the part that it reads, since XLA fuses a slice into a product only
in one case (a product with a vector of less than 16 KiB, the matrix read transposed). So parts are of about
the size that a cache holds: 1 MiB was as fast as 4 MiB, and up to 4 times as fast as the whole matrix. Blocks
of rows are in ``stablehlo_grouped``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.graph import Node
from ..ir.types import TensorType
from .stablehlo_control import COUNTER, advanced, divided, dynamic_slice, dynamic_update, repeat_while, times
from .stablehlo_grouped import PART_BYTES, divisor, is_inside, multiply_by_blocks, part_of_matrix
from .stablehlo_order import sort_indices
from .stablehlo_text import Block, Lowering, Value

_FUSED_BYTES = 1 << 14  # of a vector: only below this XLA reads the slice of a matrix without copying it


def _top_k(block: Block, node: Node, x: Value) -> Value:
    """A sort of which the first are kept, the form in which XLA finds a top-k, also where zeros differ in
    sign: they are equal here, but not in XLA's order."""
    size, k = x.type.static_shape[-1], node.params["k"]
    flat = block.reshape(x, (x.type.size // size, size))
    zero = block.number(0, flat.type)
    flat = block.select(block.compare("EQ", flat, zero), zero, flat)
    order = sort_indices(block, flat, 1, "GT")
    rows = flat.type.static_shape[0]
    kept = block.call(
        f"stablehlo.slice {order} [0:{rows}, 0:{k}]", (order,), order.type.with_shape((rows, k))
    )
    return block.reshape(kept, node.tensor.static_shape)


def _routed_contraction(block: Block, node: Node, x: Value, weights: Value, index: Value) -> Value:
    axes, dtype = node.params["axes"], x.type.dtype
    x = block.convert(x, "f32" if dtype in ("f16", "bf16") else dtype)
    x = block.reshape(x, (x.type.size // x.type.static_shape[-1], x.type.static_shape[-1]))
    index = block.convert(block.reshape(index, (index.type.size,)), "i32")
    matrices = weights.type.static_shape[0]
    few = 2 * matrices if axes == "nd" else max(matrices // 4, 1)
    multiply = _multiply_by_rows if index.type.size <= few else multiply_by_blocks
    y = multiply(block, node, x, weights, index)
    return block.reshape(block.convert(y, dtype), node.tensor.static_shape)


# ---- few rows ----


def _multiply_by_rows(block: Block, node: Node, x: Value, weights: Value, index: Value) -> Value:
    """[R, d], [E, …, …], [M] → [M, n]: a product of one row with one matrix, M times."""
    axes = node.params["axes"]
    (count,), (rows, d) = index.type.static_shape, x.type.static_shape
    matrices, n = weights.type.static_shape[0], weights.type.static_shape[1 + axes.index("n")]
    bytes_each = x.type.bytes // x.type.size
    most = (_FUSED_BYTES - 1) // bytes_each if axes == "nd" else PART_BYTES // (n * bytes_each)
    width = divisor(d, most)
    parts = d // width
    y = block.number(0, TensorType((count, n), x.type.dtype))

    def step(region: Block, carried: Sequence[Value]) -> list[Value]:
        i, y, x, weights, index = carried
        at, part = divided(region, i, parts)
        start = times(region, part, width)
        chosen = region.reshape(dynamic_slice(region, index, [at], [1]), ())
        row = dynamic_slice(region, x, [divided(region, at, count // rows)[0], start], [1, width])
        product = _product_of_row(region, axes, region.reshape(row, (width,)), weights, chosen, start)
        before = dynamic_slice(region, y, [at, 0], [1, n])
        product = region.reshape(product, (1, n))
        if parts > 1:
            product = region.same("add", before, product)
        product = region.select(
            region.spread(is_inside(region, chosen, matrices), [], (1, n)), product, before
        )
        return [advanced(region, i), dynamic_update(region, y, product, [at, 0]), x, weights, index]

    def going_on(region: Block, carried: Sequence[Value]) -> Value:
        return region.compare("LT", carried[0], region.number(count * parts, COUNTER))

    start = block.number(0, COUNTER)
    return repeat_while(block, node, (start, y, x, weights, index), going_on, step)[1]


def _product_of_row(
    region: Block, axes: str, row: Value, weights: Value, chosen: Value, start: Value
) -> Value:
    """A part of a row [w] times that part of the matrix that it meets: [n]."""
    (width,) = row.type.static_shape
    n = weights.type.static_shape[1 + axes.index("n")]
    at, sizes = ([chosen, 0, start], (n, width)) if axes == "nd" else ([chosen, start, 0], (width, n))
    matrix = part_of_matrix(region, weights, at, sizes, row.type.dtype)  # type: ignore[arg-type]
    if axes == "nd":
        matrix = region.transpose(matrix, (1, 0))  # the form that is fused: see above
    text = f"stablehlo.dot_general {row}, {matrix}, contracting_dims = [0] x [0]"
    return region.call(text, (row, matrix), row.type.with_shape((n,)))


ROUTING: dict[str, Lowering] = {"top_k": _top_k, "routed_contraction": _routed_contraction}
