"""Interventions: some streams of a graph are something else for everything that reads them.

    graph                                        graph with layers.3.x patched by ``lambda x: x * 2``
    layers.3.x = add(…)                          layers.3.x.before = add(…)
    layers.4.norm = …(layers.3.x)                layers.3.x = multiply(layers.3.x.before, 2.0)
                                                 layers.4.norm = …(layers.3.x)

This happens before anything is derived, so that caches, carries and outputs hold what was patched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np

from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node, copy_node
from ..ir.types import DTYPES
from .language import broadcast_to, parameter, position, where
from .recording import Trace, running_trace
from .stream import Stream, emit

Change = Callable[[Stream], Stream]

_KEEPS_ITS_NAME = ("input", "parameter", "feedback")  # others know them by it: signatures, files, states


def patch(graph: Graph, targets: Collection[Node], change: Change) -> Graph:
    """The graph in which each of the ``targets`` is what ``change`` makes of it, for all that read it.

    ``change`` is a function of the modelling language from a stream to one of the same type; it may read
    time, and weights by their names. The patched stream has the name of the target, which is now called
    ``NAME.before``; inputs, weights and feedbacks keep theirs, and are patched as ``NAME.patched``.
    Raises ``SystolicError`` where the types differ, or where a constant would come to change over time.
    """
    running = Trace(parameters={node.name: node for node in graph.parameters})
    own: dict[Node, Node] = {}  # the streams themselves
    read: dict[Node, Node] = {}  # what takes their place
    token = running_trace.set(running)
    try:
        for node in graph.nodes:
            own[node] = copy_node(node, tuple(read[source] for source in node.sources))
            read[node] = own[node]
            if node in targets:
                read[node] = _changed(own[node], change, running)
    finally:
        running_trace.reset(token)
    pairs = [(own[previous], read[value]) for previous, value in graph.feedback]
    for opened in running.feedback:
        if opened.value is None:
            raise SystolicError(f"a feedback of the patch at {opened.location} is never closed")
        pairs.append((opened.node, opened.value))
    return Graph(
        graph.name,
        tuple(own[node] for node in graph.inputs),
        tuple(running.parameters.values()),
        {name: read[node] for name, node in graph.outputs.items()},
        tuple(pairs),
    ).with_unique_names()


def _changed(node: Node, change: Change, running: Trace) -> Node:
    """What takes the place of a node: named as it was, while the node itself gets another name."""
    keeps_name = node.op.name in _KEEPS_ITS_NAME
    before = node if keeps_name else replace(node, name=f"{node.name}.before")
    running.scopes[:] = [f"{node.name}.patch"]
    made = change(Stream(before))
    if not isinstance(made, Stream):
        raise SystolicError(f"the patch of {node.name} must return a stream, not {made!r}")
    if made.node.type != node.type:
        raise SystolicError(f"the patch of {node.name} must be {node.type}, not {made.node.type}")
    if made.node.clock != node.clock and made.node.clock is not None:
        raise SystolicError(
            f"{node.name} is the same at every position of {made.node.clock}, and so must be its patch"
        )
    if made.node is before:
        return node
    name = f"{node.name}.patched" if keeps_name else node.name
    return replace(_of_its_own(made, node.clock).node, name=name, scope=node.scope)


def _of_its_own(made: Stream, clock: str | None) -> Stream:
    """The stream as a node that can be renamed, and that ticks on ``clock``, as what reads it expects."""
    if made.node.clock is None and clock is not None:
        return where(position(clock) >= 0, made, made)
    if made.node.op.name in _KEEPS_ITS_NAME:
        return emit("reshape", made, shape=made.shape)
    return made


# ---- changes that are no functions ----


def change_by(how: str, name: str, value: Any) -> Change:
    """The change that puts ``value`` in a stream's place, adds it, or multiplies by it: ``how`` is replace,
    add or scale. The value is the weight ``name``, so that another one needs no other program."""
    array = np.asarray(value)

    def change(x: Stream) -> Stream:
        given = parameter(name, array.shape, patch_dtype(array)).cast(x.dtype)
        match how:
            case "add":
                return x + given
            case "scale":
                return x * given
        return broadcast_to(given, x.shape)

    return change


def patch_dtype(array: np.ndarray) -> str:
    """The type that the numbers of a patch are kept as."""
    if array.dtype == bool:
        return "bool"
    if np.issubdtype(array.dtype, np.integer):
        return "i32"
    if np.issubdtype(array.dtype, np.floating):
        return "f32"
    raise SystolicError(f"a patch must be numbers, not {array.dtype} {list(array.shape)}")


def patch_array(value: Any) -> np.ndarray:
    """The numbers of a patch as a weight."""
    array = np.asarray(value)
    return array.astype(DTYPES[patch_dtype(array)])
