"""What a finished clock leaves for another one: the constants that are kept, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Set

from ...ir.graph import Graph, Node, copy_node, make_node, postorder
from ...ir.ops import OPS

_VIEWS = ("reshape", "broadcast_to", "transpose")  # what computes nothing


def constants_read(graph: Graph, clock: str) -> tuple[Node, ...]:
    """What other clocks leave behind and ``clock`` reads: constant nodes that need a whole sequence.

    Positions are counted anew instead, and what was only repeated is kept as it was before.
    """
    settled = _settled(graph, clock)
    read = (s for node in graph.nodes if node.clock == clock for s in node.sources)
    return tuple(dict.fromkeys(_before_views(s, settled) for s in read if s in settled))


def _settled(graph: Graph, clock: str) -> set[Node]:
    """Constant nodes that need a whole sequence of another clock, and not only its positions."""
    settled: set[Node] = set()
    for node in graph.nodes:
        source = node.sources[0] if node.op.name == "whole" else None
        is_read = source is not None and source.clock != clock and source.op.name != "position"
        if node.clock is None and (is_read or any(s in settled for s in node.sources)):
            settled.add(node)
    return settled


def _before_views(node: Node, settled: Set[Node]) -> Node:
    """The node, or a smaller one that it is a view of."""
    smallest = node
    while node.op.name in _VIEWS and node.sources[0] in settled:
        (node,) = node.sources
        if _numbers(node) < _numbers(smallest):
            smallest = node
    return smallest


def _numbers(node: Node) -> int:
    """How many numbers it holds for each position that is read."""
    return math.prod(dim for dim in node.tensor.shape if isinstance(dim, int))


def source_graph(graph: Graph, clock: str) -> Graph:
    """The streams of other clocks that ``clock`` reads as a whole, by name, as a graph of their own.

    Of an encoder-decoder this is the encoder.
    """

    def constants_behind(node: Node) -> list[Node]:
        return [source for source in node.sources if source.clock is None]

    left = postorder(constants_read(graph, clock), constants_behind)
    streams = {n.sources[0].name: n.sources[0] for n in left if n.op.name == "whole"}
    needed = set(postorder(streams.values(), lambda node: node.sources))
    return Graph(
        f"{graph.name}.encoder",
        tuple(node for node in graph.inputs if node.clock != clock),
        tuple(node for node in graph.parameters if node in needed),
        streams,
        tuple(pair for pair in graph.feedback if pair[0] in needed),
    )


def graph_behind_source(graph: Graph, clock: str) -> Graph:
    """The graph with what ``clock`` reads of other clocks given, instead of computed: inputs of the names
    that the streams have in ``source_graph``. Of an encoder-decoder this is the decoder.
    """
    streams = source_graph(graph, clock).outputs
    given = {
        stream: make_node(OPS["input"], (), {"type": stream.type, "clock": stream.clock}, name=name)
        for name, stream in streams.items()
    }
    new: dict[Node, Node] = {}
    for node in postorder(graph.outputs.values(), lambda node: () if node in given else node.sources):
        new[node] = given.get(node) or copy_node(node, tuple(new[source] for source in node.sources))
    return Graph(
        f"{graph.name}.decoder",
        (*given.values(), *(new.get(node, node) for node in graph.inputs if node.clock in (clock, None))),
        tuple(new[node] for node in graph.parameters if node in new),
        {name: new[node] for name, node in graph.outputs.items()},
        tuple((new[previous], new[value]) for previous, value in graph.feedback if previous in new),
    )
