"""A graph as DOT: scopes are boxes in boxes, and the colour of an edge says what it reads."""

from __future__ import annotations

import pydot

from .graph import Graph, Node
from .time import NOW, Access, delay_access
from .types import show_type

# by the first word of ``Access.describe``
ACCESS_COLOURS = {
    "now": "#57606a",
    "delay": "#bc6c00",
    "window": "#0969da",
    "prefix": "#1a7f37",
    "whole": "#cf222e",
    "feedback": "#8250df",
}
_SHAPES = {"input": "ellipse", "feedback": "ellipse", "position": "ellipse"}
_CONSTANTS = ("parameter", "constant")  # left out: a line for each weight hides the structure


def to_dot(graph: Graph, *, parameters: bool = False) -> str:
    """DOT source. ``parameters`` also draws weights and constants, small and grey."""
    drawing = pydot.Dot(
        _quote(graph.name), graph_type="digraph", rankdir="BT", fontname="Helvetica", compound="true"
    )
    drawing.set_node_defaults(shape="box", style="rounded", fontname="Helvetica", fontsize="10")
    drawing.set_edge_defaults(fontname="Helvetica", fontsize="9")
    shown = [node for node in graph.nodes if parameters or node.op.name not in _CONSTANTS]
    identity = {node: f"n{position}" for position, node in enumerate(shown)}
    clusters = _clusters(drawing, shown)
    for node in shown:
        clusters[node.scope].add_node(_draw_node(node, identity[node]))
    for node in shown:
        for edge in node.inputs:
            if edge.source in identity:
                drawing.add_edge(_draw_edge(identity[edge.source], identity[node], edge.access))
    for previous, value in graph.feedback:
        if previous in identity and value in identity:
            drawing.add_edge(_draw_edge(identity[value], identity[previous], delay_access(1), "feedback"))
    for position, (name, node) in enumerate(graph.outputs.items()):
        if node in identity:
            drawing.add_node(pydot.Node(f"o{position}", label=_quote(name), shape="ellipse", style="bold"))
            drawing.add_edge(_draw_edge(identity[node], f"o{position}", NOW))
    return drawing.to_string()


def _clusters(drawing: pydot.Dot, nodes: list[Node]) -> dict[str, pydot.Graph]:
    """A box for each scope and each scope around it; the drawing itself for what has none."""
    clusters: dict[str, pydot.Graph] = {"": drawing}
    for scope in dict.fromkeys(node.scope for node in nodes):
        parts = scope.split(".") if scope else []
        for depth in range(1, len(parts) + 1):
            name, parent = ".".join(parts[:depth]), ".".join(parts[: depth - 1])
            if name not in clusters:
                box = pydot.Cluster(f"c{len(clusters)}", label=_quote(parts[depth - 1]), color="#d0d7de")
                clusters[parent].add_subgraph(box)  # type: ignore[arg-type]  # pydot's own way
                clusters[name] = box
    return clusters


def _draw_node(node: Node, identity: str) -> pydot.Node:
    short = node.name.removeprefix(f"{node.scope}.")
    title = short if node.op.name in short else f"{short} = {node.op.name}"
    label = _quote(f"{title}\n{show_type(node.type)}")
    if node.op.name in _CONSTANTS:
        return pydot.Node(identity, label=label, shape="plain", fontsize="7", fontcolor="#8c959f")
    return pydot.Node(identity, label=label, shape=_SHAPES.get(node.op.name, "box"))


def _draw_edge(source: str, user: str, access: Access, kind: str = "") -> pydot.Edge:
    kind = kind or access.describe().split()[0]
    colour = _quote(ACCESS_COLOURS[kind])
    if access == NOW:
        return pydot.Edge(source, user, color=colour)
    label = _quote(str(access))
    style = "dashed" if kind == "feedback" else "bold"
    return pydot.Edge(source, user, color=colour, fontcolor=colour, label=label, style=style)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
