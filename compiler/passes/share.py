"""Computes equal streams once.

    %p = position()                                 %p = position()
    %a = subtract(%p, 1)                      →     %a = subtract(%p, 1)
    %q = position()                                 %c = add(%a, %a)
    %b = subtract(%q, 1)
    %c = add(%a, %b)

Must not fire on two feedbacks: each has a stream of its own behind it, even if they start equal.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from ...ir.graph import Graph, Node, copy_node, rebuild


def share(graph: Graph) -> Graph:
    """Replaces each node by the first one with the same op, operands and parameters."""
    first: dict[Hashable, Node] = {}

    def visit(node: Node, sources: tuple[Node, ...]) -> Node:
        current = copy_node(node, sources)
        if node.op.name in ("feedback", "input", "parameter"):
            return current
        key = (node.op.name, tuple(map(id, sources)), _hashable(node.params))
        return first.setdefault(key, current)

    return rebuild(graph, visit)


def _hashable(params: Any) -> Hashable:
    return tuple((name, _fingerprint(value)) for name, value in sorted(params.items()))


def _fingerprint(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    return value if isinstance(value, Hashable) else id(value)
