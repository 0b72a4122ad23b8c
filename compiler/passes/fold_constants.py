"""Computes what does not depend on weights, inputs or time.

    %scale = sqrt(64.0)            →     8.0
    %half = divide(1.0, %scale)          0.125

Must not fire on a result that is larger than what it is made of (a broadcast constant stays small),
nor on anything that has a clock.
"""

from __future__ import annotations

import numpy as np

from ...ir.graph import Graph, Node, copy_node, make_node, rebuild
from ...ir.ops import OPS

LARGEST = 1 << 16  # elements; a bigger table is better computed where it is used


def fold_constants(graph: Graph) -> Graph:
    """Replaces ops on constants by their values."""
    return rebuild(graph, _fold)


def _fold(node: Node, sources: tuple[Node, ...]) -> Node:
    if not sources or node.clock is not None or any(s.op.name != "constant" for s in sources):
        return copy_node(node, sources)
    if node.op.kind not in ("elementwise", "tensor") or not node.tensor.is_static:
        return copy_node(node, sources)
    operands = [source.params["value"] for source in sources]
    if node.tensor.size > min(LARGEST, max(operand.size for operand in operands)):
        return copy_node(node, sources)
    with np.errstate(all="ignore"):  # an infinity is a value like any other
        value = np.array(node.op.numpy(*operands, **node.params), copy=True)
    value.setflags(write=False)
    return make_node(
        OPS["constant"], (), {"value": value}, name=node.name, scope=node.scope, location=node.location
    )
