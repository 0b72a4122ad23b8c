"""Keeps the past in fewer bits: what is stored of each position is rounded, and read as it was rounded.

    %past = history(%k[0:t])        →     %largest  = max(absolute(%k), axes=(1,))
                                          %scales   = multiply(maximum(%largest, 1e-30), 1/127)
                                          %integers = cast(floor(add(divide(%k, %scales), 0.5)), dtype="i8")
                                          %read     = cast(history(%integers[0:t]), dtype="f32")
                                          %past     = multiply(%read, history(%scales[0:t]))

A vector of int8 has one scale: its largest element is 127 or -127, and all are rounded to the nearest.
Vectors lie along the last axis, so there is one for each position and head. f16 and bf16 have no scales; a
bf16 is kept as its bits, since XLA's CPU backend updates a u16 in place but writes a state of bf16 anew. Only
the past is rounded: what reads %k at its own position reads it as it is. Where a history's source is
recomputed from what is kept, that is rounded before.

Must not fire on what is read in another way than by products (distances, decays, segments), which may need
all its bits, nor on vectors of one element, which would become longer. What a recurrence carries and what a
delay reads is never rounded: errors of the one would add up, and the other does not grow.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from ...ir.errors import SystolicError
from ...ir.graph import Graph, Node, copy_node, make_node, postorder
from ...ir.ops import OPS

STATE_DTYPES = ("f32", "bf16", "f16", "int8")
LARGEST = 127
_LEAST = 1e-30  # of a largest element: the scale of zeros needs an inverse, too
_VIEWS = ("reshape", "transpose", "slice", "broadcast_to", "concatenate")


def narrow_states(graph: Graph, kept: Collection[str], dtype: str) -> Graph:
    """The graph that stores the past of the streams named ``kept`` as ``dtype``, one of ``STATE_DTYPES``;
    ``SystolicError`` for another. ``kept`` is what ``choose_states`` has chosen."""
    if dtype not in STATE_DTYPES:
        raise SystolicError(f"state_dtype must be one of {', '.join(STATE_DTYPES)}, not {dtype!r}")
    stored = {node for node in graph.nodes if node.name in kept}

    def operands(node: Node) -> tuple[Node, ...]:
        return () if node in stored else tuple(source for source in node.sources if source.clock is not None)

    histories = [node for node in graph.nodes if node.op.name == "history"]
    read, exact = (
        set(postorder((node.sources[0] for node in group), operands))
        for group in (histories, [node for node in histories if not _is_multiplied(node, graph)])
    )
    narrowed = {node for node in (stored & read) - exact if _is_vector(node)}
    if dtype == "f32" or not narrowed:
        return graph
    return _Narrowing(graph, dtype, frozenset(narrowed), frozenset(read - stored)).graph()


# The ops from what is kept back to the stream that was rounded: integers, scales, bits of a bf16, f16.
_ROUNDINGS = (
    ("cast", "floor", "add", "divide"),
    ("multiply", "maximum", "reshape", "max", "absolute"),
    ("bitcast", "cast"),
    ("cast",),
)


def rounded_from(kept: Node) -> Node | None:
    """The stream of which ``kept`` is what this pass keeps, or a part of that; None if there is none."""
    for ops in _ROUNDINGS:
        node = kept
        for op in ops:
            if node.op.name != op:
                break
            node = node.sources[0]
        else:
            return node if kept.tensor.bytes < node.tensor.bytes else None
    return None


def _is_vector(node: Node) -> bool:
    shape = node.tensor.shape
    return node.tensor.dtype == "f32" and bool(shape) and isinstance(shape[-1], int) and shape[-1] > 1


def _is_multiplied(history: Node, graph: Graph) -> bool:
    """Whether a history is read by products alone."""
    shown, pending = set(graph.outputs.values()), [history]
    while pending:
        node = pending.pop()
        if node in shown or any(user.op.name not in ("contraction", *_VIEWS) for user in graph.users[node]):
            return False
        pending += (user for user in graph.users[node] if user.op.name in _VIEWS)
    return True


class _Narrowing:
    """One pass over a graph: ``narrowed`` streams have a rounded past, from which some ``between`` them and
    a history are computed."""

    def __init__(self, graph: Graph, dtype: str, narrowed: frozenset[Node], between: frozenset[Node]) -> None:
        self._graph = graph
        self._dtype = dtype
        self._narrowed = narrowed
        self._between = between

    def graph(self) -> Graph:
        graph = self._graph
        new: dict[Node, Node] = {}
        past: dict[Node, Node] = {}  # the same streams as histories read them
        parts: dict[Node, tuple[Node, ...]] = {}
        for node in graph.nodes:
            if node.op.name != "history":
                new[node] = copy_node(node, tuple(new[source] for source in node.sources))
            elif node.sources[0] in parts:
                new[node] = self._read(node, parts[node.sources[0]])
            else:
                source = node.sources[0]
                new[node] = copy_node(node, (past.get(source, new[source]),))
            if node in self._narrowed:
                parts[node] = self._rounded(new[node])
                past[node] = self._widened(node, f"{node.name}.rounded", parts[node])
            elif node in self._between and any(source in past for source in node.sources):
                again = copy_node(node, tuple(past.get(source, new[source]) for source in node.sources))
                past[node] = replace(again, name=f"{node.name}.past")
        outputs = {name: new[node] for name, node in graph.outputs.items()}
        pairs = tuple((new[previous], new[value]) for previous, value in graph.feedback)
        return Graph(graph.name, graph.inputs, graph.parameters, outputs, pairs).with_unique_names()

    def _rounded(self, x: Node) -> tuple[Node, ...]:
        """What is kept of each value of a stream."""
        if self._dtype == "f16":
            return (_make(x, "f16", "cast", x, dtype="f16"),)
        if self._dtype == "bf16":
            return (_make(x, "bf16", "bitcast", _make(x, "short", "cast", x, dtype="bf16"), dtype="u16"),)
        axis = x.tensor.rank - 1
        largest = _make(x, "largest", "max", _make(x, "absolute", "absolute", x), axes=(axis,))
        column = _make(x, "column", "reshape", largest, shape=(*x.tensor.shape[:-1], 1))
        bounded = _make(x, "bounded", "maximum", column, _number(_LEAST))
        scales = _make(x, "scales", "multiply", bounded, _number(1 / LARGEST))
        raised = _make(x, "raised", "add", _make(x, "steps", "divide", x, scales), _number(0.5))
        nearest = _make(x, "nearest", "floor", raised)
        return _make(x, "integers", "cast", nearest, dtype="i8"), scales

    def _read(self, history: Node, parts: tuple[Node, ...]) -> Node:
        """What a history reads, from the histories of the parts that are kept."""
        behind = (part.name.rpartition(".")[2] for part in parts)
        pasts = [
            _make(history, label, "history", part, **history.params)
            for label, part in zip(behind, parts, strict=True)
        ]
        return self._widened(history, history.name, tuple(pasts))

    def _widened(self, origin: Node, name: str, parts: tuple[Node, ...]) -> Node:
        """The values, as f32, that the parts stand for."""
        first = parts[0]
        if self._dtype == "bf16":
            first = _make(origin, "short", "bitcast", first, dtype="bf16")
        wide = _make(origin, "f32", "cast", first, dtype="f32")
        return replace(_make(origin, "", "multiply", wide, parts[1]) if parts[1:] else wide, name=name)


def _make(origin: Node, label: str, op: str, *sources: Node, **params: object) -> Node:
    name, scope, location = f"{origin.name}.{label}", origin.scope, origin.location
    return make_node(OPS[op], sources, params, name=name, scope=scope, location=location)


def _number(value: float) -> Node:
    return make_node(OPS["constant"], (), {"value": np.array(value, np.float32)})
