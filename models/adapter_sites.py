"""Which weights of a graph an adapter changes: from the modules that its files name to parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ..compiler.branches import Site
from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node
from ..ir.ops.linear import split_subscripts
from ..ir.types import TensorType
from .peft import Adapter, Factors
from .weights import Naming, StoredTensor, renaming, stored_parts


@dataclass(frozen=True)
class Target:
    """Weights that an adapter changes, as checkpoints keep them.

    ``stored`` is the tensor in files, ``site`` the parameter that it is, or is ``expert`` of, and what reads
    it; ``alias`` is the name that the head has in files where it shares its weights with an embedding
    (``is_shared``). ``transposed`` is for weights stored as [in, out].
    """

    stored: str
    site: Site
    type: TensorType
    alias: str = ""
    is_shared: bool = False
    expert: int | None = None
    transposed: bool = False


class Sites:
    """The parameters of a graph, by the names that files have for them."""

    def __init__(self, graph: Graph, naming: Naming) -> None:
        self._graph = graph
        self._naming = naming
        self._parameters = {node.name: node for node in graph.parameters}
        self._owner: dict[str, tuple[str, TensorType]] = {}
        for name, node in self._parameters.items():
            for stored, type_ in stored_parts(name, node.tensor).items():
                self._owner[stored] = name, type_
        self._rename = renaming({name: type_ for name, (_, type_) in self._owner.items()}, naming)

    def of_factors(self, adapter: Adapter, module: str, factors: Factors) -> Target:
        """The matrix of a module; ``SystolicError`` where the model has none, or one of another shape."""
        target = self._target(adapter, f"{module}.weight", "take" if factors.is_table else "contraction")
        shape = tuple(target.type.static_shape)
        if len(shape) != 2:
            raise SystolicError(
                f"{adapter.path}: {module} is {target.type} here, and an adapter needs a matrix"
            )
        transposed = factors.is_table or self._is_transposed(target, adapter)
        wanted = factors.shape[::-1] if transposed else factors.shape
        if shape != wanted:
            raise SystolicError(
                f"{adapter.path}: the factors of {module} make {list(wanted)}, not {list(shape)}"
            )
        return Target(**{**vars(target), "transposed": transposed})

    def of_tensor(self, adapter: Adapter, name: str, tensor: StoredTensor) -> Target:
        """The weights that a whole tensor takes the place of; ``SystolicError`` as in ``of_factors``."""
        target = self._target(adapter, name, "take")
        if tensor.shape != target.type.static_shape:
            raise SystolicError(
                f"{tensor.path}: tensor {name} has shape {list(tensor.shape)}, but the model has "
                f"{list(target.type.static_shape)}"
            )
        if target.is_shared:
            return target
        readers = {node.op.name for node, _ in self._readers.get(target.site.parameter, ())}
        reader = readers.pop() if len(readers) == 1 and len(target.type.shape) == 2 else ""
        reader = reader if reader in ("take", "contraction") else ""
        return Target(**{**vars(target), "site": target.site._replace(reader=reader)})

    def _target(self, adapter: Adapter, name: str, reader: str) -> Target:
        stored, alias = self._rename(name), ""
        if stored not in self._owner and stored in self._naming.tied:
            stored, alias, reader = self._naming.tied[stored], stored, "contraction"
        if stored not in self._owner:
            raise SystolicError(f"{adapter.path}: changes {name}, which the model does not have")
        parameter, type_ = self._owner[stored]
        readers = {node.op.name for node, _ in self._readers.get(parameter, ())}
        is_shared = {"take", "contraction"} <= readers and parameter == stored
        if is_shared and not alias:
            tied = (other for other, meant in self._naming.tied.items() if meant == parameter)
            alias = next(tied, f"{parameter}.head")
        expert = None if parameter == stored else _expert(parameter, stored)
        return Target(stored, Site(parameter, reader), type_, alias, is_shared, expert)

    def _is_transposed(self, target: Target, adapter: Adapter) -> bool:
        """Whether the first axis of a matrix is summed, which is that of what the module reads."""
        for node, side in self._readers.get(target.site.parameter, ()):
            if node.op.name == "contraction":
                *terms, result = split_subscripts(node.params["subscripts"])
                first, second = terms[side][-2], terms[side][-1]
                if (first in result) != (second in result):
                    return second in result
        return adapter.fan_in_fan_out

    @cached_property
    def _readers(self) -> dict[str, list[tuple[Node, int]]]:
        """For each parameter what reads it, and as which operand: behind a cast or chosen matrices of it."""
        found: dict[str, list[tuple[Node, int]]] = {}
        for node in self._graph.nodes:
            for side, source in enumerate(node.sources):
                for origin in _origins(source):
                    if origin.op.name == "parameter" and node.op.name != "cast":
                        found.setdefault(origin.name, []).append((node, side))
        return found


def _origins(node: Node) -> Iterator[Node]:
    """The stream, and what it is a cast of, or matrices of experts chosen from."""
    yield node
    if node.op.name == "take" and node.sources[0].tensor.rank == 3:
        (node, _) = node.sources
        yield node
    if node.op.name == "cast":
        yield node.sources[0]


def _expert(parameter: str, stored: str) -> int:
    start = parameter.index("*")
    return int(stored[start:].split(".")[0])
