"""Parts of a graph: a node by its name, and what lies around it as a graph of its own."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from fnmatch import fnmatchcase

from ..errors import SystolicError
from ..graph import Graph, Node, copy_node, make_node
from ..ops import OPS
from ..types import TensorType, is_ragged


def find_node(graph: Graph, name: str) -> Node:
    """The node of that name, or the only one whose name ends with it.

    ``SystolicError`` that names similar nodes if there is none, or some of several.
    """
    if name in graph.by_name:
        return graph.by_name[name]
    ending = [known for known in graph.by_name if known.endswith(f".{name}")]
    if len(ending) == 1:
        return graph.by_name[ending[0]]
    if ending:
        raise SystolicError(
            f"{len(ending)} nodes of {graph.name} end with {name!r}: {', '.join(ending[:3])}, …; "
            "expected the full name of one"
        )
    raise SystolicError(f"{graph.name} has no node {name!r}{_similar(graph, name)}")


def find_nodes(graph: Graph, pattern: str) -> list[Node]:
    """The nodes whose names fit ``pattern``, in the order of the graph, at least one.

    ``*`` stands for any characters, ``?`` for one, ``[0-3]`` for one of those; a pattern without any is a
    name as in ``find_node``. ``SystolicError`` that names similar nodes where nothing fits.
    """
    if not any(character in pattern for character in "*?["):
        return [find_node(graph, pattern)]
    found = [node for name, node in graph.by_name.items() if fnmatchcase(name, pattern)]
    if not found:
        first = pattern.replace("*", "0")  # as a name in the first layer would be
        raise SystolicError(f"{graph.name} has no node like {pattern!r}{_similar(graph, first)}")
    return found


def _similar(graph: Graph, name: str) -> str:
    close = get_close_matches(name, graph.by_name, n=3, cutoff=0.5)
    return f"; similar: {', '.join(close)}" if close else ""


def neighbourhood(graph: Graph, center: Node, depth: int) -> Graph:
    """What is at most ``depth`` edges away from a node, up or down, as a graph of its own.

    What the part reads from outside becomes an input, what is read outside becomes an output.
    Weights and constants come along, but no way leads through them to their other users.
    """
    beside = {node: {*node.sources, *graph.users[node]} for node in graph.nodes}
    for previous, value in graph.feedback:
        beside[previous].add(value)
        beside[value].add(previous)
    near, newest = {center}, {center}
    for _ in range(depth):
        passable = [node for node in newest if node is center or node.op.kind != "source"]
        newest = {other for node in passable for other in beside[node]} - near
        near |= newest
    return part(graph, near)


def part(graph: Graph, wanted: Collection[Node]) -> Graph:
    """The graph of some nodes: see ``neighbourhood`` for its inputs and outputs."""
    kept = set(wanted)
    for node in reversed(graph.nodes):  # what cannot be an input comes along
        if node in kept:
            kept |= {source for source in node.sources if not _can_be_input(source)}
    kept -= {previous for previous, value in graph.feedback if value not in kept}
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in kept:
            for source in node.sources:
                if source not in new:
                    new[source] = _from_outside(source)
            new[node] = copy_node(node, tuple(new[source] for source in node.sources))
    made = list(dict.fromkeys(new.values()))
    leaving = {*graph.outputs.values()}
    outputs = {
        node.name: new[node]
        for node in graph.nodes
        if node in kept and node.op.kind != "source" and _is_read_outside(node, graph, kept, leaving)
    }
    return Graph(
        graph.name,
        tuple(node for node in made if node.op.name == "input"),
        tuple(node for node in made if node.op.name == "parameter"),
        outputs,
        tuple((new[previous], new[value]) for previous, value in graph.feedback if previous in kept),
    )


def _can_be_input(node: Node) -> bool:
    """Whether the node yields one value that is not as long as the past."""
    return isinstance(node.type, TensorType) and not any(map(is_ragged, node.type.shape))


def _is_read_outside(node: Node, graph: Graph, kept: Collection[Node], leaving: Collection[Node]) -> bool:
    users = graph.users[node]
    return node in leaving or not users or any(user not in kept for user in users)


def _from_outside(source: Node) -> Node:
    if source.op.name in ("constant", "parameter", "input"):
        return source
    params = {"type": source.type, "clock": source.clock}
    return make_node(OPS["input"], (), params, name=source.name, location=source.location)
