"""Contractions of vectors with a matrix, and what the matrix is kept as."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...ir.graph import Node
from ...ir.ops.linear import split_subscripts

LEAST_WEIGHTS = 1 << 12  # elements: below it, a choice costs more than it saves
PACKED = ("rows", "values", "places")  # what a matrix is kept as if its floats are packed


@dataclass(frozen=True)
class Product:
    """y[..., n] = sum over d of x[..., d] · w[n, d], or w[d, n] if turned, and what w is kept as."""

    node: Node
    x: Node
    matrix: Node
    stored: tuple[Node, ...]
    turned: bool

    @property
    def kind(self) -> tuple[object, ...]:
        """What products that are computed together have in common."""
        groups = [kept.tensor.shape[1:] for kept in self.stored[1:]]
        return self.x, self.weights, *groups, self.turned

    @property
    def is_ready(self) -> bool:
        """Whether the weights are there from the start."""
        return all(kept.op.kind == "source" for kept in self.stored)

    @property
    def rows(self) -> int:
        """How many vectors there are."""
        return math.prod(self.x.tensor.static_shape[:-1])

    @property
    def width(self) -> int:
        """How many products are added up for each result."""
        return self.x.tensor.static_shape[-1]

    @property
    def weights(self) -> str:
        """How the weights are kept, of ``table.WEIGHTS``."""
        if len(self.stored) == len(PACKED):
            return f"{self.stored[1].tensor.dtype}-packed"
        return {"i8": "int8", "u8": "int4"}.get(self.stored[0].tensor.dtype, self.stored[0].tensor.dtype)


def find_product(node: Node) -> Product | None:
    """The node as a product of f32 vectors with a matrix, if it is one and the matrix is not tiny."""
    if node.op.name != "contraction":
        return None
    first, second, result = split_subscripts(node.params["subscripts"])
    for (x, matrix), x_term, w_term in (
        (node.sources, first, second),
        (node.sources[::-1], second, first),
    ):
        if len(w_term) != 2 or x.tensor.dtype != "f32":
            continue
        if not matrix.tensor.is_static or matrix.tensor.size < LEAST_WEIGHTS:  # a past is no matrix
            continue
        stored = _stored(matrix)
        if w_term[1] == x_term[-1:] and result == x_term[:-1] + w_term[0]:
            return Product(node, x, matrix, stored, False)
        if w_term[0] == x_term[-1:] and result == x_term[:-1] + w_term[1] and len(stored) == 1:
            return Product(node, x, matrix, stored, True)
    return None


def _stored(matrix: Node) -> tuple[Node, ...]:
    """What a matrix [n, d] is kept as: itself, bf16, packed floats, that is rows, and values outside of them
    and their places, or integers [n, G, …] and their scales, f32[n, 1] or bf16[n, G]; see
    ``ir.ops.packing`` and ``models.quantised``."""
    floats = matrix
    if matrix.op.name == "cast" and matrix.sources[0].tensor.dtype == "bf16":
        (floats,) = matrix.sources
    if floats.op.name == "unpack":
        rows, places, values = floats.sources
        return rows, values, places
    if floats is not matrix:
        return (floats,)
    if matrix.op.name != "reshape" or matrix.sources[0].op.name != "multiply":
        return (matrix,)
    wide, spread = matrix.sources[0].sources
    integers = _integers(wide)
    if integers is None or spread.op.name != "reshape":
        return (matrix,)
    scales = spread.sources[0]
    if scales.op.name == "cast":
        (scales,) = scales.sources
    is_kept = scales.tensor.shape == integers.tensor.shape[:2]
    is_read = is_kept and scales.tensor.dtype == ("f32" if scales.tensor.shape[1] == 1 else "bf16")
    return (integers, scales) if is_read and wide.tensor.rank == 3 else (matrix,)


def _integers(wide: Node) -> Node | None:
    """What a stream of floats was made from: i8, or two numbers in each u8."""
    if wide.op.name == "cast" and wide.sources[0].tensor.dtype == "i8":
        return wide.sources[0]
    if wide.op.name != "subtract" or wide.sources[0].op.name != "concatenate" or scalar(wide.sources[1]) != 8:
        return None
    halves = [half.sources[0] for half in wide.sources[0].sources if half.op.name == "cast"]
    if [half.op.name for half in halves] != ["bitwise_and", "shift_right"]:
        return None
    packed = {half.sources[0] for half in halves}
    (byte,) = packed if len(packed) == 1 else (None,)
    return byte if byte is not None and byte.tensor.dtype == "u8" else None


def scalar(node: Node) -> float | None:
    """The number that a constant is; None for anything else."""
    if node.op.name != "constant" or node.params["value"].size != 1:
        return None
    return float(node.params["value"].reshape(()))
