"""Products of vectors with matrices that a kernel computes, side by side where they read the same vectors.

Merged projections without merged weights: the queries, keys and values of a layer, or the gate and the up
projection of its MLP, are one call, which spreads the rows of all matrices over the threads at once. Weights
stay where and as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...ir.graph import Node
from ...ir.ops.linear import split_subscripts
from ..stablehlo_text import Block, Results, Value
from . import Kernels
from .calls import Selected, call_kernel_for_many

LEAST_WEIGHTS = 1 << 12  # elements: below it, a call costs more than it saves


@dataclass(frozen=True)
class _Product:
    """y[..., n] = sum over d of x[..., d] · w[n, d], or w[d, n] if turned, and what w is kept as."""

    node: Node
    x: Node
    stored: tuple[Node, ...]
    turned: bool

    @property
    def kind(self) -> tuple[object, ...]:
        """What products that are computed together have in common."""
        groups = [kept.tensor.shape[1] for kept in self.stored[1:]]
        return self.x, self.stored[0].tensor.dtype, *groups, self.turned

    @property
    def is_ready(self) -> bool:
        """Whether the weights are there from the start."""
        return all(kept.op.kind == "source" for kept in self.stored)


def select_projections(nodes: Sequence[Node], kernels: Kernels) -> dict[Node, Selected]:
    """The products among ``nodes`` that a kernel computes."""
    products = [found for node in nodes if (found := _product(node)) is not None]
    together: dict[object, list[_Product]] = {}
    for product in products:
        together.setdefault(product.kind if product.is_ready else product, []).append(product)
    chosen: dict[Node, Selected] = {}
    for group in together.values():
        members = tuple(product.node for product in group)
        operands = (group[0].x, *(kept for product in group for kept in product.stored))
        selected = Selected(operands, _lowering(kernels, group), members)
        chosen |= dict.fromkeys(members, selected)
    return chosen


def _lowering(kernels: Kernels, group: Sequence[_Product]) -> Callable[..., Results]:
    target, types = kernels.target("project"), [product.node.tensor for product in group]
    attributes = f"turned = {str(group[0].turned).lower()}"

    def lower(block: Block, node: Node, *operands: Value) -> Results:
        return call_kernel_for_many(block, target, operands, types, attributes)

    return lower


def _product(node: Node) -> _Product | None:
    if node.op.name != "contraction":
        return None
    first, second, result = split_subscripts(node.params["subscripts"])
    for (x, matrix), x_term, w_term in (
        (node.sources, first, second),
        (node.sources[::-1], second, first),
    ):
        if len(w_term) != 2 or matrix.tensor.size < LEAST_WEIGHTS or x.tensor.dtype != "f32":
            continue
        stored = _stored(matrix)
        if w_term[1] == x_term[-1:] and result == x_term[:-1] + w_term[0]:
            return _Product(node, x, stored, False)
        if w_term[0] == x_term[-1:] and result == x_term[:-1] + w_term[1] and len(stored) == 1:
            return _Product(node, x, stored, True)
    return None


def _stored(matrix: Node) -> tuple[Node, ...]:
    """What a matrix [n, d] is kept as: itself, bf16, or integers [n, G, …] and their scales [n, G]; see
    ``models.quantised`` for the form of the latter."""
    if matrix.op.name == "cast" and matrix.sources[0].tensor.dtype == "bf16":
        return matrix.sources
    if matrix.op.name != "reshape" or matrix.sources[0].op.name != "multiply":
        return (matrix,)
    wide, spread = matrix.sources[0].sources
    integers = _integers(wide)
    if integers is None or spread.op.name != "reshape":
        return (matrix,)
    scales = spread.sources[0]
    is_grouped = scales.tensor.shape == integers.tensor.shape[:2] and scales.tensor.dtype == "f32"
    return (integers, scales) if is_grouped and wide.tensor.rank == 3 else (matrix,)


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
    if node.op.name != "constant" or node.params["value"].size != 1:
        return None
    return float(node.params["value"].reshape(()))
