"""The length of the text, where what a model computes depends on it."""

from __future__ import annotations

import numpy as np

from ..compiler.language import max, position, whole
from ..compiler.stream import Stream
from ..ir.graph import Graph, Node, infer_again, make_node, rebuild
from ..ir.ops import OPS
from ..ir.types import TEXT


def text_length() -> Stream:
    """How many positions the text has that is read, i32[]: the same at each of them.

    A text that grows is another text. What was computed of the shorter one holds as long as the model
    computes both alike; then the longer one is read from its beginning.
    """
    return max(whole(position(TEXT).named("length")), axis=0) + 1


def with_text_length(graph: Graph, length: int) -> Graph:
    """What a model computes of texts of ``length`` positions: the graph asks no more how many there are."""

    def visit(node: Node, sources: tuple[Node, ...]) -> Node:
        if node.op.name == "whole" and node.sources[0].clock == TEXT:
            last = np.array([length - 1], np.int32)
            last.setflags(write=False)
            return make_node(OPS["constant"], (), {"value": last}, name=node.name, scope=node.scope)
        return infer_again(node, sources) if sources != node.sources else node

    return rebuild(graph, visit)
