"""Matrices kept as something smaller than their floats: a graph over its parts, and parts made of weights.

    %w: f32[n,d]              →     %w.part: …   for each part of the form
    ... read as %w                  ... read as what the form makes of the parts

A form says what a matrix [n, d] is kept as, d being what products sum over, and how floats are had from it.
What is not ``roundable``, or has no such form, stays as it is. Rows that are looked up (embeddings) are
read from the parts if the form can do that, else from the matrix itself, which then is kept, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from ..ir.graph import Graph, Node, copy_node, make_node
from ..ir.ops import OPS
from ..ir.types import TensorType
from .derived import DerivedWeights, transposed
from .precision import roundable
from .weights import Weights

LEAST_WEIGHTS = 1 << 12  # elements of a matrix; smaller ones stay as they are
_BLOCK = 1 << 18  # elements of which parts are made at a time

Blocks = Iterable[tuple[slice, np.ndarray]]  # some rows of a matrix, and where they are


class Form(Protocol):
    """What matrices are kept as."""

    @property
    def dtype(self) -> str:
        """What floats they are made from."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What its parts are called behind the name of a matrix, the largest first."""

    def types(self, rows: int, width: int) -> tuple[TensorType, ...] | None:
        """The parts of a matrix f32[rows, width]; None where it has none."""

    def parts(self, name: str, rows: int, width: int, blocks: Blocks) -> tuple[np.ndarray, ...]:
        """The parts of the matrix called ``name``."""

    def dense(self, make: Making, parts: Sequence[Node]) -> Node:
        """The matrix f32[rows, width] of its parts."""

    def chosen_rows(self, make: Making, parts: Sequence[Node], index: Node) -> Node | None:
        """Rows of the matrix; None if the form cannot choose."""


