"""Choices of weights that live side by side: an input without a clock says which one a text is computed with.

    %y = contraction(%x, %w, "d,nd->n")     →     %a = take(%w.right, %adapter, axis=0)      f32[r,d]
                                                  %b = take(%w.left, %adapter, axis=0)       f32[n,r]
                                                  %h = contraction(%x, %a, "d,rd->r")
                                                  %y = add(contraction(%x, %w, "d,nd->n"),
                                                           contraction(%h, %b, "r,nr->n"))

The stacks hold one pair for each choice, so that rows of one batch are computed with different ones, and
another choice is another number and no other program. Rows of a table and matrices of experts are chosen by
an index: those of choice c begin at c times their number. Whole weights are stacked as they are.

Must not fire on what reads the weights in any other way: that is an error which names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node, copy_node, make_node, postorder
from ..ir.ops import OPS
from ..ir.ops.linear import split_subscripts
from ..ir.types import TensorType
from .language import constant, einsum, maximum, minimum, parameter, take
from .program import CHOICE
from .recording import Trace, running_trace
from .stream import Stream, emit, reshape


class Site(NamedTuple):
    """Where weights are read: the parameter, and the op that reads it (take or contraction; "" is all)."""

    parameter: str
    reader: str = ""


@dataclass(frozen=True)
class LowRank:
    """Choices that add left @ right to a matrix [a, b]: parameters ``name``.left f32[choices, a, rank] and
    ``name``.right f32[choices, rank, b].

    For experts [E, a, b] and for rows of a table (only on the left) the first two axes are one.
    """

    name: str
    rank: int


@dataclass(frozen=True)
class Whole:
    """Choices of whole weights: parameter ``name`` [count, …], of which choice c is number ``slots[c]``."""

    name: str
    slots: tuple[int, ...]

    @property
    def count(self) -> int:
        return max(self.slots) + 1


Branch = LowRank | Whole


def add_branches(graph: Graph, branches: Mapping[Site, Branch], choices: int) -> Graph:
    """The graph whose weights at some sites depend on the input ``adapter``, one of ``choices``.

    Weights that nothing reads any more are no parameters of it. Raises ``SystolicError`` for a site that
    nothing reads, or that is read in a way that has no such form.
    """
    choice = make_node(OPS["input"], (), {"type": TensorType((), "i32"), "clock": None}, name=CHOICE)
    rewriting = _Rewriting(branches, Stream(choice), choices)
    running = Trace(parameters={node.name: node for node in graph.parameters})
    token = running_trace.set(running)
    new: dict[Node, Node] = {}
    try:
        for node in graph.nodes:
            current = copy_node(node, tuple(new[source] for source in node.sources))
            running.scopes[:] = [f"{node.name}.adapter"]
            changed = rewriting.changed(node, current)
            new[node] = current if changed is None else _in_place(changed, node)
    finally:
        running_trace.reset(token)
    _require_all(branches, rewriting.used, graph)
    outputs = {name: new[node] for name, node in graph.outputs.items()}
    pairs = tuple((new[previous], new[value]) for previous, value in graph.feedback)
    needed = set(postorder([*outputs.values(), *(n for pair in pairs for n in pair)], lambda n: n.sources))
    read = tuple(node for node in running.parameters.values() if node in needed)
    inputs = tuple(new[node] for node in graph.inputs)
    return Graph(graph.name, (*inputs, choice), read, outputs, pairs).with_unique_names()


def _in_place(changed: Node, node: Node) -> Node:
    return replace(changed, name=node.name, scope=node.scope, location=node.location)


def _require_all(branches: Mapping[Site, Branch], used: set[Site], graph: Graph) -> None:
    other = {
        weights.name
        for node in graph.nodes
        if node.op.name not in ("take", "contraction", "cast")
        for weights in (_parameter_of(source) for source in node.sources)
        if weights is not None
    }
    for site in branches:
        if site not in used or (site.reader and site.parameter in other):
            raise SystolicError(
                f"{graph.name} reads {site.parameter} in no way that keeps an adapter beside it; merge the "
                "adapter when the model is loaded"
            )


class _Rewriting:
    """What reads weights, computed with those of the choice."""

    def __init__(self, branches: Mapping[Site, Branch], choice: Stream, choices: int) -> None:
        self.used: set[Site] = set()
        self._branches = branches
        self._choice = choice
        self._choices = choices
        self._taken: dict[str, Stream] = {}

    def changed(self, node: Node, current: Node) -> Node | None:
        """What takes the place of ``current``, which is ``node`` over new operands; None if nothing does."""
        if node.op.name == "parameter":
            return self._everywhere(node)
        if node.op.name not in ("take", "contraction"):
            return None
        for side in range(2 if node.op.name == "contraction" else 1):
            weights, chosen = _weights_of(node, side)
            site = Site("" if weights is None else weights.name, node.op.name)
            branch = self._branches.get(site)
            if weights is None or branch is None:
                continue
            index = None if chosen is None else Stream(current.sources[side].sources[1])
            made = self._branch(current, side, weights, index, branch)
            if made is not None:
                self.used.add(site)
                return made.node
        return None

    def _everywhere(self, node: Node) -> Node | None:
        """Weights of which a whole one is chosen for all that read them."""
        branch = self._branches.get(Site(node.name))
        if not isinstance(branch, Whole):
            return None
        self.used.add(Site(node.name))
        return replace(self._whole(branch, node.tensor).node, name="")

    def _branch(
        self, node: Node, side: int, weights: Node, index: Stream | None, branch: Branch
    ) -> Stream | None:
        if node.op.name == "take":
            if index is not None or node.params["axis"] != 0 or weights.tensor.rank != 2:
                return None
            return self._row(node, weights, branch)
        if isinstance(branch, Whole):
            return None if index is not None else self._product(node, side, weights, branch)
        return self._add_product(node, side, weights, index, branch)

    # ---- products ----

    def _add_product(
        self, node: Node, side: int, weights: Node, index: Stream | None, branch: LowRank
    ) -> Stream | None:
        """The contraction, plus that with the two factors one behind the other."""
        terms = split_subscripts(node.params["subscripts"])
        x_term, term, result = terms[1 - side], terms[side], terms[2]
        batch, matrix = term[:-2], term[-2:]
        summed = [letter for letter in matrix if letter not in result and letter in x_term]
        if len(summed) != 1 or len(matrix) != 2 or not set(batch) <= set(result):
            return None
        if (set(matrix) - set(summed)) & set(x_term):
            return None
        rank = next(letter for letter in "rstuvwxyz" if letter not in x_term + term)
        left, right = self._factors(weights, index, branch)
        factors = [(left, f"{batch}{matrix[0]}{rank}"), (right, f"{batch}{rank}{matrix[1]}")]
        (first, first_term), (second, second_term) = factors if summed[0] == matrix[0] else factors[::-1]
        rest = "".join(letter for letter in x_term if letter != summed[0] and letter not in batch)
        inner = f"{batch}{rest}{rank}"
        x = Stream(node.sources[1 - side])
        hidden = einsum(f"{x_term},{first_term}->{inner}", x, first)
        return _plain(node) + einsum(f"{inner},{second_term}->{result}", hidden, second)

    def _factors(self, weights: Node, index: Stream | None, branch: LowRank) -> tuple[Stream, Stream]:
        """Left and right of the choice: [a, r] and [r, b], with the axes of the index in front."""
        *experts, rows, columns = weights.tensor.static_shape
        shapes = {"left": (rows, branch.rank), "right": (branch.rank, columns)}
        if index is None:
            pair = [self._chosen(f"{branch.name}.{side}", (self._choices, *s)) for side, s in shapes.items()]
        else:
            count = experts[0]
            at = index + self._choice * count
            pair = [
                take(parameter(f"{branch.name}.{side}", (self._choices * count, *s)), at)
                for side, s in shapes.items()
            ]
        return pair[0], pair[1]

    def _product(self, node: Node, side: int, weights: Node, branch: Whole) -> Stream:
        """The contraction with the whole weights of the choice."""
        terms = split_subscripts(node.params["subscripts"])
        x_term, term, result = terms[1 - side], terms[side], terms[2]
        x = Stream(node.sources[1 - side])
        if len(x_term) == len(result) == 1 and len(term) == 2 and set(term) == set(x_term + result):
            stack = parameter(branch.name, (branch.count, *weights.tensor.static_shape), weights.tensor.dtype)
            axes = "dn" if term[0] == x_term else "nd"
            made = emit("routed_contraction", x, stack, reshape(self._slot(branch), 1), axes=axes)
            return reshape(made, *node.tensor.static_shape)
        whole = self._whole(branch, weights.tensor).cast(node.tensor.dtype)
        return einsum(f"{x_term},{term}->{result}", x, whole)

    # ---- tables ----

    def _row(self, node: Node, weights: Node, branch: Branch) -> Stream:
        """The row of a table, as the choice has it."""
        count, width = weights.tensor.static_shape
        index = minimum(maximum(Stream(node.sources[1]), 0), count - 1)
        if isinstance(branch, Whole):
            table = parameter(branch.name, (branch.count * count, width), weights.tensor.dtype)
            return take(table, index + self._slot(branch) * count).cast(node.tensor.dtype)
        left = parameter(f"{branch.name}.left", (self._choices * count, branch.rank))
        right = self._chosen(f"{branch.name}.right", (self._choices, branch.rank, width))
        letters = "abcdefgh"[: index.ndim]
        factors = take(left, index + self._choice * count), right
        return _plain(node) + einsum(f"{letters}r,rw->{letters}w", *factors)

    # ---- what is chosen ----

    def _whole(self, branch: Whole, type_: TensorType) -> Stream:
        return take(
            parameter(branch.name, (branch.count, *type_.static_shape), type_.dtype), self._slot(branch)
        )

    def _chosen(self, name: str, shape: tuple[int, ...]) -> Stream:
        return take(parameter(name, shape), self._choice)

    def _slot(self, branch: Whole) -> Stream:
        """The number of the choice's weights in their stack."""
        if branch.slots == tuple(range(self._choices)):
            return self._choice
        return take(constant(np.array(branch.slots, np.int32)), self._choice)


