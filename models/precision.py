"""Which weights fewer bits are for: matrices of products, and tables of which tokens choose rows.

Nearly all bytes are theirs. Everything else stays f32, whatever they are kept as: norms, biases, tables of
positions, depthwise kernels, what a recurrence fades by. There a rounded number scales or moves a whole
channel, in some cases an exponent, and the error is not averaged over a sum. So do the matrices by which
a mixture chooses its experts: a choice is right or wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..ir.graph import Graph, Node, make_node, postorder, replace_parameters
from ..ir.ops import OPS
from ..ir.types import FLOATS

_MOVES = ("cast", "reshape", "slice", "transpose")  # whose results are numbers of a parameter


def keep_weights_as(graph: Graph, dtype: str) -> Graph:
    """The same computation in f32 over matrices and tables that are kept as ``dtype``."""

    def kept(node: Node) -> tuple[Node, Node]:
        params = {"type": node.tensor.with_dtype(dtype)}
        parameter = make_node(OPS["parameter"], (), params, name=node.name, location=node.location)
        widened = make_node(OPS["cast"], (parameter,), {"dtype": node.tensor.dtype})
        return parameter, replace(widened, name=f"{node.name}.{node.tensor.dtype}")

    return replace_parameters(graph, {node: kept(node) for node in roundable(graph)})


def roundable(graph: Graph) -> tuple[Node, ...]:
    """The parameters that fewer bits are for."""
    choosing = _choosing(graph)
    found = []
    for node in graph.parameters:
        is_vector = sum(size != 1 for size in node.tensor.shape) < 2
        if node.tensor.dtype in FLOATS and not is_vector:
            readers = list(_readers(node, graph))
            is_read = any(_is_matrix(user, source) or _is_table(user, source) for user, source in readers)
            if is_read and not any(user in choosing for user, _ in readers):
                found.append(node)
    return tuple(found)


def _readers(parameter: Node, graph: Graph) -> Iterator[tuple[Node, Node]]:
    """What computes with a parameter, and what it reads: the parameter, or its numbers laid out otherwise."""
    reached = [parameter]
    for source in reached:
        for user in graph.users[source]:
            is_moved = user.op.name in _MOVES or (user.op.name == "take" and not _is_table(user, source))
            if is_moved and user.sources[0] is source:
                reached.append(user)
            else:
                yield user, source


def _is_matrix(user: Node, source: Node) -> bool:
    """Whether ``user`` sums over an axis of ``source`` for each place on another that nothing else has."""
    if user.op.name != "contraction":
        return False
    terms, result = user.params["subscripts"].split("->")
    at = user.sources.index(source)
    own = terms.split(",")[at]
    others = "".join(term for i, term in enumerate(terms.split(",")) if i != at)
    return any(letter not in result for letter in own) and any(
        letter in result and letter not in others for letter in own
    )


def _is_table(user: Node, source: Node) -> bool:
    """Whether ``user`` takes rows of ``source`` that tokens choose."""
    return user.op.name == "take" and user.sources[0] is source and user.sources[1].op.name == "input"


def _choosing(graph: Graph) -> frozenset[Node]:
    """Products whose results are what something is chosen by: the last ones before a ``top_k``."""
    chosen_by = [node.sources[0] for node in graph.nodes if node.op.name == "top_k"]
    order = postorder(chosen_by, lambda node: () if node.op.name == "contraction" else node.sources)
    return frozenset(node for node in order if node.op.name == "contraction")
