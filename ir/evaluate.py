"""Runs a graph without time, op by op, with each op's own NumPy semantics: the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .graph import Graph, Node

Values = Mapping[str, np.ndarray]


def evaluate(graph: Graph, values: Values) -> dict[str, np.ndarray]:
    """The outputs by name, from the values of inputs and parameters by name.

    For graphs whose edges all read *now*; ``interpret`` runs graphs with time in them.
    """
    results: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op.name in ("input", "parameter"):
            results[node] = np.asarray(values[node.name])
        else:
            operands = [results[source] for source in node.sources]
            results[node] = node.op.numpy(*operands, **node.params)
    return {name: results[node] for name, node in graph.outputs.items()}
