"""Streams: what stands for a value while a function is traced. Each operation on one makes a node."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from ..ir.errors import GraphError
from ..ir.graph import Node, make_node
from ..ir.ops import OPS
from ..ir.types import DTYPES, FLOATS, Dim, Shape, dtype_name
from .recording import OpenFeedback, current_trace, user_location


def emit(op_name: str, *operands: Any, **params: Any) -> Stream:
    """A stream made by one op. Numbers and arrays among the operands become constants."""
    dtype = next((o.dtype for o in operands if isinstance(o, Stream) and o.dtype != "bool"), None)
    nodes = [as_node(operand, dtype) for operand in operands]
    running = current_trace()
    return Stream(
        make_node(OPS[op_name], nodes, params, scope=".".join(running.scopes), location=user_location())
    )


def as_node(value: Any, dtype: str | None = None) -> Node:
    """The node of a stream, or a constant; a Python number takes ``dtype`` where it fits."""
    if isinstance(value, Stream):
        return value.node
    if isinstance(value, bool):
        array = np.array(value)
    elif isinstance(value, (int, float)):
        fits = dtype is not None and (isinstance(value, int) or dtype in FLOATS)
        default = "f32" if isinstance(value, float) else "i32"
        array = np.array(value, DTYPES[dtype if fits and dtype else default])
    elif isinstance(value, (np.ndarray, np.generic, list, tuple)):
        array = np.array(value)
        if array.dtype == np.float64 and not isinstance(value, (np.ndarray, np.generic)):
            array = array.astype(np.float32)
    else:
        raise GraphError(f"{value!r} is neither a stream, a number nor an array", user_location())
    array.setflags(write=False)
    try:
        dtype_name(array.dtype)
    except TypeError as error:
        raise GraphError(str(error), user_location()) from None
    return make_node(OPS["constant"], (), {"value": array}, location=user_location())


class Stream:
    """One value per position, while a function is traced. Behaves like a NumPy array of one value."""

    __slots__ = ("node",)
    __array_ufunc__ = None  # so that ``array * stream`` reaches Stream.__rmul__

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def shape(self) -> Shape:
        return self.node.tensor.shape

    @property
    def dtype(self) -> str:
        return self.node.tensor.dtype

    @property
    def ndim(self) -> int:
        return self.node.tensor.rank

    def __repr__(self) -> str:
        return f"Stream({self.node.type})"

    def named(self, label: str) -> Stream:
        """The same stream under a name of its own in dumps, programs and profiles.

        Inputs, weights and feedbacks keep the names that they have.
        """
        if self.node.op.name in ("input", "parameter", "feedback"):
            return self
        full = ".".join([*current_trace().scopes, label])
        return Stream(replace(self.node, name=full))

    def __neg__(self) -> Stream:
        return emit("negative", self)

    def __abs__(self) -> Stream:
        return emit("absolute", self)

    def __invert__(self) -> Stream:
        return emit("logical_not", self)

    def __add__(self, other: Any) -> Stream:
        return emit("add", self, other)

    def __radd__(self, other: Any) -> Stream:
        return emit("add", other, self)

    def __sub__(self, other: Any) -> Stream:
        return emit("subtract", self, other)

    def __rsub__(self, other: Any) -> Stream:
        return emit("subtract", other, self)

    def __mul__(self, other: Any) -> Stream:
        return emit("multiply", self, other)

    def __rmul__(self, other: Any) -> Stream:
        return emit("multiply", other, self)

    def __truediv__(self, other: Any) -> Stream:
        return emit("divide", self, other)

    def __rtruediv__(self, other: Any) -> Stream:
        return emit("divide", other, self)

    def __floordiv__(self, other: Any) -> Stream:
        return emit("floor_divide", self, other)

    def __mod__(self, other: Any) -> Stream:
        return emit("remainder", self, other)

    def __pow__(self, other: Any) -> Stream:
        if isinstance(other, int) and other == 2:
            return emit("multiply", self, self)
        return emit("power", self, other)

    def __rpow__(self, other: Any) -> Stream:
        return emit("power", other, self)

    def __and__(self, other: Any) -> Stream:
        return emit("logical_and", self, other)

    def __or__(self, other: Any) -> Stream:
        return emit("logical_or", self, other)

    def __eq__(self, other: Any) -> Stream:  # type: ignore[override]
        return emit("equal", self, other)

    def __ne__(self, other: Any) -> Stream:  # type: ignore[override]
        return emit("not_equal", self, other)

    def __lt__(self, other: Any) -> Stream:
        return emit("less", self, other)

    def __le__(self, other: Any) -> Stream:
        return emit("less_equal", self, other)

    def __gt__(self, other: Any) -> Stream:
        return emit("greater", self, other)

    def __ge__(self, other: Any) -> Stream:
        return emit("greater_equal", self, other)

    __hash__ = object.__hash__

    def __matmul__(self, other: Any) -> Stream:
        return matmul(self, other)

    def __getitem__(self, index: Any) -> Stream:
        return index_stream(self, index)

    def cast(self, dtype: str) -> Stream:
        return self if dtype == self.dtype else emit("cast", self, dtype=dtype)

    def reshape(self, *shape: Any) -> Stream:
        return reshape(self, *shape)

    def _refuse(self, use: str) -> NoReturn:
        raise GraphError(
            f"a stream of {self.node.type} has no value while it is traced, so it cannot be {use}; "
            "use where() to choose by value",
            user_location(),
        )

    def __bool__(self) -> bool:
        self._refuse("tested by if, while, and, or, not")

    def __float__(self) -> float:
        self._refuse("read as a number")

    def __int__(self) -> int:
        self._refuse("read as a number")

    def __index__(self) -> int:
        self._refuse("used as a Python index")

    def __len__(self) -> int:
        self._refuse("measured by len(); see .shape")

    def __iter__(self) -> Iterator[Stream]:
        self._refuse("iterated; index it or use split()")

    def __array__(self, *arguments: Any, **keywords: Any) -> Any:
        self._refuse("given to a NumPy function")


class Feedback(Stream):
    """The value that a stream had at the position before; ``close`` says which stream."""

    __slots__ = ("opened",)

    def __init__(self, opened: OpenFeedback) -> None:
        super().__init__(opened.node)
        self.opened = opened

    def close(self, value: Stream) -> Stream:
        """Says which stream this is the previous value of, and returns that stream."""
        node = as_node(value, self.dtype)
        if self.opened.value is not None:
            raise fail("this feedback is closed already")
        if node.type != self.node.type:
            raise fail(f"a feedback of {self.node.type} cannot carry {node.type}")
        if node.clock not in (self.node.clock, None):
            raise fail(f"a feedback of clock {self.node.clock} cannot carry one of {node.clock}")
        self.opened.value = node
        return value


def fail(message: str) -> GraphError:
    """The error for a mistake on the user's current line."""
    return GraphError(message, user_location())


