"""Building a graph anew from an old one: the only way in which a pass changes anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from .graph import Edge, Graph, Node, make_node
from .types import Size, TensorType

Visit = Callable[[Node, tuple[Node, ...]], Node]


def copy_node(node: Node, sources: tuple[Node, ...]) -> Node:
    """The node over new operands; the node itself where they are its own."""
    if sources == node.sources:
        return node
    edges = tuple(Edge(s, e.access) for s, e in zip(sources, node.inputs, strict=True))
    return replace(node, inputs=edges)


def infer_again(node: Node, sources: tuple[Node, ...]) -> Node:
    """The node over new operands, with its type and clock inferred from them."""
    return make_node(node.op, sources, node.params, name=node.name, scope=node.scope, location=node.location)


def rebuild(graph: Graph, visit: Visit) -> Graph:
    """The graph in which each node is ``visit(node, new operands)``, in topological order.

    Inputs and parameters keep their nodes. What no output needs any more disappears.
    """
    new: dict[Node, Node] = {node: node for node in (*graph.inputs, *graph.parameters)}
    for node in graph.nodes:
        if node not in new:
            new[node] = visit(node, tuple(new[source] for source in node.sources))
    outputs = {name: new[node] for name, node in graph.outputs.items()}
    pairs = tuple((new[previous], new[value]) for previous, value in graph.feedback)
    return Graph(graph.name, graph.inputs, graph.parameters, outputs, pairs)


def bind_sizes(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """Replaces named sizes by numbers in every declared type and shape parameter."""

    def bind_shape(shape: tuple) -> tuple:
        return tuple(sizes.get(d.name, d) if isinstance(d, Size) else d for d in shape)

    def bind_params(node: Node) -> dict:
        params = dict(node.params)
        if isinstance(params.get("type"), TensorType):
            params["type"] = params["type"].with_shape(bind_shape(params["type"].shape))
        if "shape" in params:
            params["shape"] = bind_shape(params["shape"])
        return params

    new: dict[Node, Node] = {}
    for node in graph.nodes:
        sources = tuple(new[source] for source in node.sources)
        new[node] = infer_again(replace(node, params=bind_params(node)), sources)
    return Graph(
        graph.name,
        tuple(new[node] for node in graph.inputs),
        tuple(new[node] for node in graph.parameters),
        {name: new[node] for name, node in graph.outputs.items()},
        tuple((new[previous], new[value]) for previous, value in graph.feedback),
    )
