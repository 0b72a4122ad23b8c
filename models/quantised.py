"""Weights kept as small integers: one scale for each row of a matrix, or for each group within a row.

    %w: f32[n,d]                    →     %q: i8[n,G,d/G]   %s: f32[n,G]
    ... read as %w                        ... read as reshape(cast(%q) * %s, (n, d))

A weight is its integer times the scale of its group: symmetric, rounded to nearest. Four-bit weights lie
two in a byte with 8 added to each; the lower halves of a group's bytes are its first half. Matrices that
are looked up (embeddings) are scaled after a row was chosen. What is no matrix, or no multiple of a group,
stays f32. Computed with as f32; ``backends/native`` reads the integers themselves for a few rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node, copy_node, make_node
from ..ir.ops import OPS
from ..ir.types import TensorType
from .weights import Weights, aligned_empty

LEAST_WEIGHTS = 1 << 12  # elements of a matrix; smaller ones stay as they are
VALUES, SCALES = ".integers", ".scales"  # what the two parameters of a matrix are called behind its name


@dataclass(frozen=True)
class Scheme:
    """``bits`` of an integer, and how many weights of a row share a scale (None: the whole row)."""

    bits: int
    group: int | None = None

    def groups(self, width: int) -> int:
        """How many scales a row of ``width`` weights has; 0 where it is no multiple of a group."""
        size = self.group or width
        return 0 if width % size or size * self.bits % 8 else width // size

    def quantise(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f32[n, d] as integers i8[n, G, d/G], or u8[n, G, d/G/2], and scales f32[n, G]."""
        rows, width = weights.shape
        grouped = weights.reshape(rows, self.groups(width), -1)
        most = np.float32(2 ** (self.bits - 1) - 1)
        scales = _largest(np.abs(grouped)) / most
        scaled = grouped / np.where(scales == 0, np.float32(1), scales)[..., None]
        np.clip(np.rint(scaled, out=scaled), -most, most, out=scaled)
        integers = scaled.astype(np.int8)
        return (_packed(integers) if self.bits == 4 else integers), scales

    def empty(self, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Room for the integers and scales of a matrix [n, d]."""
        groups = self.groups(width)
        packed = width // groups * self.bits // 8
        dtype = np.dtype(np.uint8 if self.bits == 4 else np.int8)
        integers = aligned_empty((rows, groups, packed), dtype)
        return integers, aligned_empty((rows, groups), np.dtype(np.float32))


def _largest(magnitudes: np.ndarray) -> np.ndarray:
    """The maximum over the last axis, halving it: NumPy is slow where it reduces few numbers at a time."""
    while magnitudes.shape[-1] > 1 and magnitudes.shape[-1] % 2 == 0:
        half = magnitudes.shape[-1] // 2
        magnitudes = np.maximum(magnitudes[..., :half], magnitudes[..., half:])
    return magnitudes.max(axis=-1)


def _packed(integers: np.ndarray) -> np.ndarray:
    raised = (integers + 8).astype(np.uint8)
    first, second = np.split(raised, 2, axis=-1)
    return first | second << 4


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme(8),
    "int8-32": Scheme(8, 32),
    "int4-32": Scheme(4, 32),
    "int4-64": Scheme(4, 64),
}


class QuantisedWeights(Mapping[str, np.ndarray]):
    """The parameters of a quantised graph; integers and scales are made when they are asked for."""

    def __init__(self, weights: Mapping[str, np.ndarray], scheme: Scheme, turned: Mapping[str, bool]) -> None:
        self._weights = weights
        self._scheme = scheme
        self._turned = turned  # the matrices that are quantised, and whether files keep them as [d, n]
        self._scales: dict[str, np.ndarray] = {}  # of matrices whose integers have been asked for

    def __getitem__(self, name: str) -> np.ndarray:
        matrix = name.removesuffix(VALUES).removesuffix(SCALES)
        if matrix == name or matrix not in self._turned:
            return self._weights[name]
        if name.endswith(SCALES) and matrix in self._scales:
            return self._scales[matrix]
        integers, self._scales[matrix] = self._quantised(matrix)
        return integers if name.endswith(VALUES) else self._scales[matrix]

    def is_in_place(self, name: str, alignment: int = 1) -> bool:
        """Whether a parameter can be used where it lies in its file: never what is rounded."""
        weights = self._weights
        return isinstance(weights, Weights) and name in weights and weights.is_in_place(name, alignment)

    @property
    def identity(self) -> tuple[object, ...] | None:
        """What the integers are made from; None where that is more than files."""
        made_from = self._weights.identity if isinstance(self._weights, Weights) else None
        return None if made_from is None else (self._scheme, *sorted(self._turned.items()), *made_from)

    def read_ahead(self) -> None:
        """Has the files read while something else is done; see ``Weights.read_ahead``."""
        if isinstance(self._weights, Weights):
            self._weights.read_ahead()

    def _quantised(self, matrix: str) -> tuple[np.ndarray, np.ndarray]:
        """Integers and scales, some rows at a time, so that the matrix never is in memory as floats."""
        if self._turned[matrix]:
            return self._scheme.quantise(np.asarray(self._weights[matrix], np.float32).T)
        if not isinstance(self._weights, Weights):
            return self._scheme.quantise(np.asarray(self._weights[matrix], np.float32))
        integers, scales = self._scheme.empty(*self._weights.shape(matrix))
        for rows, values in self._weights.blocks(matrix):
            integers[rows], scales[rows] = self._scheme.quantise(values)
        return integers, scales

    def __iter__(self) -> Iterator[str]:
        for name in self._weights:
            yield from (name + VALUES, name + SCALES) if name in self._turned else (name,)

    def __len__(self) -> int:
        return len(self._weights) + len(self._turned)


def quantise(
    graph: Graph, weights: Mapping[str, np.ndarray] | None, kind: str
) -> tuple[Graph, Mapping[str, np.ndarray] | None]:
    """The graph over integers and scales, and the weights that fit it; ``SystolicError`` for another kind."""
    if kind not in SCHEMES:
        raise SystolicError(f"weights cannot be kept as {kind!r}; known: {', '.join(SCHEMES)}")
    scheme = SCHEMES[kind]
    turned = {node.name: t for node in graph.parameters if (t := _is_turned(node, graph, scheme)) is not None}
    rewriting = _Rewriting(graph, scheme, turned)
    kept = None if weights is None else QuantisedWeights(weights, scheme, turned)
    return rewriting.graph(), kept


def _is_turned(node: Node, graph: Graph, scheme: Scheme) -> bool | None:
    """Whether a matrix is kept as [d, n], d being what products sum over; None if it is not quantised."""
    if node.tensor.rank != 2 or node.tensor.dtype != "f32" or node.tensor.size < LEAST_WEIGHTS:
        return None
    turns = set()
    for user in graph.users[node]:
        if user.op.name == "contraction":
            term = user.params["subscripts"].split("->")[0].split(",")[user.sources.index(node)]
            result = user.params["subscripts"].split("->")[1]
            summed = [letter not in result for letter in term]
            if sum(summed) != 1:
                return None
            turns.add(summed[0])
        elif user.op.name == "take" and user.params["axis"] == 0 and user.sources[0] is node:
            turns.add(False)
        else:
            return None
    if len(turns) != 1 or not any(user.op.name == "contraction" for user in graph.users[node]):
        return None
    (is_turned,) = turns
    width = node.tensor.static_shape[0 if is_turned else 1]
    return is_turned if scheme.groups(width) else None


class _Rewriting:
    """One pass over a graph, in which each quantised matrix is read through its integers."""

    def __init__(self, graph: Graph, scheme: Scheme, turned: Mapping[str, bool]) -> None:
        self._graph = graph
        self._scheme = scheme
        self._turned = turned
        self._kept: dict[Node, tuple[Node, Node]] = {}
        self._new: dict[Node, Node] = {}

    def graph(self) -> Graph:
        graph, new = self._graph, self._new
        for node in graph.nodes:
            if node.name in self._turned and node.op.name == "parameter":
                self._kept[node] = self._parameters(node)
                new[node] = self._dense(node, *self._kept[node])
            elif node.op.name == "take" and node.sources[0] in self._kept:
                new[node] = self._row(node)
            else:
                new[node] = copy_node(node, tuple(new[source] for source in node.sources))
        parameters = [p for node in graph.parameters for p in self._kept.get(node, (new[node],))]
        outputs = {name: new[node] for name, node in graph.outputs.items()}
        pairs = tuple((new[previous], new[value]) for previous, value in graph.feedback)
        return Graph(graph.name, graph.inputs, tuple(parameters), outputs, pairs).with_unique_names()

    def _parameters(self, node: Node) -> tuple[Node, Node]:
        rows, width = node.tensor.static_shape[:: -1 if self._turned[node.name] else 1]
        groups, packed = self._scheme.groups(width), self._scheme.bits == 4
        size = width // groups // (2 if packed else 1)
        types = TensorType((rows, groups, size), "u8" if packed else "i8"), TensorType((rows, groups), "f32")
        names = node.name + VALUES, node.name + SCALES
        first, second = (
            make_node(OPS["parameter"], (), {"type": type_}, name=name, location=node.location)
            for type_, name in zip(types, names, strict=True)
        )
        return first, second

    def _dense(self, node: Node, values: Node, scales: Node) -> Node:
        """The matrix as f32[n, d], turned as files keep it."""
        matrix = self._scaled(node, values, scales)
        return (
            self._make(node, "transpose", matrix, permutation=(1, 0)) if self._turned[node.name] else matrix
        )

    def _row(self, node: Node) -> Node:
        """The chosen rows of a table, scaled after the choice."""
        values, scales = self._kept[node.sources[0]]
        index = self._new[node.sources[1]]
        rows = [self._make(node, "take", part, index, axis=0) for part in (values, scales)]
        return replace(self._scaled(node, *rows), name=node.name)

    def _scaled(self, node: Node, values: Node, scales: Node) -> Node:
        """Integers [..., G, size] times scales [..., G] as f32[..., d]."""
        wide = self._unpacked(node, values) if self._scheme.bits == 4 else self._floats(node, values)
        shape = tuple(scales.tensor.shape)
        spread = self._make(node, "reshape", scales, shape=(*shape, 1))
        product = self._make(node, "multiply", wide, spread)
        *lead, groups, size = product.tensor.shape
        return self._make(node, "reshape", product, shape=(*lead, groups * size))  # type: ignore[operator]

    def _unpacked(self, node: Node, packed: Node) -> Node:
        lower = self._make(node, "bitwise_and", packed, self._byte(node, 15))
        upper = self._make(node, "shift_right", packed, self._byte(node, 4))
        halves = [self._floats(node, half) for half in (lower, upper)]
        joined = self._make(node, "concatenate", *halves, axis=packed.tensor.rank - 1)
        eight = self._make(node, "constant", value=np.float32(8).reshape(()))
        return self._make(node, "subtract", joined, eight)

    def _floats(self, node: Node, x: Node) -> Node:
        return self._make(node, "cast", x, dtype="f32")

    def _byte(self, node: Node, value: int) -> Node:
        return self._make(node, "constant", value=np.array(value, np.uint8))

    def _make(self, node: Node, op: str, *sources: Node, **params: object) -> Node:
        return make_node(
            OPS[op], sources, params, name=f"{node.name}.{op}", scope=node.scope, location=node.location
        )
