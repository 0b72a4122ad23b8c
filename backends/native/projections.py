"""Products of vectors with matrices by a kernel, side by side where they read the same vectors.

Merged projections without merged weights: the queries, keys and values of a layer, or the gate and the up
projection of its MLP, are one call, which spreads the rows of all matrices over the threads at once. Weights
stay where and as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.graph import Node
from ..contractions.products import Product
from ..stablehlo_text import Block, Results, Value
from . import Kernels
from .calls import Selected, call_kernel_for_many


def project(kernels: Kernels, group: Sequence[Product]) -> Selected:
    """Products of the same vectors with matrices that are kept alike, in one call."""
    target, types = kernels.target("project"), [product.node.tensor for product in group]
    attributes = f"turned = {str(group[0].turned).lower()}"

    def lower(block: Block, node: Node, *operands: Value) -> Results:
        return call_kernel_for_many(block, target, operands, types, attributes)

    operands = (group[0].x, *(kept for product in group for kept in product.stored))
    return Selected(operands, lower, tuple(product.node for product in group))
