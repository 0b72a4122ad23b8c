"""Tracing: a plain Python function over per-token values becomes a graph.

The function is called once with ``Stream`` objects in place of values. Whatever it computes with
them makes nodes; nothing is executed. Mistakes are reported with the line of the user's source.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..ir.errors import GraphError
from ..ir.graph import Graph, Node, make_node
from ..ir.ops import OPS
from ..ir.types import MAIN, parse_type
from .collection import paused_collection
from .recording import Trace, running_trace
from .stream import Stream


@paused_collection()
def trace(function: Callable[..., Any], /, *, name: str | None = None, **inputs: str) -> Graph:
    """Runs ``function`` over streams and returns its graph.

    Each argument of the function is an input; its type is given by keyword like ``token="i32[]"``
    (the default), with ``@clock`` behind it for a clock other than ``main``; with ``@`` alone it has no
    clock, and one value for a whole text. The function returns one stream, a tuple, or a dictionary of
    streams. Raises ``GraphError`` with the user's line.
    """
    running = Trace()
    arguments: dict[str, Stream] = {}
    for argument in inspect.signature(function).parameters:
        arguments[argument] = Stream(_input_node(argument, inputs.get(argument, "i32[]")))
    for unknown in set(inputs) - set(arguments):
        raise GraphError(f"the traced function has no argument {unknown!r}")
    token = running_trace.set(running)
    try:
        outputs = _named_outputs(function(**arguments))
    finally:
        running_trace.reset(token)
    pairs = []
    for opened in running.feedback:
        if opened.value is None:
            raise GraphError("this feedback is never closed; call .close(value)", opened.location)
        pairs.append((opened.node, opened.value))
    graph = Graph(
        name or function.__name__,
        tuple(stream.node for stream in arguments.values()),
        tuple(running.parameters.values()),
        outputs,
        tuple(pairs),
    )
    return graph.with_unique_names()


def _input_node(name: str, declared: str) -> Node:
    text, separator, name_of_clock = declared.partition("@")
    clock = name_of_clock if separator else MAIN
    try:
        type_ = parse_type(text)
    except ValueError as error:
        raise GraphError(f"input {name}: {error}") from None
    return make_node(OPS["input"], (), {"type": type_, "clock": clock or None}, name=name)


def _named_outputs(result: Any) -> Mapping[str, Node]:
    if isinstance(result, Stream):
        result = {"output": result}
    elif isinstance(result, (tuple, list)):
        result = {f"output{i}": value for i, value in enumerate(result)}
    if not isinstance(result, dict) or not all(isinstance(v, Stream) for v in result.values()) or not result:
        raise GraphError(f"a traced function returns a stream, a tuple or a dict of streams, not {result!r}")
    return {str(key): stream.node for key, stream in result.items()}
