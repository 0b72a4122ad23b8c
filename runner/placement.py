"""Weights from files to where programs run."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.interface import Backend
from ..compiler.program import TRANSPOSED
from ..ir.errors import SystolicError
from ..ir.graph import Graph
from ..ir.ports import Port
from ..ir.types import DTYPES
from ..models.derived import DerivedWeights, TransposedWeights
from ..models.model import Model
from ..models.weights import Weights, aligned_empty
from .kept_weights import KeptWeights, kept_weights
from .programs import Report


def with_kept_weights(
    model: Model, backend: Backend, transposed: Collection[str], directory: Path | None
) -> Model:
    """The model with weights that are found in ``directory`` if an earlier process made them, and begin to be
    read now; beside them stand the matrices that are kept ``transposed``."""
    weights = model.weights
    if transposed and weights is not None:
        weights = TransposedWeights(weights, transposed)
    weights = kept_weights(weights, placed_parameters(model.graph, transposed), backend.alignment, directory)
    if isinstance(weights, (Weights, DerivedWeights, KeptWeights)):
        weights.read_ahead()
    return replace(model, weights=weights)


def placed_parameters(graph: Graph, transposed: Collection[str]) -> tuple[Port, ...]:
    """The parameters of a graph as they are placed, some of them ``transposed``."""

    def placed(port: Port) -> Port:
        if port.name not in transposed:
            return port
        type_ = port.tensor.with_shape(port.tensor.shape[::-1])
        return replace(port, name=port.name + TRANSPOSED, type=type_)

    return tuple(map(placed, graph.signature.parameters))


def place_weights(
    graph: Graph,
    weights: Mapping[str, np.ndarray] | None,
    backend: Backend,
    model: str,
    transposed: Collection[str] = (),
    report: Report | None = None,
) -> dict[str, Any]:
    """The parameters of a graph by name, some of them ``transposed``, where the backend wants them.

    They are read and converted on as many threads as there are cores, the largest first; NumPy lets others
    run meanwhile. ``report`` is told how many are placed, and of how many. Raises ``SystolicError`` for a
    model without weights, and for one that is missing or does not fit.
    """
    if weights is None:
        raise SystolicError(f"{model} has no weights, so it cannot run")
    ports = placed_parameters(graph, transposed)
    for node in ports:
        if node.name not in weights:
            raise SystolicError(f"the weights of {model} have no tensor {node.name}")

    def make(node: Port) -> tuple[str, np.ndarray]:
        if isinstance(weights, (Weights, DerivedWeights, KeptWeights)):
            array = weights.array(node.name, backend.alignment)
        else:
            array = weights[node.name]
        return node.name, _aligned(_checked(node, array), backend.alignment)

    largest_first = sorted(ports, key=lambda node: node.tensor.bytes, reverse=True)
    with ThreadPoolExecutor(os.cpu_count(), "place") as threads:
        made: dict[str, np.ndarray] = {}
        for name, array in threads.map(make, largest_first):
            made[name] = array
            if report is not None:
                report(len(made), len(ports))
    if isinstance(weights, KeptWeights):
        weights.keep(made, backend.alignment)
    return {node.name: backend.place(made[node.name]) for node in ports}


def _aligned(array: np.ndarray, alignment: int) -> np.ndarray:
    """The array where a backend can use it as it is. A backend would copy one that is not into small pages,
    from which weights are read 5 to 10 percent slower than from large ones."""
    if array.ctypes.data % alignment == 0 and array.flags.c_contiguous:
        return array
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def _checked(node: Port, array: np.ndarray) -> np.ndarray:
    found, type_ = np.asarray(array), node.tensor
    if found.shape != type_.static_shape or found.dtype != DTYPES[type_.dtype]:
        raise SystolicError(f"weight {node.name} must be {type_}, not {found.dtype} {list(found.shape)}")
    return found
