"""A graph as DOT, and the colour of an edge says what it reads.

``to_dot`` draws every node, with scopes as boxes in boxes; ``outline_to_dot`` draws one box for each
scope, with repeated scopes once.
"""

from __future__ import annotations

from collections.abc import Collection

import pydot

from ..graph import Graph, Node
from ..time import NOW, Access, delay_access
from ..types import show_type
from .outline import Box, Flow, boxes, flows, input_boxes, weight_bytes

# by the first word of ``Access.describe``
ACCESS_COLOURS = {
    "now": "#57606a",
    "delay": "#bc6c00",
    "window": "#0969da",
    "prefix": "#1a7f37",
    "whole": "#cf222e",
    "feedback": "#8250df",
}
LABELLED = 3  # names at one edge
_SHAPES = {"input": "ellipse", "feedback": "ellipse", "position": "ellipse"}
_CONSTANTS = ("parameter", "constant")  # left out: a line for each weight hides the structure


def to_dot(graph: Graph, *, parameters: bool = False) -> str:
    """DOT source. ``parameters`` also draws weights and constants, small and grey."""
    drawing = _drawing(graph)
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


def _drawing(graph: Graph) -> pydot.Dot:
    drawing = pydot.Dot(
        _quote(graph.name), graph_type="digraph", rankdir="BT", fontname="Helvetica", compound="true"
    )
    drawing.set_node_defaults(shape="box", style="rounded", fontname="Helvetica", fontsize="10")
    drawing.set_edge_defaults(fontname="Helvetica", fontsize="9")
    return drawing


def outline_to_dot(graph: Graph, expand: Collection[str] = ()) -> str:
    """DOT source with one box for each scope; the nodes of scopes that ``expand`` names are drawn."""
    drawing = _drawing(graph)
    shown: list[Box] = []
    for box in boxes(graph, expand):
        alone = box.times == 1 and any(f"{box.path}.".startswith(f"{scope}.") for scope in expand)
        shown += [Box(n.name, (n,), (n,)) for n in box.nodes] if alone else [box]
    shown = [*input_boxes(graph, shown), *shown]
    identity = {box: f"n{position}" for position, box in enumerate(shown)}
    clusters: dict[str, pydot.Graph] = {}
    for box in shown:
        is_node = len(box.every_node) == 1 or box.nodes[0].op.name == "input"
        parent = box.nodes[0].scope if is_node else _title(box)[0]
        _cluster(drawing, clusters, parent, box).add_node(_draw_box(box, identity[box]))
    for flow in flows(graph, shown):
        drawing.add_edge(_draw_flow(flow, identity[flow.source], identity[flow.user]))
    box_of = {node: box for box in shown for node in box.every_node}
    for position, (name, node) in enumerate(graph.outputs.items()):
        if node in box_of and not name.startswith("state."):
            drawing.add_node(pydot.Node(f"o{position}", label=_quote(name), shape="ellipse", style="bold"))
            drawing.add_edge(_draw_edge(identity[box_of[node]], f"o{position}", NOW))
    return drawing.to_string()


def _cluster(drawing: pydot.Dot, clusters: dict[str, pydot.Graph], path: str, box: Box) -> pydot.Graph:
    if not path:
        return drawing
    if path not in clusters:
        label = path if box.times == 1 else f"{path}  × {box.times}"
        clusters[path] = pydot.Cluster(f"c{len(clusters)}", label=_quote(label), color="#d0d7de")
        drawing.add_subgraph(clusters[path])  # type: ignore[arg-type]  # pydot's own way
    return clusters[path]


def _title(box: Box) -> tuple[str, str]:
    """The frame that a box stands in, and its title; a numbered scope keeps its whole name."""
    frame, _, title = box.path.rpartition(".")
    if not title[0].isdigit():
        return frame, title
    return "", box.path if box.times == 1 else f"{box.path}  × {box.times}"


def _draw_box(box: Box, identity: str) -> pydot.Node:
    if len(box.every_node) == 1:
        return _draw_node(box.nodes[0], identity)
    if box.nodes[0].op.name == "input":
        label = _quote(f"{box.path}\n{show_type(box.nodes[0].type)}")
        return pydot.Node(identity, label=label, shape="ellipse")
    weights = weight_bytes(box) // box.times
    about = f"{len(box.nodes)} nodes" + (f", {weights:,} bytes of weights" if weights else "")
    label = _quote(f"{_title(box)[1]}\n{about}")
    return pydot.Node(identity, label=label, style=_quote("rounded,filled"), fillcolor="#f6f8fa")


def _draw_flow(flow: Flow, source: str, user: str) -> pydot.Edge:
    names = ", ".join(flow.names[:LABELLED]) + (" …" if len(flow.names) > LABELLED else "")
    colour = _quote(ACCESS_COLOURS[flow.access.describe().split()[0]])
    label = names if flow.access == NOW else f"{names} [{flow.access}]"
    is_plain = flow.access == NOW and (len(flow.source.nodes) == 1)
    return pydot.Edge(
        source,
        user,
        color=colour,
        fontcolor=colour,
        label="" if is_plain else _quote(f"{label} to the next" if flow.onward else label),
        style="dashed" if flow.onward else "solid" if flow.access == NOW else "bold",
        constraint="false" if flow.onward else "true",
    )


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
