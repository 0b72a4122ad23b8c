"""A graph in blocks: repeated layers once, and scopes kept together. See ``layers`` for what repeats."""

from __future__ import annotations

from collections.abc import Collection

from ..graph import Graph, Node
from .grouping import Group, together
from .layers import NUMBERED, Block, Family
from .text import inline_literals


def fold(graph: Graph, expand: Collection[str] = ()) -> tuple[Block, ...]:
    """The nodes of a graph in blocks, each after what it reads; inputs and literals are in none.

    Scopes that ``expand`` names, and those around and inside them, are not repeated.
    """
    hidden = {*graph.inputs, *graph.parameters, *inline_literals(graph)}
    nodes = [node for node in graph.nodes if node not in hidden]
    if any("{" in node.name for node in graph.nodes):  # would be mistaken for a pattern
        return _arrange(nodes, [])
    prefixes = dict.fromkeys(prefix for node in nodes if (prefix := _prefix(node.scope)) is not None)
    repeats = [block for prefix in prefixes for block in Family(graph, prefix, nodes, expand).repeats()]
    return _arrange(nodes, repeats)


def _prefix(scope: str) -> str | None:
    """What stands before the first number of a scope."""
    match = NUMBERED.fullmatch(scope)
    return match[1][:-1] if match and match[1] else None


def _arrange(nodes: list[Node], repeats: list[Block]) -> tuple[Block, ...]:
    group_of: dict[Node, Group] = {node: node.scope or node for node in nodes}
    group_of |= {node: block for block in repeats for node in block.every_node}
    blocks: list[Block] = []
    loose: list[Node] = []
    for group in together(nodes, group_of):
        repeat = group_of[group[0]]
        if isinstance(repeat, Block):
            blocks += [Block(tuple(loose)), repeat] if loose else [repeat]
            loose = []
        else:
            loose += group
    return (*blocks, Block(tuple(loose))) if loose else tuple(blocks)
