"""Tokens behind the vocabulary whose embeddings are given apart from the table.

    %x = take(%table, %token, axis=0)    →     %own = take(%table, %token, axis=0)
                                               %learned = take(%prompts, subtract(%token, 512), axis=0)
                                               %x = where(less(%token, 512), %own, %learned)

What reads the embedding sees no difference, so a learned prompt is a few more token ids, and needs no other
kind of input. Must not fire on tables that are looked up by anything but the token itself.
"""

from __future__ import annotations

from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node
from .language import parameter, take, where
from .patch import patch
from .stream import Stream


def add_learned_tokens(
    graph: Graph, name: str, *, first: int, count: int, behind_scale: bool = False
) -> tuple[Graph, int]:
    """The graph for ``count`` more tokens, from ``first`` on, with embeddings in the parameter ``name``; and
    how wide these are.

    With ``behind_scale`` they take the place of the embedding times what it is multiplied by. Raises
    ``SystolicError`` for a graph that does not look its tokens up in one table.
    """
    token, *others = (node for node in graph.inputs if node.clock is not None)
    found = [node for node in graph.users.get(token, ()) if node.op.name == "take"]
    if others or len(found) != 1 or found[0].sources[1] is not token or found[0].tensor.rank != 1:
        raise SystolicError(
            f"{graph.name} does not look up its tokens in one table, so no prompt can be learned"
        )
    embedded = _scaled(graph, found[0]) if behind_scale else found[0]
    (width,) = embedded.tensor.static_shape

    def change(own: Stream) -> Stream:
        learned = take(parameter(name, (count, width)), Stream(token) - first)
        return where(Stream(token) < first, own, learned.cast(own.dtype))

    return patch(graph, [embedded], change), width


def _scaled(graph: Graph, table: Node) -> Node:
    """What the embedding is multiplied by a constant to; itself where it is not."""
    (user,) = graph.users[table][:1]
    others = [source for source in user.sources if source is not table]
    is_scale = user.op.name == "multiply" and len(others) == 1 and others[0].op.name == "constant"
    return user if is_scale and len(graph.users[table]) == 1 else table
