"""Bodies of loops: a derivation of some nodes, for one position or a block of them at a time.

What a body needs from outside comes in as it is (weights, histories) or by positions (streams).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...ir.graph import Node, make_node
from ...ir.ops import OPS
from ...ir.types import TensorType
from .derivation import Buffers, Derivation, Key, Steps
from .frames import Frame
from .placed import Maker, Placed
from .terms import Term, in_blocks


@dataclass
class Imports:
    """What a body takes from outside: pairs of the outer node and the body's input for it.

    A body sees ``size`` positions of a stream at a time.
    """

    size: int = 1
    scanned: list[tuple[Node, Node]] = field(default_factory=list)
    invariant: list[tuple[Node, Node]] = field(default_factory=list)

    def scan(self, node: Node) -> Node:
        """``size`` positions [B, size, …] of an outer value [B, n, …] at a time."""
        rows, _, *rest = node.tensor.static_shape
        if self.size == 1:
            return self._taken(self.scanned, "step", node, node.tensor.with_shape((rows, 1, *rest)))
        # A loop goes over the second axis: that of the blocks.
        block = node.tensor.with_shape((rows, 1, self.size, *rest))
        taken = self._taken(self.scanned, "block", node, block)
        return Maker(taken).reshape(taken, (rows, self.size, *rest), "positions")

    def keep(self, node: Node) -> Node:
        """An outer value as it is; what has no operands is simply made again inside."""
        if node.op.name in ("constant", "arange"):
            return node
        return self._taken(self.invariant, "all", node, node.tensor)

    def operand(self, node: Node) -> Node:
        """What the loop is given for a scanned value: where it goes by blocks, [B, K, size, …]."""
        if self.size == 1:
            return node
        letters = "abcdefghij"[: node.tensor.rank - 2]
        return in_blocks(Maker(node, "@blocks"), Term(node, f"BT{letters}"), self.size, 0.0).node

    def _taken(self, pairs: list[tuple[Node, Node]], kind: str, node: Node, type_: TensorType) -> Node:
        for outer, inner in pairs:
            if outer is node:
                return inner
        # Outer nodes get their unique names only later, so the count keeps these apart.
        inner = body_input(f"{kind}{len(pairs)}.{node.name}", type_)
        pairs.append((node, inner))
        return inner


def body_input(name: str, type_: TensorType) -> Node:
    return make_node(OPS["input"], (), {"type": type_}, name=name)


class Body(Derivation):
    """The derivation of ``members`` inside a loop; every other stream comes from the outer derivation."""

    def __init__(
        self,
        outer: Derivation,
        members: frozenset[Node],
        imports: Imports,
        frame: Frame,
        buffers: Buffers,
        lengths: Mapping[str, Node],
    ) -> None:
        self.outer, self.members, self.imports = outer, members, imports
        clock = str(next(iter(members)).clock)
        super().__init__(outer.graph, {clock: frame}, {}, buffers, clock=clock, closed=False, lengths=lengths)

    def steps(self, key: Key) -> Steps:
        node, _ = key
        return super().steps(key) if node in self.members else self.imported(key)

    def imported(self, key: Key) -> Steps:
        """A value of the outer derivation, as an input of the body."""
        outer: Placed = self.outer.value(key)
        if key[1] == "own" and outer.lead == 2:
            return replace(outer, node=self.imports.scan(outer.node))
        return replace(outer, node=self.imports.keep(outer.node))
        yield  # a generator like the others, though it waits for nothing
