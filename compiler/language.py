"""The functions of the modelling language: what a traced function may call.

They mirror NumPy for one value, plus five that read time: ``position``, ``history``, ``delay``,
``whole`` and ``feedback``.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any

from ..ir.graph import make_node
from ..ir.ops import OPS
from ..ir.types import MAIN, Dim, Shape, Size, TensorType, is_ragged
from .recording import OpenFeedback, current_trace, user_location
from .stream import Feedback, Stream, as_node, emit, fail, reshape, shape_argument

# ---- where values come from ----


def parameter(name: str, shape: Sequence[Dim | str], dtype: str = "f32") -> Stream:
    """A weight; a name that is used twice is the same weight. A string in the shape is an open size."""
    sizes = tuple(Size(dim) if isinstance(dim, str) else dim for dim in shape)
    type_ = TensorType(sizes, dtype)
    known = current_trace().parameters
    if name not in known:
        known[name] = make_node(OPS["parameter"], (), {"type": type_}, name=name, location=user_location())
    if known[name].type != type_:
        raise fail(f"parameter {name} is {known[name].type} and cannot also be {type_}")
    return Stream(known[name])


def constant(value: Any, dtype: str | None = None) -> Stream:
    """A value known now: a number, a list or a NumPy array."""
    stream = value if isinstance(value, Stream) else Stream(as_node(value, dtype))
    return stream.cast(dtype) if dtype else stream


def arange(size: int) -> Stream:
    """0, 1, … size - 1 as i32."""
    return emit("arange", size=size)


def zeros(shape: Shape, dtype: str = "f32") -> Stream:
    """A constant of zeros; pass it to ``delay`` or ``feedback`` as the value before the start."""
    return broadcast_to(constant(0.0 if dtype.startswith(("f", "b")) else 0).cast(dtype), shape)


def position(clock: str = MAIN) -> Stream:
    """t, as i32: how many values of ``clock`` came before this one."""
    return emit("position", clock=clock)


def history(x: Stream, window: int | None = None) -> Stream:
    """The values of ``x`` up to now, oldest first: [past, …]. With ``window``, only the last ones."""
    _require_stream(x, "history")
    return emit("history", x, window=window, clock=x.node.clock)


def delay(x: Stream, steps: int = 1, initial: Any = 0) -> Stream:
    """The value of ``x`` ``steps`` positions ago, and ``initial`` before the start."""
    _require_stream(x, "delay")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise fail(f"delay reads {steps!r} steps back; a non-causal read is possible only through whole()")
    if steps == 0:
        return x
    return emit("delay", x, _filled(initial, x), steps=steps)


def whole(x: Stream) -> Stream:
    """The values of ``x`` at every position of its clock, past and future: [whole, …]."""
    _require_stream(x, "whole")
    return emit("whole", x, clock=x.node.clock)


def feedback(initial: Any, clock: str = MAIN) -> Feedback:
    """The value that a stream had at t-1; call ``.close(stream)`` to say which stream."""
    opened = OpenFeedback(emit("feedback", constant(initial), clock=clock).node, user_location())
    current_trace().feedback.append(opened)
    return Feedback(opened)


def _require_stream(x: Any, name: str) -> None:
    if not isinstance(x, Stream) or x.node.clock is None:
        raise fail(f"{name} needs a value that changes over time, not {x!r}")


def _filled(value: Any, like: Stream) -> Stream:
    stream = constant(value).cast(like.dtype) if not isinstance(value, Stream) else value
    return stream if stream.shape == like.shape else broadcast_to(stream, like.shape)


# ---- elementwise ----


def exp(x: Stream) -> Stream:
    return emit("exp", x)


def log(x: Stream) -> Stream:
    return emit("log", x)


def log1p(x: Stream) -> Stream:
    return emit("log1p", x)


def sqrt(x: Stream) -> Stream:
    return emit("sqrt", x)


def rsqrt(x: Stream) -> Stream:
    return emit("rsqrt", x)


def tanh(x: Stream) -> Stream:
    return emit("tanh", x)


def sigmoid(x: Stream) -> Stream:
    return emit("sigmoid", x)


def sin(x: Stream) -> Stream:
    return emit("sin", x)


def cos(x: Stream) -> Stream:
    return emit("cos", x)


def erf(x: Stream) -> Stream:
    return emit("erf", x)


def floor(x: Stream) -> Stream:
    return emit("floor", x)


def absolute(x: Stream) -> Stream:
    return emit("absolute", x)


def maximum(x: Any, y: Any) -> Stream:
    return emit("maximum", x, y)


def minimum(x: Any, y: Any) -> Stream:
    return emit("minimum", x, y)


def where(condition: Stream, x: Any, y: Any) -> Stream:
    """``x`` where the condition holds, else ``y``."""
    dtype = next((o.dtype for o in (x, y) if isinstance(o, Stream)), None)
    return emit("where", condition, Stream(as_node(x, dtype)), Stream(as_node(y, dtype)))


def cast(x: Stream, dtype: str) -> Stream:
    return x.cast(dtype)


# ---- bits ----


def bitwise_and(x: Any, y: Any) -> Stream:
    return emit("bitwise_and", x, y)


def bitwise_or(x: Any, y: Any) -> Stream:
    return emit("bitwise_or", x, y)


def bitwise_xor(x: Any, y: Any) -> Stream:
    return emit("bitwise_xor", x, y)


def shift_left(x: Any, bits: Any) -> Stream:
    """``x`` times 2 to the power ``bits``; what does not fit is cut off."""
    return emit("shift_left", x, bits)


def shift_right(x: Any, bits: Any) -> Stream:
    """``x`` divided by 2 to the power ``bits``, rounded down."""
    return emit("shift_right", x, bits)


# ---- shapes ----


def transpose(x: Stream, *permutation: int) -> Stream:
    """Reorders the axes; without arguments, reverses them."""
    order = shape_argument(permutation) or tuple(reversed(range(x.ndim)))
    return emit("transpose", x, permutation=tuple(axis % x.ndim for axis in order))


def broadcast_to(x: Stream, shape: Shape) -> Stream:
    return x if tuple(shape) == x.shape else emit("broadcast_to", x, shape=tuple(shape))


def concatenate(streams: Sequence[Any], axis: int = 0) -> Stream:
    """Joins streams along an axis."""
    nodes = [Stream(as_node(s)) for s in streams]
    return emit("concatenate", *nodes, axis=_axis(nodes[0], axis))


def stack(streams: Sequence[Stream], axis: int = 0) -> Stream:
    """Joins streams of the same type along a new axis."""
    axis = axis % (streams[0].ndim + 1)
    return concatenate([reshape(s, *s.shape[:axis], 1, *s.shape[axis:]) for s in streams], axis)


def split(x: Stream, sizes: Sequence[int], axis: int = -1) -> list[Stream]:
    """Cuts a stream into parts of the given sizes along an axis."""
    axis = _axis(x, axis)
    if builtins.sum(sizes) != x.shape[axis]:
        raise fail(f"parts of {list(sizes)} do not add up to axis {axis} of {x.node.type}")
    parts, start = [], 0
    for size in sizes:
        parts.append(_slice_axis(x, axis, start, start + size))
        start += size
    return parts


def _axis(x: Stream, axis: int) -> int:
    if not -x.ndim <= axis < x.ndim:
        raise fail(f"{x.node.type} has no axis {axis}")
    return axis % x.ndim


def _slice_axis(x: Stream, axis: int, start: int, limit: int) -> Stream:
    starts = [0] * x.ndim
    limits = [dim if isinstance(dim, int) else -1 for dim in x.shape]
    starts[axis], limits[axis] = start, limit
    return emit("slice", x, starts=tuple(starts), limits=tuple(limits))


# ---- algebra ----


def einsum(subscripts: str, *operands: Any) -> Stream:
    """The sum over every letter that the result does not name; operands are combined left to right."""
    text = subscripts.replace(" ", "")
    inputs, arrow, result = text.partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) != len(operands):
        raise fail(f"subscripts {subscripts!r} do not name {len(operands)} operands and a result")
    streams = [Stream(as_node(operand)) for operand in operands]
    if len(streams) == 1:
        return _einsum_one(streams[0], terms[0], result)
    total, letters = streams[0], terms[0]
    for i, (stream, term) in enumerate(zip(streams[1:], terms[1:], strict=True), start=1):
        later = set(result).union(*terms[i + 1 :])
        kept = (
            result if i == len(terms) - 1 else "".join(dict.fromkeys(c for c in letters + term if c in later))
        )
        total = emit("contraction", total, stream, subscripts=f"{letters},{term}->{kept}")
        letters = kept
    return total


def _einsum_one(x: Stream, term: str, result: str) -> Stream:
    if len(term) != x.ndim or len(set(term)) != len(term) or not set(result) <= set(term):
        raise fail(f"'{term}->{result}' does not name the axes of {x.node.type}, each once")
    dropped = tuple(i for i, letter in enumerate(term) if letter not in result)
    kept = [letter for letter in term if letter in result]
    reduced = emit("sum", x, axes=dropped) if dropped else x
    order = tuple(kept.index(letter) for letter in result)
    return reduced if order == tuple(range(len(order))) else transpose(reduced, *order)


def _axes(x: Stream, axis: int | Sequence[int] | None) -> tuple[int, ...]:
    chosen = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    return tuple(_axis(x, a) for a in chosen)


def _reduce(name: str, x: Stream, axis: int | Sequence[int] | None, keepdims: bool) -> Stream:
    axes = _axes(x, axis)
    result = emit(name, x, axes=axes)
    if keepdims:
        return reshape(result, *(1 if i in axes else dim for i, dim in enumerate(x.shape)))
    return result


def sum(x: Stream, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Stream:
    return _reduce("sum", x, axis, keepdims)


def max(x: Stream, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Stream:
    return _reduce("max", x, axis, keepdims)


def min(x: Stream, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Stream:
    return _reduce("min", x, axis, keepdims)


def mean(x: Stream, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Stream:
    """The mean; along a part of time, the sum divided by how many positions there are."""
    axes = _axes(x, axis)
    total = _reduce("sum", x, axis, keepdims)
    if not any(is_ragged(x.shape[a]) for a in axes):
        return total * (1.0 / math.prod(x.shape[a] for a in axes))  # type: ignore[misc]
    ones = broadcast_to(constant(1.0, x.dtype), x.shape)
    return total / _reduce("sum", ones, axis, keepdims)


def argmax(x: Stream, axis: int = -1) -> Stream:
    return emit("argmax", x, axis=_axis(x, axis))


def top_k(x: Stream, k: int) -> tuple[Stream, Stream]:
    """The ``k`` largest elements along the last axis, largest first, and their indices there (i32).

    Of equal elements the one with the lower index comes first.
    """
    indices = emit("top_k", x, k=k)
    if x.ndim == 1:
        return take(x, indices), indices
    rows = math.prod(x.shape[:-1])  # type: ignore[arg-type]
    starts = reshape(arange(rows) * x.shape[-1], *x.shape[:-1], 1)
    return take(reshape(x, -1), indices + starts), indices


def softmax(x: Stream, axis: int = -1) -> Stream:
    """exp(x) normalised to sum 1 along an axis."""
    return emit("softmax", x, axis=_axis(x, axis))


def cumulative_sum(x: Stream, axis: int = -1) -> Stream:
    return emit("cumulative_sum", x, axis=_axis(x, axis))


def sort(x: Stream, axis: int = -1) -> Stream:
    """The elements along an axis, smallest first."""
    return emit("sort", x, axis=_axis(x, axis))


def argsort(x: Stream, axis: int = -1) -> Stream:
    """The indices of the elements along an axis, smallest element first, equal ones in their order."""
    return emit("argsort", x, axis=_axis(x, axis))


def cut(x: Stream, weights: Any, limit: Any) -> Stream:
    """The largest element along the last axis such that the ``weights`` of all smaller ones sum to at most
    ``limit``: the tenth best is ``cut(x, ones, size - 10)``."""
    weight = Stream(as_node(weights))
    return emit("cut", x, broadcast_to(weight, x.shape), Stream(as_node(limit, weight.dtype)))


def add_at(x: Any, indices: Any, values: Any) -> Stream:
    """``x`` with ``values`` added at ``indices`` of its last axis; an index outside is dropped.

    Indices may be a part of time: ``add_at(zeros, history(token), ones)`` counts the tokens so far.
    """
    return _join_at("add_at", x, indices, values)


def max_at(x: Any, indices: Any, values: Any) -> Stream:
    """``x`` with each element at an index raised to the largest of its ``values``; see ``add_at``."""
    return _join_at("max_at", x, indices, values)


def _join_at(name: str, x: Any, indices: Any, values: Any) -> Stream:
    like = Stream(as_node(x))
    return emit(name, like, Stream(as_node(indices)), Stream(as_node(values, like.dtype)))


def take(x: Any, indices: Any, axis: int = 0) -> Stream:
    """The elements at ``indices`` along an axis: an embedding is ``take(table, token)``."""
    table = Stream(as_node(x))
    return emit("take", table, Stream(as_node(indices)), axis=_axis(table, axis))
