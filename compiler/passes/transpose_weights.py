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

from ...ir.graph import Graph, Node, make_node, replace_parameters
from ...ir.ops import OPS
from ..program import TRANSPOSED


def transpose_weights(graph: Graph, names: Collection[str]) -> Graph:
    """The graph over the transposed ones of the matrices called ``names``."""

    def transposed(node: Node) -> tuple[Node, Node]:
        params = {"type": node.tensor.with_shape(node.tensor.shape[::-1])}
        name = node.name + TRANSPOSED
        parameter = make_node(OPS["parameter"], (), params, name=name, location=node.location)
        again = make_node(OPS["transpose"], (parameter,), {"permutation": (1, 0)})
        return parameter, replace(again, name=f"{node.name}.again")

    instead = {node: transposed(node) for node in graph.parameters if node.name in names}
    return replace_parameters(graph, instead).with_unique_names()
