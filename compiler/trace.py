"""Tracing: a plain Python function over per-token values becomes a graph.

The function is called once with ``Stream`` objects in place of values. Whatever it computes with
them makes nodes; nothing is executed. Mistakes are reported with the line of the user's source.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from ..ir.errors import GraphError, Location
from ..ir.graph import Graph, Node, make_node, with_unique_names
from ..ir.ops import OPS
from ..ir.types import DTYPES, FLOATS, MAIN, Shape, dtype_name, parse_type

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INTERNAL = tuple(os.path.join(_PACKAGE, folder) + os.sep for folder in ("ir", "compiler"))


@dataclass
class Trace:
    """What one run of a traced function collects beside the nodes themselves."""

    scopes: list[str] = field(default_factory=list)
    parameters: dict[str, Node] = field(default_factory=dict)
    feedback: list[Feedback] = field(default_factory=list)


_current: ContextVar[Trace | None] = ContextVar("systolic_trace", default=None)


def current_trace() -> Trace:
    """The trace that is running; ``GraphError`` outside of ``sy.trace``."""
    running = _current.get()
    if running is None:
        raise GraphError("streams can be made only inside a function that sy.trace runs", user_location())
    return running


def user_location() -> Location | None:
    """The innermost line of source outside of the compiler itself."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_INTERNAL) and "contextlib" not in file:
            return Location(
                os.path.relpath(file, _PACKAGE) if file.startswith(_PACKAGE) else file, frame.f_lineno
            )
        frame = frame.f_back
    return None


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Names the part of the model that the block computes, for instance ``layers.3``."""
    scopes = current_trace().scopes
    scopes.append(name)
    try:
        yield
    finally:
        scopes.pop()


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
        from .language import matmul

        return matmul(self, other)

    def __getitem__(self, index: Any) -> Stream:
        from .language import index_stream

        return index_stream(self, index)

    def cast(self, dtype: str) -> Stream:
        return self if dtype == self.dtype else emit("cast", self, dtype=dtype)

    def reshape(self, *shape: Any) -> Stream:
        from .language import reshape

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

    __slots__ = ("location", "value")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.value: Node | None = None
        self.location = user_location()

    def close(self, value: Stream) -> Stream:
        """Says which stream this is the previous value of, and returns that stream."""
        node = as_node(value, self.dtype)
        if self.value is not None:
            raise GraphError("this feedback is closed already", user_location())
        if node.type != self.node.type:
            raise GraphError(f"a feedback of {self.node.type} cannot carry {node.type}", user_location())
        if node.clock not in (self.node.clock, None):
            raise GraphError(
                f"a feedback of clock {self.node.clock} cannot carry one of {node.clock}", user_location()
            )
        self.value = node
        return value


def trace(function: Callable[..., Any], /, *, name: str | None = None, **inputs: str) -> Graph:
    """Runs ``function`` over streams and returns its graph.

    Each argument of the function is an input; its type is given by keyword like ``token="i32[]"``
    (the default), with ``@clock`` behind it for a clock other than ``main``. The function returns
    one stream, a tuple, or a dictionary of streams. Raises ``GraphError`` with the user's line.
    """
    running = Trace()
    arguments: dict[str, Stream] = {}
    for argument in inspect.signature(function).parameters:
        arguments[argument] = Stream(_input_node(argument, inputs.get(argument, "i32[]")))
    for unknown in set(inputs) - set(arguments):
        raise GraphError(f"the traced function has no argument {unknown!r}")
    token = _current.set(running)
    try:
        outputs = _named_outputs(function(**arguments))
    finally:
        _current.reset(token)
    pairs = []
    for feedback in running.feedback:
        if feedback.value is None:
            raise GraphError("this feedback is never closed; call .close(value)", feedback.location)
        pairs.append((feedback.node, feedback.value))
    graph = Graph(
        name or function.__name__,
        tuple(stream.node for stream in arguments.values()),
        tuple(running.parameters.values()),
        outputs,
        tuple(pairs),
    )
    return with_unique_names(graph)


def _input_node(name: str, declared: str) -> Node:
    text, _, clock = declared.partition("@")
    try:
        type_ = parse_type(text)
    except ValueError as error:
        raise GraphError(f"input {name}: {error}") from None
    return make_node(OPS["input"], (), {"type": type_, "clock": clock or MAIN}, name=name)


def _named_outputs(result: Any) -> Mapping[str, Node]:
    if isinstance(result, Stream):
        result = {"output": result}
    elif isinstance(result, (tuple, list)):
        result = {f"output{i}": value for i, value in enumerate(result)}
    if not isinstance(result, dict) or not all(isinstance(v, Stream) for v in result.values()) or not result:
        raise GraphError(f"a traced function returns a stream, a tuple or a dict of streams, not {result!r}")
    return {str(key): stream.node for key, stream in result.items()}
