"""StableHLO lowerings of the ops that move elements or read many of them for one, by name."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.graph import Node
from ..ir.ops.linear import letter_sizes, split_subscripts
from ..ir.types import TensorType
from .stablehlo_text import Block, Lowering, Value, highest, lowest, mlir_type

# ---- shapes ----


def _reshape(block: Block, node: Node, x: Value) -> Value:
    return block.reshape(x, node.tensor.static_shape)


def _transpose(block: Block, node: Node, x: Value) -> Value:
    return block.transpose(x, node.params["permutation"])


def _broadcast_to(block: Block, node: Node, x: Value) -> Value:
    return block.broadcast(x, node.tensor.static_shape)


def _concatenate(block: Block, node: Node, *arrays: Value) -> Value:
    names = ", ".join(array.name for array in arrays)
    return block.call(f"stablehlo.concatenate {names}, dim = {node.params['axis']}", arrays, node.tensor)


def _slice(block: Block, node: Node, x: Value) -> Value:
    bounds = zip(node.params["starts"], node.params["limits"], strict=True)
    text = ", ".join(f"{start}:{limit}" for start, limit in bounds)
    return block.call(f"stablehlo.slice {x} [{text}]", (x,), node.tensor)


# ---- contraction and reductions ----


def _contraction(block: Block, node: Node, x: Value, y: Value) -> Value:
    x_term, y_term, result = split_subscripts(node.params["subscripts"])
    sizes = letter_sizes(node.params["subscripts"], x.type, y.type)
    x, x_term = _without_lonely(block, x, x_term, y_term + result)
    y, y_term = _without_lonely(block, y, y_term, x_term + result)
    batch = [letter for letter in result if letter in x_term and letter in y_term]
    summed = [letter for letter in x_term if letter in y_term and letter not in result]
    # XLA's CPU backend copies the second operand of a batched product into another layout if it is summed
    # over its last axis. As the first operand it is read as it is, and only the result is transposed.
    if batch and y_term[-1:] in summed and y.type.size > node.tensor.size:
        x, y, x_term, y_term = y, x, y_term, x_term
    free = [*(c for c in x_term if c not in y_term), *(c for c in y_term if c not in x_term)]
    order = [*batch, *free]
    dimensions = [
        f"{[x_term.index(c) for c in letters]} x {[y_term.index(c) for c in letters]}"
        for letters in (batch, summed)
    ]
    batching = f"batching_dims = {dimensions[0]}, " if batch else ""
    text = f"stablehlo.dot_general {x}, {y}, {batching}contracting_dims = {dimensions[1]}"
    product = block.call(text, (x, y), x.type.with_shape(tuple(sizes[c] for c in order)))
    return block.transpose(product, [order.index(c) for c in result])


def _without_lonely(block: Block, x: Value, term: str, elsewhere: str) -> tuple[Value, str]:
    """``x`` summed over the letters that occur nowhere else, and its remaining letters."""
    axes = [axis for axis, letter in enumerate(term) if letter not in elsewhere]
    return block.reduce(x, axes, "add", 0), "".join(c for c in term if c in elsewhere)


def _sum(block: Block, node: Node, x: Value) -> Value:
    return block.reduce(x, node.params["axes"], "add", 0)


def _max(block: Block, node: Node, x: Value) -> Value:
    return block.reduce(x, node.params["axes"], "maximum", lowest(x.type.dtype))


def _min(block: Block, node: Node, x: Value) -> Value:
    return block.reduce(x, node.params["axes"], "minimum", highest(x.type.dtype))


def _spread_back(block: Block, reduced: Value, axis: int, like: Value) -> Value:
    """A value that lost ``axis``, repeated along it again."""
    rest = [i for i in range(like.type.rank) if i != axis]
    return block.spread(reduced, rest, like.type.static_shape)


def _argmax(block: Block, node: Node, x: Value) -> Value:
    # The first index at which the maximum stands: two plain reductions, which vectorise.
    axis, dtype = node.params["axis"], x.type.dtype
    start = False if dtype == "bool" else lowest(dtype)
    largest = block.reduce(x, [axis], "maximum", start)
    found = block.compare("EQ", x, _spread_back(block, largest, axis, x))
    type_ = x.type.with_dtype("i32")
    index = block.emit(f"stablehlo.iota dim = {axis} : {mlir_type(type_)}", type_)
    last = block.number(x.type.static_shape[axis] - 1, type_)
    return block.reduce(block.select(found, index, last), [axis], "minimum", highest("i32"))


def _softmax(block: Block, node: Node, x: Value) -> Value:
    axis = node.params["axis"]
    largest = block.reduce(x, [axis], "maximum", lowest(x.type.dtype))
    shifted = block.same("subtract", x, _spread_back(block, largest, axis, x))
    powers = block.same("exponential", shifted)
    total = block.reduce(powers, [axis], "add", 0)
    return block.same("divide", powers, _spread_back(block, total, axis, x))


def _cumulative_sum(block: Block, node: Node, x: Value) -> Value:
    # Adding the sums that end 1, 2, 4 … positions earlier doubles what each sum covers.
    axis, shape = node.params["axis"], x.type.static_shape
    zero = block.number(0, TensorType((), x.type.dtype))
    total, distance = x, 1
    while distance < shape[axis]:
        low = [distance if i == axis else 0 for i in range(len(shape))]
        high = [-distance if i == axis else 0 for i in range(len(shape))]
        inner = [0] * len(shape)
        text = f"stablehlo.pad {total}, {zero}, low = {low}, high = {high}, interior = {inner}"
        earlier = block.call(text, (total, zero), x.type)
        total = block.same("add", total, earlier)
        distance *= 2
    return total


# ---- gathers and scatters ----


def _take(block: Block, node: Node, x: Value, indices: Value) -> Value:
    axis, shape, rank = node.params["axis"], x.type.static_shape, indices.type.rank
    kept = [i if i < axis else i + rank - 1 for i in range(len(shape)) if i != axis]
    numbers = (
        f"offset_dims = {kept}, collapsed_slice_dims = [{axis}], start_index_map = [{axis}], "
        f"index_vector_dim = {rank}"
    )
    return _gather(block, node, x, indices, numbers, [1 if i == axis else d for i, d in enumerate(shape)])


def _read_rows(block: Block, node: Node, x: Value, index: Value) -> Value:
    numbers = (
        f"offset_dims = {list(range(2, x.type.rank))}, collapsed_slice_dims = [1], "
        "operand_batching_dims = [0], start_indices_batching_dims = [0], "
        "start_index_map = [1], index_vector_dim = 2"
    )
    return _gather(block, node, x, index, numbers, [1, 1, *x.type.static_shape[2:]])


def _gather(block: Block, node: Node, x: Value, index: Value, numbers: str, sizes: Sequence[int]) -> Value:
    """A gather, which by definition moves indices outside to the nearest inside."""
    if x.type.dtype == "bf16":
        x = block.beside(x, index)
    text = (
        f'"stablehlo.gather"({x}, {index}) <{{dimension_numbers = #stablehlo.gather<{numbers}>, '
        f"slice_sizes = array<i64: {', '.join(map(str, sizes))}>}}>"
    )
    return block.call(text, (x, index), node.tensor)


def _write_rows(block: Block, node: Node, x: Value, values: Value, index: Value) -> Value:
    """A scatter, which by definition drops what lies outside.

    XLA does it in place if the axes before the slots are batching axes, so the index is repeated for them.
    """
    axis, rank = node.params.get("axis", 1), x.type.rank
    before = list(range(axis))
    values = block.transpose(values, [0, *range(2, axis + 1), 1, *range(axis + 1, rank)])
    shape = (*values.type.static_shape[: axis + 1], 1)
    index = block.spread(index, [0, axis], shape)
    scalar = mlir_type(TensorType((), x.type.dtype))
    old, new = (block.names.numbered(name) for name in ("%old", "%new"))
    text = (
        f'"stablehlo.scatter"({x}, {index}, {values}) <{{scatter_dimension_numbers = #stablehlo.scatter<'
        f"update_window_dims = {list(range(axis + 1, rank))}, inserted_window_dims = [{axis}], "
        f"input_batching_dims = {before}, scatter_indices_batching_dims = {before}, "
        f"scatter_dims_to_operand_dims = [{axis}], index_vector_dim = {axis + 1}>}}> "
        f"({{ ^block({old}: {scalar}, {new}: {scalar}): stablehlo.return {new} : {scalar} }})"
    )
    return block.call(text, (x, index, values), node.tensor)


LINEAR: dict[str, Lowering] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_to": _broadcast_to,
    "concatenate": _concatenate,
    "slice": _slice,
    "contraction": _contraction,
    "sum": _sum,
    "max": _max,
    "min": _min,
    "argmax": _argmax,
    "softmax": _softmax,
    "cumulative_sum": _cumulative_sum,
    "take": _take,
    "read_rows": _read_rows,
    "write_rows": _write_rows,
}