def _plain(node: Node) -> Stream:
    """The node itself, as the part of a sum that takes its name."""
    return Stream(replace(node, name=f"{node.name}.plain"))


def _weights_of(node: Node, side: int) -> tuple[Node | None, Node | None]:
    """The parameter that an operand is, maybe in another type, and the take of matrices in between."""
    source, chosen = node.sources[side], None
    if source.op.name == "take" and node.op.name == "contraction" and source.params["axis"] == 0:
        chosen = source
        if source.sources[0].tensor.rank != 3 or source.sources[1].tensor.rank != 1:
            return None, None
        source = source.sources[0]
    return _parameter_of(source), chosen


def _parameter_of(node: Node) -> Node | None:
    """The parameter that a stream is, maybe in another type."""
    source = node.sources[0] if node.op.name == "cast" else node
    return source if source.op.name == "parameter" else None


def untie(graph: Graph, tied: str, reader: str, name: str) -> Graph:
    """The graph in which one op reads the weights ``tied`` under a name of their own."""
    new: dict[Node, Node] = {}
    own: Node | None = None
    for node in graph.nodes:
        sources = [new[source] for source in node.sources]
        for side, source in enumerate(node.sources):
            if node.op.name == reader and source.op.name == "parameter" and source.name == tied:
                own = own or make_node(OPS["parameter"], (), {"type": source.type}, name=name)
                sources[side] = own
        new[node] = copy_node(node, tuple(sources))
    added = () if own is None else (own,)
    outputs = {name: new[node] for name, node in graph.outputs.items()}
    pairs = tuple((new[previous], new[value]) for previous, value in graph.feedback)
    return Graph(graph.name, graph.inputs, (*graph.parameters, *added), outputs, pairs)
