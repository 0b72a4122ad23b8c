"""Weights from files to where programs run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..backends.interface import Backend
from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node
from ..ir.types import DTYPES
from ..models.quantised import QuantisedWeights
from ..models.weights import Weights


def read_ahead(weights: Mapping[str, np.ndarray] | None) -> None:
    """Has the files of weights read while something else is done."""
    if isinstance(weights, (Weights, QuantisedWeights)):
        weights.read_ahead()


def place_weights(
    graph: Graph, weights: Mapping[str, np.ndarray] | None, backend: Backend, model: str
) -> dict[str, Any]:
    """The parameters of a graph by name, where the backend wants them.

    They are read and converted on as many threads as there are cores, the largest first; NumPy lets others
    run meanwhile. Raises ``SystolicError`` for a model without weights, and for one that is missing or does
    not fit.
    """
    if weights is None:
        raise SystolicError(f"{model} has no weights, so it cannot run")
    for node in graph.parameters:
        if node.name not in weights:
            raise SystolicError(f"the weights of {model} have no tensor {node.name}")

    def place(node: Node) -> tuple[str, Any]:
        if isinstance(weights, Weights):
            array = weights.array(node.name, backend.alignment)
        else:
            array = weights[node.name]
        return node.name, backend.place(_checked(node, array))

    largest_first = sorted(graph.parameters, key=lambda node: node.tensor.bytes, reverse=True)
    with ThreadPoolExecutor(os.cpu_count(), "place") as threads:
        placed = dict(threads.map(place, largest_first))
    return {node.name: placed[node.name] for node in graph.parameters}


def _checked(node: Node, array: np.ndarray) -> np.ndarray:
    found, type_ = np.asarray(array), node.tensor
    if found.shape != type_.static_shape or found.dtype != DTYPES[type_.dtype]:
        raise SystolicError(f"weight {node.name} must be {type_}, not {found.dtype} {list(found.shape)}")
    return found
