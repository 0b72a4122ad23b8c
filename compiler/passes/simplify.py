"""Removes ops that change nothing, and merges two rearrangements into one.

    %b = reshape(%a, shape=(4, 8))         →     (gone, if nothing else reads it)
    %c = reshape(%b, shape=(32,))                %c = reshape(%a, shape=(32,))

    %b = transpose(%a, permutation=(1, 0))  →     (gone)
    %c = contraction(%x, %b, "d,pd->p")          %c = contraction(%x, %a, "d,dp->p")

    %b = transpose(%a, permutation=(1, 0))  →     %d = cast(%a, dtype="f32")
    %c = cast(%b, dtype="f32")                    %c = transpose(%d, permutation=(1, 0))

    %b = concatenate(%x, %y, axis=0)        →     (gone, if nothing else reads it)
    %c = slice(%b, starts=(4,), limits=(8,))      %y, where that is just what the slice reads

    multiply(%x, 1.0)   add(%x, 0.0)   cast(%x, dtype="f32") of an f32   transpose(transpose(%x))   →   %x

Must not fire where the result would have another type: ``multiply(%x, 1.0)`` is ``%x`` only when the
constant did not broadcast it to a larger shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...ir.graph import Graph, Node, copy_node, make_node, rebuild
from ...ir.ops.linear import split_subscripts

Rule = Callable[[Node], Node | None]


def simplify(graph: Graph) -> Graph:
    """Applies the rules to each node, operands first, until none fires."""

    def visit(node: Node, sources: tuple[Node, ...]) -> Node:
        current = copy_node(node, sources)
        while (rule := RULES.get(current.op.name)) and (better := rule(current)) is not None:
            if better.type != current.type:
                break
            current = better
        return current

    return rebuild(graph, visit)


def _again(node: Node, source: Node, **params: object) -> Node:
    """The node with its first operand and parameters replaced, under its own name."""
    made = make_node(node.op, (source, *node.sources[1:]), {**node.params, **params})
    return replace(made, name=node.name, scope=node.scope, location=node.location)


def _reshape(node: Node) -> Node | None:
    (x,) = node.sources
    if x.type == node.type:
        return x
    return _again(node, x.sources[0]) if x.op.name == "reshape" else None


def _transpose(node: Node) -> Node | None:
    (x,) = node.sources
    order = node.params["permutation"]
    if order == tuple(range(len(order))):
        return x
    if x.op.name != "transpose":
        return None
    inner = x.params["permutation"]
    return _again(node, x.sources[0], permutation=tuple(inner[axis] for axis in order))


def _turned_before(node: Node) -> Node | None:
    """What is elementwise is done before its operands, all of them, are transposed in one way."""
    orders = {source.params["permutation"] for source in node.sources if source.op.name == "transpose"}
    if len(orders) != 1 or any(source.op.name != "transpose" for source in node.sources):
        return None
    made = make_node(node.op, (source.sources[0] for source in node.sources), node.params)
    before = replace(made, name=f"{node.name}.{node.op.name}", scope=node.scope, location=node.location)
    first = node.sources[0]
    turned = make_node(first.op, (before,), first.params)
    return replace(turned, name=node.name, scope=node.scope, location=node.location)


def _contraction(node: Node) -> Node | None:
    """Letters take the place of a transposed operand."""
    terms = list(split_subscripts(node.params["subscripts"]))
    sources = list(node.sources)
    for i, source in enumerate(sources):
        if source.op.name == "transpose":
            order = source.params["permutation"]
            terms[i] = "".join(terms[i][order.index(axis)] for axis in range(len(order)))
            sources[i] = source.sources[0]
    if tuple(sources) == node.sources:
        return None
    params = {"subscripts": f"{terms[0]},{terms[1]}->{terms[2]}"}
    made = make_node(node.op, sources, params)
    return replace(made, name=node.name, scope=node.scope, location=node.location)


def _slice(node: Node) -> Node | None:
    """A slice that reads one part of what was joined."""
    (x,) = node.sources
    if x.op.name != "concatenate":
        return None
    axis, start = x.params["axis"], 0
    wanted = (node.params["starts"][axis], node.params["limits"][axis])
    for part in x.sources:
        size = part.tensor.shape[axis]
        if not isinstance(size, int):
            return None
        if (start, start + size) == wanted and part.type == node.type:
            return part
        start += size
    return None


def _identity(node: Node) -> Node | None:
    return node.sources[0] if node.sources[0].type == node.type else None


def _is_scalar(node: Node, value: float) -> bool:
    return (
        node.op.name == "constant"
        and node.params["value"].size == 1
        and bool(np.all(node.params["value"] == value))
    )


def _cast(node: Node) -> Node | None:
    return _identity(node) or _turned_before(node)


def _multiply(node: Node) -> Node | None:
    return _neutral(1, either_side=True)(node) or _turned_before(node)


def _neutral(value: float, either_side: bool) -> Rule:
    def rule(node: Node) -> Node | None:
        x, y = node.sources
        if _is_scalar(y, value):
            return x
        return y if either_side and _is_scalar(x, value) else None

    return rule


RULES: dict[str, Rule] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "contraction": _contraction,
    "slice": _slice,
    "cast": _cast,
    "bitcast": _turned_before,
    "broadcast_to": _identity,
    "multiply": _multiply,
    "add": _neutral(0, either_side=True),
    "subtract": _neutral(0, either_side=False),
    "divide": _neutral(1, either_side=False),
}
