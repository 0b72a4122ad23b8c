"""Adapters merged into the weights of a checkpoint, each tensor when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.branches import untie
from ..ir.errors import SystolicError
from ..ir.graph import Graph
from .adapter_sites import Sites, Target
from .peft import F32, Adapter, Factors
from .weights import Naming, StoredTensor, renaming, stored_parts

Stored = dict[str, StoredTensor]


@dataclass(frozen=True, eq=False)
class MergedTensor(StoredTensor):
    """A tensor of a file with an adapter merged into it; nothing is computed before it is asked for."""

    base: StoredTensor
    factors: Factors
    transposed: bool

    def array(self, dtype: np.dtype, alignment: int = 1) -> np.ndarray:
        """The sum, computed in f32 and rounded once, anew at each call, so that only the caller keeps it."""
        return self.factors.added_to(self.base.array(F32), transposed=self.transposed).astype(
            dtype, copy=False
        )

    def is_in_place(self, dtype: np.dtype, alignment: int = 1) -> bool:
        """Never: the sum is nowhere yet."""
        return False

    @property
    def identity(self) -> None:
        """None: the values are those of several files."""
        return None

    def blocks(self, dtype: np.dtype) -> Iterator[tuple[Any, np.ndarray]]:
        """All values at once: the adapter is added to the whole."""
        yield ..., self.array(dtype)


def merge(
    graph: Graph, stored: Mapping[str, StoredTensor], naming: Naming, adapters: Sequence[Adapter]
) -> tuple[Graph, Stored]:
    """The checkpoint with adapters merged into it, one after the other, under the parameters' names.

    A head that shares its weights with an embedding of which only one is changed has weights of its own in
    the graph that is given back. Raises ``SystolicError`` for what does not fit.
    """
    types = {n: t for node in graph.parameters for n, t in stored_parts(node.name, node.tensor).items()}
    rename = renaming(types, naming)
    found = {rename(name): tensor for name, tensor in stored.items()}
    for adapter in adapters:
        if adapter.prompt is not None:
            raise SystolicError(
                f"{adapter.path}: is a learned prompt, which cannot be merged into weights; give it to "
                "compile(model, adapters={…}) and choose it for each text"
            )
        require_same_base(adapter, found, rename)
        for name, tensor in adapter.tensors.items():
            graph, place = _separated(graph, Sites(graph, naming).of_tensor(adapter, name, tensor), found)
            found[place] = tensor
        for module, factors in adapter.factors.items():
            target = Sites(graph, naming).of_factors(adapter, module, factors)
            graph, place = _separated(graph, target, found)
            if place not in found:
                raise SystolicError(f"{adapter.path}: changes {module}, whose weights the checkpoint lacks")
            base = found[place]
            found[place] = MergedTensor(
                base.path, base.data, base.shape, base.dtype, base, factors, target.transposed
            )
    return graph, found


def _separated(graph: Graph, target: Target, found: Stored) -> tuple[Graph, str]:
    """The graph in which what the target does not read keeps its weights, and the name of the target's."""
    if not target.is_shared:
        return graph, target.stored
    if target.stored in found:
        found[target.alias] = found[target.stored]
    graph = untie(graph, target.site.parameter, "contraction", target.alias)
    return graph, target.alias if target.site.reader == "contraction" else target.stored


def require_same_base(
    adapter: Adapter, found: Mapping[str, StoredTensor], rename: Callable[[str], str]
) -> None:
    """``SystolicError`` where the adapter has a copy of weights of its model that are not these."""
    for name, tensor in adapter.bases.items():
        own = found.get(rename(name))
        if own is None or own.shape != tensor.shape or not np.array_equal(own.array(F32), tensor.array(F32)):
            raise SystolicError(f"{tensor.path}: was trained beside other {name} than that of this model")
