"""What a finished clock leaves for another one: the constants that are kept, and where they come from."""

from __future__ import annotations

from ...ir.graph import Graph, Node, postorder


def constants_read(graph: Graph, clock: str) -> tuple[Node, ...]:
    """What other clocks leave behind and ``clock`` reads: constant nodes that need a whole sequence."""
    settled: set[Node] = set()
    for node in graph.nodes:
        is_whole = node.op.name == "whole" and node.sources[0].clock != clock
        if node.clock is None and (is_whole or any(s in settled for s in node.sources)):
            settled.add(node)
    read = (s for node in graph.nodes if node.clock == clock for s in node.sources)
    return tuple(dict.fromkeys(s for s in read if s in settled))


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
