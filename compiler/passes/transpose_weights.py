"""Matrices that files have as [d, n] are kept as [n, d], d being what products sum over.

    %w: f32[d,n] = parameter()      →     %w.transposed: f32[n,d] = parameter()
                                          %w.again = transpose(%w.transposed, permutation=(1, 0))
    ... read as %w                        ... read as %w.again

``simplify`` brings the transposition into the letters of contractions. Must not fire on parameters that are
not named: which of them are read faster so is known by the backend.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ...ir.graph import Graph, Node, copy_node, make_node
from ...ir.ops import OPS
from ..program import TRANSPOSED


def transpose_weights(graph: Graph, names: Collection[str]) -> Graph:
    """The graph over the transposed ones of the matrices called ``names``."""
    kept: dict[Node, Node] = {}
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op.name == "parameter" and node.name in names:
            params = {"type": node.tensor.with_shape(node.tensor.shape[::-1])}
            name = node.name + TRANSPOSED
            kept[node] = make_node(OPS["parameter"], (), params, name=name, location=node.location)
            again = make_node(OPS["transpose"], (kept[node],), {"permutation": (1, 0)})
            new[node] = replace(again, name=f"{node.name}.again")
        else:
            new[node] = copy_node(node, tuple(new[source] for source in node.sources))
    return Graph(
        graph.name,
        graph.inputs,
        tuple(kept.get(node, node) for node in graph.parameters),
        {name: new[node] for name, node in graph.outputs.items()},
        tuple((new[previous], new[value]) for previous, value in graph.feedback),
    ).with_unique_names()
