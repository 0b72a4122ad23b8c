"""Who owns an array in emitted NumPy: where a state may be written in place, where a copy is needed.

NumPy views share memory. A ``write_rows`` may write into its first operand only if nobody else reads that,
and what is returned must not change when the state is written next time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from ..ir.graph import Graph, Node

_VIEWS = ("reshape", "transpose", "slice", "broadcast_to", "bitcast")
_BORROWED = ("input", "parameter", "constant")


@dataclass(frozen=True)
class Ownership:
    """Which inputs of a graph may be written in place, and how often each node is read."""

    owned: frozenset[Node]
    uses: Counter[Node]

    @staticmethod
    def of(graph: Graph, owned: Iterable[Node]) -> Ownership:
        uses = Counter(source for node in graph.nodes for source in node.sources)
        uses.update(graph.outputs.values())
        return Ownership(frozenset(owned), uses)

    def ends_in(self, node: Node) -> bool:
        """Whether the only reader of the node may write into it: it was owned or written before."""
        return self.uses[node] == 1 and (node in self.owned or node.op.name == "write_rows")

    def overwrites(self, node: Node) -> bool:
        """Whether the node is a ``write_rows`` that may write into its first operand."""
        return node.op.name == "write_rows" and self.ends_in(node.sources[0])


def rewritten_carries(body: Graph, carries: int) -> list[int]:
    """The carried values of a loop that its body only writes into, and then carries on."""
    ownership = Ownership.of(body, body.inputs[:carries])
    result = []
    for at, output in enumerate(list(body.outputs.values())[:carries]):
        node = output
        while ownership.overwrites(node):
            node = node.sources[0]
        if node is body.inputs[at] and node is not output:
            result.append(at)
    return result


def storage(node: Node) -> tuple[Hashable, bool]:
    """What the node's memory belongs to, and whether the node shows each of its elements once."""
    plain = True
    while node.op.name in _VIEWS:
        plain = plain and node.op.name != "broadcast_to"
        node = node.sources[0]
    if node.op.name == "part":  # two nodes may name one result of a loop
        return (node.sources[0], node.params["index"]), plain
    return node, plain


def _is_borrowed(owner: Hashable) -> bool:
    """Whether the memory may be someone else's: an input's, a parameter's, a constant's."""
    while isinstance(owner, tuple):  # a loop's result is what its body carries or joins
        loop, index = owner
        if index >= loop.params["carries"]:
            return False
        owner = storage(list(loop.params["body"].outputs.values())[index])[0]
    return isinstance(owner, Node) and owner.op.name in _BORROWED


def outputs_to_copy(outputs: Mapping[str, Node], kept: Mapping[str, Node | None]) -> set[str]:
    """The outputs that must be returned as copies.

    ``kept`` are the outputs that will be written in place later, each with the input that it updates. Each
    of them needs memory of its own; no other output may be a view of that memory.
    """
    copies: set[str] = set()
    claimed: set[Hashable] = set()
    for name, updated in kept.items():
        owner, plain = storage(outputs[name])
        if not plain or owner in claimed or (_is_borrowed(owner) and owner is not updated):
            copies.add(name)
        else:
            claimed.add(owner)
    others = (name for name in outputs if name not in kept)
    return copies | {name for name in others if storage(outputs[name])[0] in claimed}
