"""Programs as JAX functions: they work under ``jit``, ``grad`` and ``vmap``.

There is one row for each op: ``JAX``, keyed by op name. Numbers are those of the op's NumPy semantics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..compiler.program import STATE_PREFIX, Program
from ..ir.graph import Graph, Node
from ..ir.ops.packing import BLOCK, TABLE
from ..ir.ops.program import SCALES
from ..ir.types import DTYPES

Array = Any  # a jax.Array, or a tracer of one
Arrays = Mapping[str, Array]
Function = Callable[[Arrays, Arrays, Arrays], tuple[dict[str, Array], dict[str, Array]]]


def to_jax(program: Program | Graph) -> Function:
    """The function ``(parameters, inputs, states) -> (results, states)`` of a program, in jax.numpy.

    All are dictionaries of arrays by name, states without ``state.``. The function is pure: states that
    are given stay as they are, unless the caller donates them. 64-bit types need ``jax.enable_x64``.
    """
    graph = program.graph if isinstance(program, Program) else program

    def function(
        parameters: Arrays, inputs: Arrays, states: Arrays
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        given = {**parameters, **inputs, **{STATE_PREFIX + name: array for name, array in states.items()}}
        values = evaluate_in_jax(graph, given)
        results = {name: array for name, array in values.items() if not name.startswith(STATE_PREFIX)}
        updated = {name: array for name, array in values.items() if name not in results}
        return results, {name.removeprefix(STATE_PREFIX): array for name, array in updated.items()}

    function.__name__ = graph.name.replace(".", "_")
    return function


def evaluate_in_jax(graph: Graph, given: Arrays) -> dict[str, Array]:
    """The outputs by name, from the values of inputs and parameters by name."""
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op.name in ("input", "parameter"):
            values[node] = jnp.asarray(given[node.name])
        else:
            operands = [values[source] for source in node.sources]
            values[node] = JAX[node.op.name](*operands, **node.params)
    return {name: values[node] for name, node in graph.outputs.items()}


def _given(**params: Any) -> Array:
    raise ValueError("an input or a parameter has no value of its own")


def _floor_divide(x: Array, y: Array) -> Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.floor_divide(x, y)
    return jnp.where(y == 0, 0, jnp.floor_divide(x, jnp.where(y == 0, 1, y)))


def _remainder(x: Array, y: Array) -> Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.remainder(x, y)
    return jnp.where(y == 0, 0, jnp.remainder(x, jnp.where(y == 0, 1, y)))


def _slice(x: Array, *, starts: tuple[int, ...], limits: tuple[int, ...]) -> Array:
    return jax.lax.slice(x, starts, limits)


def _clipped(indices: Array, first: int, last: int) -> Array:
    """The indices as i32 from ``first`` to ``last``; their own type may hold fewer numbers, or more."""
    info = jnp.iinfo(indices.dtype)
    return jnp.clip(indices, max(first, info.min), min(last, info.max)).astype(jnp.int32)


def _take(x: Array, indices: Array, *, axis: int) -> Array:
    return jnp.take(x, _clipped(indices, 0, x.shape[axis] - 1), axis=axis, mode="clip")


def _top_k(x: Array, *, k: int) -> Array:
    # A stable sort and not lax.top_k, which takes -0.0 for less than 0.0.
    return jnp.argsort(-x, axis=-1, stable=True)[..., :k].astype(jnp.int32)


def _routed_contraction(x: Array, weights: Array, index: Array, *, axes: str) -> Array:
    matrices, flat = weights.shape[0], index.reshape(-1)
    flat = jnp.where((flat < 0) | (flat >= matrices), matrices, flat)  # nowhere, which is behind all
    order = jnp.argsort(flat, stable=True)
    rows = x.reshape(-1, x.shape[-1])[order // (flat.size // (x.size // x.shape[-1]))]
    stack = (jnp.swapaxes(weights, 1, 2) if axes == "nd" else weights).astype(x.dtype)
    products = jax.lax.ragged_dot(rows, stack, jnp.bincount(flat, length=matrices).astype(jnp.int32))
    products = jnp.where((flat[order] < matrices)[:, None], products, 0)
    return products[jnp.argsort(order)].reshape(*index.shape, -1).astype(x.dtype)


def _read_rows(x: Array, index: Array) -> Array:
    rows = jnp.arange(x.shape[0])[:, None]
    return x[rows, _clipped(index, 0, x.shape[1] - 1)]


def _write_rows(x: Array, values: Array, index: Array, *, axis: int = 1) -> Array:
    slots = _clipped(index, -1, x.shape[axis])
    slots = jnp.where(slots < 0, x.shape[axis], slots)  # in JAX a negative index counts from the end
    rows = jnp.arange(x.shape[0])[:, None]
    written = jnp.moveaxis(x, axis, 1).at[rows, slots].set(values, mode="drop")
    return jnp.moveaxis(written, 1, axis)


def _cut(x: Array, weights: Array, limit: Array) -> Array:
    order = jnp.argsort(x, axis=-1, stable=True)
    ordered, weight = (jnp.take_along_axis(part, order, axis=-1) for part in (x, weights))
    is_allowed = jnp.cumsum(weight, axis=-1) - weight <= limit[..., None]
    return jnp.max(jnp.where(is_allowed, ordered, ordered[..., :1]), axis=-1)


def _join_at(join: str, x: Array, indices: Array, values: Array) -> Array:
    size, flat = x.shape[-1], x.reshape(-1, x.shape[-1])
    places = _clipped(indices, -1, size).reshape(flat.shape[0], -1)
    places = jnp.where(places < 0, size, places)  # in JAX a negative index counts from the end
    rows = jnp.arange(flat.shape[0])[:, None]
    joined = getattr(flat.at[rows, places], join)(values.reshape(places.shape), mode="drop")
    return joined.reshape(x.shape)


def _linear_scan(decay: Array, inflow: Array, start: Array, *, join: str = "add") -> Array:
    joined, scaled = JAX[join], JAX[SCALES[join]]

    def compose(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return scaled(then[0], first[0]), joined(scaled(then[0], first[1]), then[1])

    inflow = inflow.at[:, 0].set(joined(inflow[:, 0], scaled(decay[:, 0], start)))
    return jax.lax.associative_scan(compose, (decay, inflow), axis=1)[1]


def _loop(
    *arrays: Array, body: Graph, carries: int, scanned: int, length: int, early: bool = False
) -> tuple[Array, ...]:
    names = [node.name for node in body.inputs]
    unchanged = arrays[carries + scanned :]
    over_time = [jnp.moveaxis(array, 1, 0) for array in arrays[carries : carries + scanned]]

    def step(carried: list[Array], position: list[Array]) -> tuple[list[Array], list[Array]]:
        seen = [array[:, None] for array in position]
        given = dict(zip(names, [*carried, *seen, *unchanged], strict=True))
        results = list(evaluate_in_jax(body, given).values())
        return results[:carries], [array[:, 0] for array in results[carries:]]

    def step_unless_over(carried: Any, position: list[Array]) -> tuple[Any, list[Array]]:
        going_on, values = carried
        after, parts = step(values, position)
        kept = [jnp.where(going_on, new, old) for new, old in zip(after, values, strict=True)]
        return (going_on & after[0], kept), [
            jnp.where(going_on, part, 0).astype(part.dtype) for part in parts
        ]

    carried: Any
    if early:  # a scan and not a while, which has no gradient
        initial = (jnp.asarray(True), list(arrays[:carries]))
        (_, carried), joined = jax.lax.scan(step_unless_over, initial, over_time, length=length)
    else:
        carried, joined = jax.lax.scan(step, list(arrays[:carries]), over_time, length=length)
    return (*carried, *(jnp.moveaxis(array, 0, 1) for array in joined))


def _unpack(rows: Array, places: Array, values: Array) -> Array:
    lower = values.dtype.itemsize - 1
    blocks = rows[:, TABLE:].reshape(len(rows), -1, BLOCK * lower + BLOCK // 2)
    halves = blocks[..., BLOCK * lower :]
    codes = jnp.concatenate([halves & 15, halves >> 4], axis=-1).reshape(len(rows), -1)
    upper = jnp.take_along_axis(rows[:, :TABLE], codes.astype(jnp.int32), axis=1)
    low = blocks[..., : BLOCK * lower].reshape(*upper.shape, lower)
    whole = jax.lax.bitcast_convert_type(jnp.concatenate([low, upper[..., None]], axis=-1), values.dtype)
    return whole.reshape(-1).at[places].add(values, mode="drop").reshape(upper.shape)


JAX: dict[str, Callable[..., Any]] = {
    "input": _given,
    "parameter": _given,
    "constant": lambda value: jnp.asarray(value),
    "arange": lambda size, dtype="i32": jnp.arange(size, dtype=DTYPES[dtype]),
    "negative": jnp.negative,
    "absolute": jnp.absolute,
    "exp": jnp.exp,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "erf": jax.lax.erf,
    "floor": jnp.floor,
    "logical_not": jnp.logical_not,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "add": jnp.add,
    "subtract": jnp.subtract,
    "multiply": jnp.multiply,
    "divide": jnp.divide,
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "power": jnp.power,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "equal": jnp.equal,
    "not_equal": jnp.not_equal,
    "less": jnp.less,
    "less_equal": jnp.less_equal,
    "greater": jnp.greater,
    "greater_equal": jnp.greater_equal,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
    "shift_left": jnp.left_shift,
    "shift_right": jnp.right_shift,
    "where": jnp.where,
    "cast": lambda x, dtype: x.astype(DTYPES[dtype]),
    "bitcast": lambda x, dtype: jax.lax.bitcast_convert_type(x, DTYPES[dtype]),
    "reshape": lambda x, shape: jnp.reshape(x, shape),
    "transpose": lambda x, permutation: jnp.transpose(x, permutation),
    "broadcast_to": lambda x, shape: jnp.broadcast_to(x, shape),
    "concatenate": lambda *arrays, axis: jnp.concatenate(arrays, axis=axis),
    "slice": _slice,
    "contraction": lambda x, y, subscripts: jnp.einsum(subscripts, x, y),
    "sum": lambda x, axes: jnp.sum(x, axis=axes, dtype=x.dtype),
    "max": lambda x, axes: jnp.max(x, axis=axes),
    "min": lambda x, axes: jnp.min(x, axis=axes),
    "argmax": lambda x, axis: jnp.argmax(x, axis=axis).astype(jnp.int32),
    "softmax": lambda x, axis: jax.nn.softmax(x, axis=axis),
    "cumulative_sum": lambda x, axis: jnp.cumsum(x, axis=axis, dtype=x.dtype),
    "sort": lambda x, axis: jnp.sort(x, axis=axis),
    "argsort": lambda x, axis: jnp.argsort(x, axis=axis, stable=True).astype(jnp.int32),
    "cut": _cut,
    "add_at": partial(_join_at, "add"),
    "max_at": partial(_join_at, "max"),
    "take": _take,
    "unpack": _unpack,
    "top_k": _top_k,
    "routed_contraction": _routed_contraction,
    "read_rows": _read_rows,
    "write_rows": _write_rows,
    "linear_scan": _linear_scan,
    "loop": _loop,
    "part": lambda x, index: x[index],
}
