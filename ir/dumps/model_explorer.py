"""Graphs in the JSON form of Google's Model Explorer, and values that it colours their nodes by.

    {"label": "llama", "graphs": [
      {"id": "decode", "nodes": [
         {"id": "layers.0.attn.k", "label": "k: concatenate", "namespace": "layers/0/attn",
          "incomingEdges": [{"sourceNodeId": "layers.0.attn.add.2", "sourceNodeOutputId": "0",
                             "targetNodeInputId": "0"}],
          "attrs": [{"key": "op", "value": "concatenate"}],
          "inputsMetadata": […], "outputsMetadata": […]}]}]}

Its edges have no attributes, so which positions an edge reads stands in the metadata of the input,
and what reads other positions than *now* has a border of the colour of its access. The body of a
loop is a graph of its own, which the node of the loop leads to. The form is that of its JSON adapter:
https://github.com/google-ai-edge/model-explorer/wiki
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from typing import Any

from ..graph import Graph, Node
from ..time import NOW, Access, delay_access
from ..types import show_type
from .dot import ACCESS_COLOURS
from .text import inline_literals, show_params

GRADIENT = ("#ffffff", "#ffe0c2", "#f26b21")  # from the least to the most
_STATE_PREFIX = "state."


def to_model_explorer(label: str, graphs: Mapping[str, Graph]) -> dict[str, Any]:
    """One collection with the graphs, by their names, and the bodies of their loops."""
    written: list[dict[str, Any]] = []
    pending = list(graphs.items())
    for name, graph in pending:  # grows by the bodies of loops
        bodies = {node: f"{name}/{node.name}" for node in graph.nodes if "body" in node.params}
        pending += [(identity, node.params["body"]) for node, identity in bodies.items()]
        written.append(_graph(name, graph, bodies))
    return {"label": label, "graphs": written}


def node_values(
    name: str, graphs: Mapping[str, Graph], value_of: Callable[[str, Node], int]
) -> dict[str, Any]:
    """A file of values for the nodes of all graphs; nodes with the value 0 have none."""
    stops = [{"stop": i / (len(GRADIENT) - 1), "bgColor": colour} for i, colour in enumerate(GRADIENT)]
    return {
        graph_name: {
            "name": name,
            "results": {
                node.name: {"value": value} for node in graph.nodes if (value := value_of(graph_name, node))
            },
            "gradient": stops,
        }
        for graph_name, graph in graphs.items()
    }


def _graph(name: str, graph: Graph, bodies: Mapping[Node, str]) -> dict[str, Any]:
    literals, scopes = inline_literals(graph), _scopes(graph)
    previous = dict(graph.feedback)
    outputs: dict[Node, list[str]] = {}
    for output, node in graph.outputs.items():
        outputs.setdefault(node, []).append(output)
    nodes = []
    for node in graph.nodes:
        if node in literals:
            continue
        reads = [(edge.source, edge.access) for edge in node.inputs]
        if node in previous:
            reads.append((previous[node], delay_access(1)))
        record = _node(node, scopes[node], reads, literals, outputs.get(node, ()))
        nodes.append(record | ({"subgraphIds": [bodies[node]]} if node in bodies else {}))
    facts = {"nodes": f"{len(nodes):,}", "outputs": ", ".join(graph.outputs)}
    return {"id": name, "nodes": nodes, "groupNodeAttributes": {"": facts}}


def _node(
    node: Node,
    scope: str,
    reads: list[tuple[Node, Access]],
    literals: Mapping[Node, str],
    outputs: Iterable[str],
) -> dict[str, Any]:
    attributes = {"op": node.op.name}
    attributes |= dict(param.split("=", 1) for param in show_params(node, lambda body: body.name))
    attributes |= {f"operand {i}": literals[s] for i, (s, _) in enumerate(reads) if s in literals}
    attributes |= {"clock": node.clock} if node.clock else {}
    attributes |= {"source line": str(node.location)} if node.location else {}
    attributes |= {"output": ", ".join(outputs)} if outputs else {}
    shown = [(i, source, access) for i, (source, access) in enumerate(reads) if source not in literals]
    record = {
        "id": node.name,
        "label": _label(node),
        "namespace": scope.replace(".", "/"),
        "attrs": _pairs(attributes),
        "incomingEdges": [
            {"sourceNodeId": source.name, "sourceNodeOutputId": "0", "targetNodeInputId": str(i)}
            for i, source, _ in shown
        ],
        "inputsMetadata": [
            {"id": str(i), "attrs": _pairs({"name": source.name, "reads": f"[{access}]"})}
            for i, source, access in shown
        ],
        "outputsMetadata": [
            {"id": "0", "attrs": _pairs({"tensor_name": node.name, "shape": show_type(node.type)})}
        ],
    }
    colour = _border(node, [access for _, _, access in shown])
    return record | ({"style": {"borderColor": colour}} if colour else {})


def _label(node: Node) -> str:
    short = node.name.removeprefix(f"{node.scope}.")
    return short if short.partition(".")[0] == node.op.name else f"{short}: {node.op.name}"


def _border(node: Node, accesses: Iterable[Access]) -> str:
    """The colour of the first access that is not *now*; "" where all are."""
    kinds = (access.describe().split()[0] for access in accesses if access != NOW)
    kind = "feedback" if node.op.name == "feedback" else next(kinds, "")
    return ACCESS_COLOURS.get(kind, "")


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _scopes(graph: Graph) -> dict[Node, str]:
    """The scope of each node; weights, constants and states stand where all that reads them does."""
    scopes: dict[Node, str] = {}
    for node in reversed(graph.nodes):
        is_declared = node.op.name in ("parameter", "constant") or node.name.startswith(_STATE_PREFIX)
        readers = [scopes[user] for user in graph.users[node]]
        scopes[node] = node.scope or (_common_scope(readers) if is_declared else "")
    return scopes


def _common_scope(scopes: Iterable[str]) -> str:
    """The innermost scope that holds all of the scopes."""
    columns = zip(*(scope.split(".") for scope in scopes), strict=False)
    return ".".join(words[0] for words in takewhile(lambda words: len(set(words)) == 1, columns))
