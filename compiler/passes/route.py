"""Multiplies by chosen matrices of a stack where they lie, instead of taking a copy of them first.

    %w = take(%experts, %chosen, axis=0)      →     %y = routed_contraction(%x, %experts, %chosen, "nd")
    %y = contraction(%x, %w, "d,knd->kn")

For one token the two are the same. A program has the tokens of a whole chunk: it would gather [positions,
k, n, d] for the first form, while for the second it reads the matrices of each expert once for all the
tokens that are sent there.

Must not fire on a stack that is not a parameter, on letters of another form (a sum over the experts that
were chosen, several rows for each of them), or on an index that does not change over time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...ir.graph import Graph, Node, copy_node, make_node, rebuild
from ...ir.ops import OPS
from ...ir.ops.linear import split_subscripts
from ...ir.types import DTYPES, FLOATS


def route(graph: Graph) -> Graph:
    """Replaces contractions with taken matrices by routed ones."""

    def visit(node: Node, sources: tuple[Node, ...]) -> Node:
        current = copy_node(node, sources)
        return _routed(current) or current if node.op.name == "contraction" else current

    return rebuild(graph, visit).with_unique_names()


def _routed(node: Node) -> Node | None:
    *terms, result = split_subscripts(node.params["subscripts"])
    for side in (0, 1):
        x, taken = node.sources[side], node.sources[1 - side]
        stack = _stack(taken)
        axes = stack and _axes(terms[side], terms[1 - side], result)
        if stack and axes:
            operands = (x, stack, _inside(taken.sources[1], stack, node))
            return _like(node, "routed_contraction", operands, node.name, axes=axes)
    return None


def _stack(taken: Node) -> Node | None:
    """The parameter [E, …, …] from whose first axis a stream took matrices, as it is kept."""
    if taken.op.name != "take" or taken.params["axis"] != 0 or not taken.sources[1].tensor.is_static:
        return None
    stack, index = taken.sources
    if stack.op.name == "cast" and stack.sources[0].tensor.dtype in FLOATS:
        (stack,) = stack.sources
    changes = index.clock is not None and stack.op.name == "parameter"
    return stack if changes and stack.tensor.rank == 3 and stack.tensor.is_static else None


def _axes(x_term: str, taken_term: str, result: str) -> str | None:
    """How the matrices are stored, if the letters are those of rows times matrices."""
    choices, matrix = taken_term[:-2], taken_term[-2:]
    for axes in ("nd", "dn"):
        d, n = matrix[axes.index("d")], matrix[axes.index("n")]
        if x_term in (choices + d, choices[:-1] + d) and result == choices + n:
            return axes
    return None


def _inside(index: Node, stack: Node, node: Node) -> Node:
    """The index, which ``take`` moves to the nearest inside; one that was found on an axis like that is."""
    count, origin = stack.tensor.static_shape[0], index
    while origin.op.name in ("reshape", "slice", "transpose"):
        origin = origin.sources[0]
    if origin.op.name in ("top_k", "argmax"):
        axis = origin.params.get("axis", -1)
        if origin.sources[0].tensor.shape[axis] <= count:  # type: ignore[operator]
            return index
    for op, limit in (("maximum", 0), ("minimum", count - 1)):
        value = np.array(limit, DTYPES[index.tensor.dtype])
        value.setflags(write=False)
        bound = _like(node, "constant", (), f"{node.name}.constant", value=value)
        index = _like(node, op, (index, bound), f"{node.name}.index")
    return index


def _like(node: Node, op: str, sources: tuple[Node, ...], name: str, **params: object) -> Node:
    """A node with the scope and the source line of another."""
    return replace(make_node(OPS[op], sources, params, scope=node.scope, location=node.location), name=name)
