"""Rows times the matrices of a stack, many rows at once: [R, d], [E, …, …], i32[M] -> [M, n].

The M products are put in the order of their matrices. A loop takes a block of rows that share a matrix, and
a part of the matrix, at each step; it runs as often as there are blocks that hold rows. What is computed from
the indices alone (order, blocks) is the same for all products of a layer, and XLA computes it once.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.graph import Node
from .stablehlo_control import COUNTER, advanced, divided, dynamic_slice, dynamic_update, repeat_while, times
from .stablehlo_order import sort_elements, sort_indices
from .stablehlo_text import Block, Value, mlir_type

PART_BYTES = 1 << 20  # of a matrix, read in one step
_LARGEST_BLOCK = 128  # rows
_SMALLEST_BLOCK = 8


def multiply_by_blocks(block: Block, node: Node, x: Value, weights: Value, index: Value) -> Value:
    """[M, n]: row i of [R, d], or i // (M / R) where rows are shared, times matrix ``index[i]``; zeros where
    there is no such matrix.

    A block may reach into the rows of the next matrix. What it writes there is garbage, which the blocks of
    that matrix overwrite, since they come later.
    """
    axes = node.params["axes"]
    (count,), (rows, d) = index.type.static_shape, x.type.static_shape
    matrices, n = weights.type.static_shape[0], weights.type.static_shape[1 + axes.index("n")]
    height = _height(count, matrices)
    inside = is_inside(block, index, matrices)
    index = block.select(inside, index, block.number(matrices, index.type))  # the last in the order
    place, order = _order(block, index)
    chosen, first, blocks = _blocks(block, index, matrices, height)
    width, parts = _parts(axes, d, n, x.type.bytes // x.type.size)
    x = _with_padding(block, _take_rows(block, x, divided(block, order, count // rows)[0]), height)
    y = block.number(0, x.type.with_shape((count + height, n)))

    def going_on(region: Block, carried: Sequence[Value]) -> Value:
        return region.compare("LT", carried[0], carried[-1])

    def step(region: Block, carried: Sequence[Value]) -> list[Value]:
        i, y, x, weights, chosen, first, end = carried
        at, part = divided(region, i, parts)
        matrix, row = (region.reshape(dynamic_slice(region, t, [at], [1]), ()) for t in (chosen, first))
        multiply = _columns if axes == "nd" else _summands
        y = multiply(region, y, x, weights, (matrix, row, height), (part, width))
        return [advanced(region, i), y, x, weights, chosen, first, end]

    initial = (block.number(0, COUNTER), y, x, weights, chosen, first, times(block, blocks, parts))
    y = repeat_while(block, node, initial, going_on, step)[1]
    result = _take_rows(block, y, place)
    kept = block.spread(inside, [0], (count, n))
    return block.select(kept, result, block.number(0, result.type))


def is_inside(block: Block, index: Value, count: int) -> Value:
    """Where an index is one of 0 … count - 1."""
    reached = block.compare("GE", index, block.number(0, index.type))
    return block.same("and", reached, block.compare("LT", index, block.number(count, index.type)))


def divisor(size: int, most: int) -> int:
    """The largest divisor of ``size`` that is at most ``most``; ``size`` itself where all are far smaller."""
    best = max(part for part in range(1, max(min(size, most), 1) + 1) if size % part == 0)
    return best if 8 * best >= min(size, most) else size


def _height(count: int, matrices: int) -> int:
    """Rows in a block: a power of two, about as many as a matrix gets."""
    height = _SMALLEST_BLOCK
    while height < min(count // matrices, _LARGEST_BLOCK):
        height *= 2
    return height


def _parts(axes: str, d: int, n: int, bytes_each: int) -> tuple[int, int]:
    """How much of a matrix a step reads, along the axis that it is stored by, and in how many steps."""
    if axes == "dn":
        width = divisor(d, PART_BYTES // (n * bytes_each))
    else:  # the last part may overlap the one before
        width = min(max(PART_BYTES // (d * bytes_each), 1), n)
    return width, -(-(d if axes == "dn" else n) // width)


# ---- order ----


def _order(block: Block, index: Value) -> tuple[Value, Value]:
    """i32[M] each: the place of every product in the order of their matrices, and which is at each place."""
    (count,) = index.type.static_shape
    number = block.emit(f"stablehlo.iota dim = 0 : {mlir_type(index.type)}", index.type)
    key = block.same("add", times(block, index, count), number)  # all differ, and say where they were
    order = divided(block, sort_elements(block, key, 0), count)[1]
    return sort_indices(block, order, 0), order


def _blocks(block: Block, index: Value, matrices: int, height: int) -> tuple[Value, Value, Value]:
    """For each block its matrix and its first row, i32[blocks], and how many blocks there are."""
    (count,) = index.type.static_shape
    matrix = _numbers(block, matrices)
    of_row, of_matrix = _crossed(block, matrix, index)
    size = _count(block, block.compare("EQ", of_row, of_matrix))
    start = _count(block, block.compare("LT", of_row, of_matrix))
    full = block.same("add", size, block.number(height - 1, size.type))
    blocks = block.same("divide", full, block.number(height, size.type))
    each, other = _crossed(block, matrix, matrix)
    before = _total(block, block.compare("LT", each, other), _crossed(block, blocks, blocks)[0])
    number = _numbers(block, -(-count // height) + matrices)
    end = block.same("add", before, blocks)
    ended, at = _crossed(block, number, end)
    chosen = _count(block, block.compare("LE", ended, at))
    each, other = _crossed(block, chosen, matrix)
    shift = block.same("subtract", start, times(block, before, height))
    shift = _total(block, block.compare("EQ", each, other), _crossed(block, number, shift)[0])
    first = block.same("add", times(block, number, height), shift)
    return chosen, first, block.reduce(blocks, [0], "add", 0)


def _numbers(block: Block, count: int) -> Value:
    """0, 1, … count - 1."""
    type_ = COUNTER.with_shape((count,))
    return block.emit(f"stablehlo.iota dim = 0 : {mlir_type(type_)}", type_)


def _crossed(block: Block, x: Value, y: Value) -> tuple[Value, Value]:
    """[X], [Y] -> [X, Y] each: y along the last axis, and x along the first."""
    shape = (x.type.size, y.type.size)
    return block.spread(y, [1], shape), block.spread(x, [0], shape)


def _total(block: Block, holds: Value, x: Value) -> Value:
    """The sum of x along the last axis where it holds."""
    return block.reduce(block.select(holds, x, block.number(0, x.type)), [1], "add", 0)


def _count(block: Block, holds: Value) -> Value:
    """How often it holds along the last axis."""
    return block.reduce(block.convert(holds, "i32"), [holds.type.rank - 1], "add", 0)


# ---- rows ----


def _take_rows(block: Block, x: Value, index: Value) -> Value:
    """[R, d], i32[M] -> [M, d]."""
    (count,), (_, d) = index.type.static_shape, x.type.static_shape
    numbers = "offset_dims = [1], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1"
    text = (
        f'"stablehlo.gather"({x}, {index}) <{{dimension_numbers = #stablehlo.gather<{numbers}>, '
        f"slice_sizes = array<i64: 1, {d}>}}>"
    )
    return block.call(text, (x, index), x.type.with_shape((count, d)))


def _with_padding(block: Block, x: Value, height: int) -> Value:
    """The rows with zeros behind them, for the last block to reach into."""
    rows, d = x.type.static_shape
    padding = block.number(0, x.type.with_shape((height, d)))
    type_ = x.type.with_shape((rows + height, d))
    return block.call(f"stablehlo.concatenate {x}, {padding}, dim = 0", (x, padding), type_)


def part_of_matrix(
    block: Block, stack: Value, at: Sequence[Value | int], sizes: tuple[int, int], dtype: str
) -> Value:
    """Part of one matrix of a stack, from ``at`` on, as ``dtype``."""
    if stack.type.dtype == "bf16":
        stack = block.beside(stack, next(start for start in at if isinstance(start, Value)))
    return block.convert(block.reshape(dynamic_slice(block, stack, at, (1, *sizes)), sizes), dtype)


# ---- products ----

Place = tuple[Value, Value, int]  # a block: its matrix, its first row, how many rows
Part = tuple[Value, int]  # of a matrix: which, and how wide


def _columns(region: Block, y: Value, x: Value, weights: Value, place: Place, part: Part) -> Value:
    """A block of rows times some rows of a matrix [n, d]: some columns of the block's result."""
    (matrix, row, height), (number, width) = place, part
    _, n, d = weights.type.static_shape
    last = region.number(n - width, COUNTER)
    start = region.same("minimum", times(region, number, width), last)
    columns = part_of_matrix(region, weights, [matrix, start, 0], (width, d), x.type.dtype)
    rows = dynamic_slice(region, x, [row, 0], [height, d])
    text = f"stablehlo.dot_general {rows}, {columns}, contracting_dims = [1] x [1]"
    product = region.call(text, (rows, columns), x.type.with_shape((height, width)))
    return dynamic_update(region, y, product, [row, start])


def _summands(region: Block, y: Value, x: Value, weights: Value, place: Place, part: Part) -> Value:
    """Some columns of a block times these rows of a matrix [d, n], added to the block's result so far."""
    (matrix, row, height), (number, width) = place, part
    n = weights.type.static_shape[2]
    start = times(region, number, width)
    summands = part_of_matrix(region, weights, [matrix, start, 0], (width, n), x.type.dtype)
    rows = dynamic_slice(region, x, [row, start], [height, width])
    text = f"stablehlo.dot_general {rows}, {summands}, contracting_dims = [1] x [0]"
    product = region.call(text, (rows, summands), x.type.with_shape((height, n)))
    if width == x.type.static_shape[1]:
        return dynamic_update(region, y, product, [row, 0])
    is_first = region.spread(region.compare("EQ", number, region.number(0, COUNTER)), [], (height, n))
    before = dynamic_slice(region, y, [row, 0], [height, n])  # garbage of an earlier block, at first
    before = region.select(is_first, region.number(0, before.type), before)
    return dynamic_update(region, y, region.same("add", before, product), [row, 0])
