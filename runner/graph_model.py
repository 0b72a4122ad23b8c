"""A model around a traced graph, which has no tokenizer and no special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..ir.graph import Graph
from ..models.model import Model
from ..models.spec import Config
from .inputs import table_size


def model_of_graph(graph: Graph, weights: Mapping[str, np.ndarray] | None, capacity: int) -> Model:
    """A model without tokenizer or special tokens, around a traced graph."""
    return Model(
        name=graph.name,
        path=Path(),
        config=Config(graph.name, {}),
        graph=graph,
        weights=weights if weights or graph.parameters else {},
        vocabulary_size=min((table_size(graph, port) for port in graph.signature.inputs), default=2**31),
        context_length=capacity,
        bos_id=None,
        eos_ids=(),
        tokenizer_path=None,
        add_bos=False,
        start_id=None,
        sampling={},
    )
