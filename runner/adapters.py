"""Which adapter each row of a program speaks with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..compiler.program import CHOICE
from ..ir.errors import SystolicError
from ..ir.graph import Graph
from ..models.model import AdapterChoice, Model

NONE = AdapterChoice()


def adapter_choice(model: Model, name: str | None) -> AdapterChoice:
    """What an adapter is chosen by; ``SystolicError`` lists those that there are."""
    if name is None:
        return NONE
    if name not in model.adapters:
        known = ", ".join(model.adapters) or "none: give compile(…, adapters={name: directory})"
        raise SystolicError(f"{model.name} has no adapter {name!r}; it has {known}")
    return model.adapters[name]


def adapter_inputs(graph: Graph, rows: int, numbers: Mapping[int, int]) -> dict[str, np.ndarray]:
    """The input that every program takes, by the number of each row's adapter; nothing without adapters."""
    if all(port.name != CHOICE or port.clock is not None for port in graph.signature.inputs):
        return {}
    chosen = np.zeros(rows, np.int32)
    for row, number in numbers.items():
        chosen[row] = number
    return {CHOICE: chosen}


def adapters_of(adapter: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    """The name of each prompt's adapter, from one for all or a list; ``SystolicError`` for another length."""
    if adapter is None or isinstance(adapter, str):
        return [adapter] * count
    if len(adapter) != count:
        raise SystolicError(f"{len(adapter)} adapters are named for {count} prompts")
    return list(adapter)
