"""How much the hidden state of each position is like an earlier one, as one more output of a model.

The hidden state is what the head reads: the stream whose product with weights is the logits. Its directions
at earlier positions are a history like any other, so a state for them is chosen, filled and copied with the
rest of what a model keeps.
"""

from __future__ import annotations

from dataclasses import replace

from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node
from ..ir.time import NOW
from ..ir.types import FLOATS
from .language import einsum, history, maximum, position, rsqrt, where
from .language import max as largest
from .recording import Trace, running_trace
from .stream import Stream

SIMILARITY = "similarity"  # the name of the output
_NOBODY = -2.0  # less than every cosine: the similarity of the first position
_SHORTEST = 1e-30  # squared length under which a vector has no direction


def with_similarity(graph: Graph, logits: str) -> Graph:
    """The graph with one more output, ``similarity`` f32[]: the largest cosine between the hidden state
    and that of an earlier position, -2 at the first.

    ``logits`` is the name of the output that the head makes. ``SystolicError`` as of ``hidden_state``.
    """
    hidden = hidden_state(graph, logits)
    token = running_trace.set(Trace(scopes=[SIMILARITY]))
    try:
        similarity = _similarity(Stream(hidden).reshape(-1).cast("f32"), str(hidden.clock)).node
    finally:
        running_trace.reset(token)
    return replace(graph, outputs={**graph.outputs, SIMILARITY: similarity}).with_unique_names()


def _similarity(hidden: Stream, clock: str) -> Stream:
    direction = hidden * rsqrt(maximum(einsum("d,d->", hidden, hidden), _SHORTEST))
    time = position(clock)
    cosines = einsum("d,pd->p", direction, history(direction))
    return largest(where(history(time) < time, cosines, _NOBODY))


def hidden_state(graph: Graph, logits: str) -> Node:
    """The stream whose product with weights is the logits, but for what a bias, a scale or a soft cap makes
    of them: the nearest that all of them is made of. ``SystolicError`` where there is none.

    A head may be several products of it, as one with adapters is.
    """
    clock, place = graph.outputs[logits].clock, {node: at for at, node in enumerate(graph.nodes)}
    made_of, is_product = {graph.outputs[logits]}, False
    while True:
        node = max(made_of, key=place.__getitem__)  # no other is made of it
        if is_product and len(made_of) == 1 and node.tensor.dtype in FLOATS and node.tensor.is_static:
            return node
        changing = [edge for edge in node.inputs if edge.source.clock == clock]
        if not changing or any(edge.access != NOW for edge in changing):
            raise SystolicError(
                f"the {logits} of {graph.name} are not the product of one stream with weights, so it has no "
                "hidden state whose likeness to earlier ones could be avoided"
            )
        is_product = is_product or node.op.name == "contraction"
        made_of = made_of - {node} | {edge.source for edge in changing}
