"""A graph as JSON: for other tools, and for artifacts that are loaded again.

    {"name": "llama", "inputs": [0], "parameters": [1, 2], "outputs": {"logits": 9}, "feedback": [],
     "nodes": [{"op": "take", "inputs": [{"node": 1, "access": "t"}, {"node": 0, "access": "t"}],
                "params": {"axis": 0}, "type": "f32[64]", "clock": "main",
                "name": "take", "scope": "", "location": ["llama.py", 7]}]}

Nodes refer to earlier nodes by index. A parameter that JSON has no word for is an object with one
key that says what it is: ``{"dim": "past8"}``, ``{"type": "f32[4]"}``, ``{"float": "nan"}``,
``{"graph": …}``, ``{"array": {"type": "f32[2]", "base64": …}}``.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from ..errors import GraphError, Location
from ..graph import Graph, Node, make_node
from ..ops import OPS
from ..types import DTYPES, Past, Size, TensorType, Whole, dtype_name, parse_dim, parse_type, show_type


def to_json(graph: Graph) -> dict[str, Any]:
    """The graph as dictionaries, lists, strings and numbers."""
    index = {node: position for position, node in enumerate(graph.nodes)}
    return {
        "name": graph.name,
        "inputs": [index[node] for node in graph.inputs],
        "parameters": [index[node] for node in graph.parameters],
        "outputs": {name: index[node] for name, node in graph.outputs.items()},
        "feedback": [[index[previous], index[value]] for previous, value in graph.feedback],
        "nodes": [_encode_node(node, index) for node in graph.nodes],
    }


def from_json(data: dict[str, Any]) -> Graph:
    """The inverse of ``to_json``; ``GraphError`` when the data is no graph.

    Types are inferred again and must be the ones in the data.
    """
    nodes: list[Node] = []
    try:
        for position, entry in enumerate(data["nodes"]):
            nodes.append(_decode_node(position, entry, nodes))
        return Graph(
            data["name"],
            tuple(nodes[i] for i in data["inputs"]),
            tuple(nodes[i] for i in data["parameters"]),
            {name: nodes[i] for name, i in data["outputs"].items()},
            tuple((nodes[previous], nodes[value]) for previous, value in data["feedback"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise GraphError(f"the JSON form of a graph is not complete: {error!r}") from None


def _encode_node(node: Node, index: dict[Node, int]) -> dict[str, Any]:
    return {
        "op": node.op.name,
        "inputs": [{"node": index[edge.source], "access": str(edge.access)} for edge in node.inputs],
        "params": {key: _encode(value) for key, value in node.params.items()},
        "type": show_type(node.type),
        "clock": node.clock,
        "name": node.name,
        "scope": node.scope,
        "location": [node.location.file, node.location.line] if node.location else None,
    }


def _decode_node(position: int, entry: dict[str, Any], nodes: list[Node]) -> Node:
    if entry["op"] not in OPS:
        raise GraphError(f"node {position}: no op is called {entry['op']!r}")
    node = make_node(
        OPS[entry["op"]],
        [nodes[operand["node"]] for operand in entry["inputs"]],
        {key: _decode(value) for key, value in entry["params"].items()},
        name=entry["name"],
        scope=entry["scope"],
        location=Location(*entry["location"]) if entry["location"] else None,
    )
    found = (show_type(node.type), node.clock, [str(edge.access) for edge in node.inputs])
    expected = (entry["type"], entry["clock"], [operand["access"] for operand in entry["inputs"]])
    if found != expected:
        raise GraphError(f"node {position} ({node.name}) is {found}, not {expected}")
    return node


def _encode(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_encode(entry) for entry in value]
    if isinstance(value, Graph):
        return {"graph": to_json(value)}
    if isinstance(value, TensorType):
        return {"type": str(value)}
    if isinstance(value, (Past, Whole, Size)):
        return {"dim": str(value)}
    if isinstance(value, np.ndarray):
        type_ = TensorType(value.shape, dtype_name(value.dtype))
        return {"array": {"type": str(type_), "base64": base64.b64encode(value.tobytes()).decode()}}
    if isinstance(value, np.generic):
        return _encode(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} has no JSON form")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(entry) for entry in value)
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "graph":
            return from_json(content)
        case "type":
            return parse_type(content)
        case "dim":
            return parse_dim(content)
        case "float":
            return float(content)
        case "array":
            type_ = parse_type(content["type"])
            data = base64.b64decode(content["base64"], validate=True)
            return np.frombuffer(data, DTYPES[type_.dtype]).reshape(type_.static_shape)
    raise ValueError(f"a parameter cannot be a {kind!r}")
