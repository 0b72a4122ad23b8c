"""Which nodes of a program are matrix products that a kernel of our own can compute on a TPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..compiler.cost.kernels import KernelTiling, Product
from ..ir.graph import Node
from ..ir.ops.linear import split_subscripts
from ..ir.types import TensorType
from .native.selection import Selected
from .stablehlo_text import Block, Value


@dataclass(frozen=True)
class TpuKernels:
    """The products that kernels of ours compute, and with which tiles."""

    tilings: Mapping[Product, KernelTiling]


def products_of(nodes: Iterable[Node]) -> dict[Node, Product]:
    """The contractions of values with a matrix that is kept in one piece, as products."""
    found = ((node, _product(node)) for node in nodes if node.op.name == "contraction")
    return {node: product[0] for node, product in found if product is not None}


def select_products(nodes: Sequence[Node], kernels: TpuKernels) -> dict[Node, Selected]:
    """The nodes that kernels compute, and how they are written."""
    chosen = {}
    for node in nodes:
        found = _product(node) if node.op.name == "contraction" else None
        if found is not None and found[0] in kernels.tilings:
            product, x, matrix = found
            chosen[node] = _selected(product, kernels.tilings[product], x, matrix)
    return chosen


def _selected(product: Product, tiling: KernelTiling, x: Node, matrix: Node) -> Selected:
    from .tpu_kernels import kernel_operation  # Pallas takes a second to import

    def lower(block: Block, node: Node, x: Value, matrix: Value) -> Value:
        rows = block.reshape(x, (product.m, product.k))
        operation = kernel_operation(product, tiling, rows.name, matrix.name, node.name or "product")
        type_ = TensorType((product.m, product.n), product.result)
        return block.reshape(block.call(operation, (rows, matrix), type_), node.tensor.static_shape)

    return Selected((x, matrix), lower)


def _product(node: Node) -> tuple[Product, Node, Node] | None:
    """y[…, n] = sum over k of x[…, k] · w[n, k], or w[k, n]; x, and the matrix as it is kept."""
    first, second, result = split_subscripts(node.params["subscripts"])
    sides = ((node.sources, first, second), (node.sources[::-1], second, first))
    for (x, matrix), x_term, w_term in sides:
        is_transposed = w_term[1:] == x_term[-1:]
        column = w_term[:1] if is_transposed else w_term[1:]
        fits = len(w_term) == 2 and x_term[-1:] in w_term and result == x_term[:-1] + column
        if not fits or x.tensor.dtype != "f32" or len(set(x_term)) != len(x_term) or column in x_term:
            continue
        kept = matrix.sources[0] if matrix.op.name == "cast" else matrix
        if kept.op.name != "parameter" or kept.tensor.dtype not in ("bf16", "f32"):
            continue
        m, k = math.prod(x.tensor.static_shape[:-1]), int(x.tensor.static_shape[-1])
        n = matrix.tensor.size // k
        return Product(m, k, n, "f32", kept.tensor.dtype, "f32", is_transposed), x, kept
    return None