class Making:
    """Makes nodes that stand for one of a graph."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __call__(self, op: str, *sources: Node, **params: object) -> Node:
        node = self._node
        name = f"{node.name}.{op}"
        return make_node(OPS[op], sources, params, name=name, scope=node.scope, location=node.location)

    def number(self, value: np.generic) -> Node:
        """A constant."""
        return self("constant", value=np.asarray(value))


class CompactWeights(DerivedWeights):
    """The parameters of a graph with parts; these are made when they are asked for."""

    def __init__(
        self, weights: Mapping[str, np.ndarray], form: Form, turned: Mapping[str, bool], whole: Iterable[str]
    ) -> None:
        super().__init__(weights)
        self._form = form
        self._turned = turned  # the matrices with parts, and whether files keep them as [d, n]
        self._whole = frozenset(whole)  # those of them that are kept, too
        self._parts = {name + suffix: name for name in turned for suffix in form.suffixes}
        self._smaller: dict[str, np.ndarray] = {}  # parts of matrices whose largest has been asked for

    def is_made(self, name: str) -> bool:
        return name in self._parts

    def make(self, name: str) -> np.ndarray:
        if name not in self._smaller:
            matrix = self._parts[name]
            names = [matrix + suffix for suffix in self._form.suffixes]
            made = dict(zip(names, self._made(matrix), strict=True))
            self._smaller |= {small: made[small] for small in names[1:]}
            return made[name]
        return self._smaller[name]

    @property
    def way(self) -> tuple[object, ...]:
        return self._form, *sorted(self._turned.items())

    def _made(self, name: str) -> tuple[np.ndarray, ...]:
        """The parts of a matrix, some rows at a time, so that few matrices are in memory as floats."""
        blocks: Blocks
        if isinstance(self._weights, Weights) and not self._turned[name]:
            (rows, width), blocks = self._weights.shape(name), self._weights.blocks(name)
        else:
            turned = self._turned[name]
            matrix = transposed(self._weights, name) if turned else np.asarray(self._weights[name])
            rows, width = matrix.shape
            step = max(1, _BLOCK // width)
            places = (slice(at, at + step) for at in range(0, rows, step))
            blocks = ((place, matrix[place]) for place in places)
        return self._form.parts(name, rows, width, blocks)

    def __iter__(self) -> Iterator[str]:
        for name in self._weights:
            if name in self._turned:
                yield from (name + suffix for suffix in self._form.suffixes)
            if name not in self._turned or name in self._whole:
                yield name


def keep_compact(
    graph: Graph, weights: Mapping[str, np.ndarray] | None, form: Form
) -> tuple[Graph, Mapping[str, np.ndarray] | None]:
    """The graph over the parts of its matrices, and the weights that fit it."""
    rewriting = _Rewriting(graph, form)
    new = rewriting.graph()
    if weights is None:
        return new, None
    turned = {node.name: is_turned for node, is_turned in rewriting.turned.items()}
    return new, CompactWeights(weights, form, turned, set(turned) & {node.name for node in new.parameters})


class _Rewriting:
    """One pass over a graph, in which each matrix that has a form is read through its parts."""

    def __init__(self, graph: Graph, form: Form) -> None:
        self._graph = graph
        self._form = form
        self._new: dict[Node, Node] = {}
        self._kept: dict[Node, tuple[Node, ...]] = {}  # the parts of each matrix
        self._dense: dict[Node, Node] = {}  # what is made of them, by the matrix as f32
        self.turned: dict[Node, bool] = {}
        self._wide: dict[Node, Node] = {}  # matrices by what they are as f32, themselves or a cast
        self._looked_up: set[Node] = set()  # matrices of which something still reads rows
        for node in roundable(graph):
            wide = self._widened(node)
            is_turned = None if wide is None else _is_turned(wide, graph)
            if wide is None or is_turned is None or form.types(*_sizes(node, is_turned)) is None:
                continue
            self.turned[node], self._wide[wide] = is_turned, node

    def _widened(self, node: Node) -> Node | None:
        """The parameter as f32, if it is a matrix of the floats that the form is for."""
        type_, users = node.tensor, self._graph.users[node]
        if type_.rank != 2 or type_.dtype != self._form.dtype or type_.size < LEAST_WEIGHTS:
            return None
        if type_.dtype == "f32":
            return node
        return users[0] if [user.op.name for user in users] == ["cast"] else None

    def graph(self) -> Graph:
        graph, new = self._graph, self._new
        for node in graph.nodes:
            if node in self.turned:
                self._kept[node] = self._parameters(node)
            sources = tuple(node.sources)
            if node.op.name == "contraction":
                new[node] = copy_node(node, tuple(self._product_operand(source) for source in sources))
            elif node.op.name == "take" and sources[0] in self._wide:
                new[node] = self._rows(node)
            else:
                new[node] = copy_node(node, tuple(new[source] for source in sources))
        outputs = {name: new[node] for name, node in graph.outputs.items()}
        pairs = tuple((new[previous], new[value]) for previous, value in graph.feedback)
        return Graph(
            graph.name, graph.inputs, tuple(self._all_parameters()), outputs, pairs
        ).with_unique_names()

    def _all_parameters(self) -> Iterator[Node]:
        for node in self._graph.parameters:
            yield from self._kept.get(node, ())
            if node not in self.turned or node in self._looked_up:
                yield self._new[node]

    def _parameters(self, node: Node) -> tuple[Node, ...]:
        types = self._form.types(*_sizes(node, self.turned[node]))
        assert types is not None
        return tuple(
            make_node(OPS["parameter"], (), {"type": type_}, name=node.name + suffix, location=node.location)
            for type_, suffix in zip(types, self._form.suffixes, strict=True)
        )

    def _product_operand(self, source: Node) -> Node:
        """The source as f32, turned as files keep it."""
        if source not in self._wide:
            return self._new[source]
        if source not in self._dense:
            parameter, make = self._wide[source], Making(self._wide[source])
            matrix = self._form.dense(make, self._kept[parameter])
            if self.turned[parameter]:
                matrix = make("transpose", matrix, permutation=(1, 0))
            self._dense[source] = matrix
        return self._dense[source]

    def _rows(self, node: Node) -> Node:
        """Rows of a table that are looked up."""
        table, index = node.sources
        parts = self._kept[self._wide[table]]
        rows = self._form.chosen_rows(Making(node), parts, self._new[index])
        if rows is None:
            self._looked_up.add(self._wide[table])
            return copy_node(node, (self._new[table], self._new[index]))
        return replace(rows, name=node.name)


def _sizes(node: Node, is_turned: bool) -> tuple[int, int]:
    rows, width = node.tensor.static_shape
    return (width, rows) if is_turned else (rows, width)


def _is_turned(wide: Node, graph: Graph) -> bool | None:
    """Whether a matrix is kept as [d, n], d being what products sum over; None if it is no such matrix."""
    turns = set()
    for user in graph.users[wide]:
        if user.op.name == "contraction":
            term = user.params["subscripts"].split("->")[0].split(",")[user.sources.index(wide)]
            result = user.params["subscripts"].split("->")[1]
            summed = [letter not in result for letter in term]
            if sum(summed) != 1:
                return None
            turns.add(summed[0])
        elif user.op.name == "take" and user.params["axis"] == 0 and user.sources[0] is wide:
            turns.add(False)
        else:
            return None
    if len(turns) != 1 or not any(user.op.name == "contraction" for user in graph.users[wide]):
        return None
    return turns.pop()