def shape_argument(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """A shape that was given as numbers or as one tuple."""
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape


def reshape(x: Stream, *shape: Any) -> Stream:
    """The same elements in another shape; one dimension may be -1."""
    target = list(shape_argument(shape))
    if target.count(-1) == 1:
        known = math.prod(d for d in target if isinstance(d, int) and d != -1)
        total = math.prod(d for d in x.shape if isinstance(d, int))
        if not known or total % known:
            raise fail(f"{x.node.type} cannot be reshaped to {target}")
        target[target.index(-1)] = total // known
    return x if tuple(target) == x.shape else emit("reshape", x, shape=tuple(target))


def index_stream(x: Stream, index: Any) -> Stream:
    """``x[index]`` with numbers, slices without a step, ``None``, ``...``, or one integer stream."""
    if isinstance(index, Stream):
        return emit("take", x, index, axis=0)
    entries = list(index) if isinstance(index, tuple) else [index]
    used = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if used > x.ndim:
        raise fail(f"{x.node.type} has fewer axes than the index {index!r}")
    at = entries.index(Ellipsis) if Ellipsis in entries else len(entries)
    entries[at : at + 1] = [slice(None)] * (x.ndim - used)
    starts, limits, axis = [], [], 0
    shape: list[Dim] = []
    for entry in entries:
        if entry is None:
            shape.append(1)
            continue
        dim = x.shape[axis]
        start, limit, kept = _resolve_entry(x, axis, dim, entry)
        starts.append(start)
        limits.append(limit)
        if kept is not None:
            shape.append(kept)
        axis += 1
    whole_axes = all(s == 0 and lim in (-1, d) for s, lim, d in zip(starts, limits, x.shape, strict=True))
    part = x if whole_axes else emit("slice", x, starts=tuple(starts), limits=tuple(limits))
    return reshape(part, *shape)


def _resolve_entry(x: Stream, axis: int, dim: Dim, entry: Any) -> tuple[int, int, Dim | None]:
    """Start, limit and remaining dimension (None if it disappears) of one part of an index."""
    if entry == slice(None) if isinstance(entry, slice) else False:
        return 0, dim if isinstance(dim, int) else -1, dim
    if not isinstance(dim, int):
        raise fail(
            f"axis {axis} of {x.node.type} is a part of time, where an index has no fixed meaning; "
            "read one position with delay(x, steps)"
        )
    if isinstance(entry, slice):
        if entry.step not in (None, 1):
            raise fail("a slice with a step is not supported; reshape first, then index")
        start, limit, _ = entry.indices(dim)
        return start, max(start, limit), max(start, limit) - start
    if isinstance(entry, (int, np.integer)) and -dim <= entry < dim:
        return int(entry) % dim, int(entry) % dim + 1, None
    raise fail(f"index {entry!r} is outside axis {axis} of {x.node.type}")


def matmul(x: Any, y: Any) -> Stream:
    """``x @ y``: contracts the last axis of x with the first (of a vector) or second to last of y."""
    left, right = Stream(as_node(x)), Stream(as_node(y))
    if not left.ndim or not right.ndim:
        raise fail(f"@ needs vectors or matrices, not {left.node.type} and {right.node.type}")
    letters = iter(string.ascii_lowercase)
    batch = [next(letters) for _ in range(max(left.ndim, right.ndim, 2) - 2)]
    row, inner, column = (next(letters) for _ in range(3))
    x_term = [*batch[len(batch) - max(left.ndim - 2, 0) :], *([row] if left.ndim > 1 else []), inner]
    y_term = [
        *batch[len(batch) - max(right.ndim - 2, 0) :],
        inner,
        *([column] if right.ndim > 1 else []),
    ]
    result = [*batch, *([row] if left.ndim > 1 else []), *([column] if right.ndim > 1 else [])]
    return emit(
        "contraction", left, right, subscripts=f"{''.join(x_term)},{''.join(y_term)}->{''.join(result)}"
    )
