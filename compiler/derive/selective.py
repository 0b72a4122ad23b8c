"""Recurrences whose states are larger than what goes in and comes out: made and read in blocks of positions.

    %h     = feedback(%initial)                      s(t) = a(t) * s(t-1) + b(t)
    %total = add(multiply(%a, %h), %b)               a, b: each made from streams that are much smaller
    %y     = contraction(%total, %q)                 y: much smaller, too

As in Mamba, where a channel has 16 numbers that decay each at a rate of its own. A loop over blocks carries
the state. Inside, the factors, the terms, the states and what reads them are made for the positions of one
block, by the same derivation; only streams that are much smaller than a state exist for all positions.

Must not fire where a state is wanted itself or at a later position, where what reads it or flows in is about
as large, or where a reader needs something that follows from the states.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from ...ir.graph import Graph, Node, postorder
from ...ir.types import is_ragged
from .body import Body, Imports, body_input
from .derivation import Buffers, Derivation, Key, Loop, Steps
from .frames import Frame
from .placed import Maker, Placed, stretch
from .scan import Recurrence, make_scan_from, start_of
from .terms import Term, part

LONGEST_BLOCK = 16  # positions: few enough for their states to stay in a cache
_SMALLER = 4  # how many times as large as what is read of it a state is, at least


@dataclass(frozen=True)
class Selective:
    """A recurrence, the nodes that are made in blocks, and those of them that others read."""

    recurrence: Recurrence
    inside: frozenset[Node]
    readers: tuple[Node, ...]

    @cached_property
    def imports(self) -> tuple[Node, ...]:
        """What is taken from outside."""
        sources = (source for node in self.inside for source in node.sources)
        return tuple(dict.fromkeys(source for source in sources if source not in self.inside))


def block_of(positions: int) -> int:
    """How many positions are made together, a power of two; 1 where they are too few for blocks."""
    return 1 << (max(1, min(positions // 2, LONGEST_BLOCK)).bit_length() - 1)


def find_selective(derivation: Derivation, recurrence: Recurrence) -> Selective | None:
    """What to make in blocks of a recurrence, if nothing wants its states."""
    cycle, narrow = derivation.cycles[recurrence.previous], recurrence.total.tensor.size // _SMALLER
    inside, readers = set(cycle), []
    waiting = [user for node in cycle for user in derivation.graph.users[node]]
    while waiting:
        node = waiting.pop()
        if node in inside:
            continue
        if not _is_made_alike(derivation, node):
            return None
        inside.add(node)
        if node.tensor.size <= narrow:
            readers.append(node)
        else:
            waiting += derivation.graph.users[node]
    size = sum(reader.tensor.size for reader in readers)
    if not 0 < size <= narrow or _is_wanted(derivation, recurrence.previous, inside - set(readers)):
        return None
    waiting = [source for node in inside for source in node.sources]
    after = frozenset(inside)
    while waiting:
        node = waiting.pop()
        if node in inside or node.clock is None or _size(node) <= narrow:
            continue
        if not _is_made_alike(derivation, node) or _is_projection(node):
            return None
        inside.add(node)
        waiting += node.sources
    found = Selective(recurrence, frozenset(inside), tuple(readers))
    return None if _follow(derivation, found.imports, recurrence.previous, after) else found


def _is_made_alike(derivation: Derivation, node: Node) -> bool:
    """Whether a node of a derivation is made from its operands at the same position, as it is in a block."""
    return (
        node.clock is not None
        and node.op.kind in ("elementwise", "tensor")
        and node not in derivation.cycles
        and not any(is_ragged(dim) for n in (node, *node.sources) for dim in n.tensor.shape)
    )


def _is_projection(node: Node) -> bool:
    """Whether a node is a product with weights, which are best read once for all positions."""
    return node.op.name == "contraction" and any(source.clock is None for source in node.sources)


def _size(node: Node) -> float:
    """How many numbers a value has; as long as a text may be where it is ragged."""
    return math.inf if any(map(is_ragged, node.tensor.shape)) else node.tensor.size


def _is_wanted(derivation: Derivation, previous: Node, nodes: Iterable[Node]) -> bool:
    """Whether any of the nodes is an output or is kept, other than for the feedback itself."""
    later = {value for other, value in derivation.graph.feedback if other is not previous}
    kept = {*derivation.buffers.stored, *derivation.buffers.tails}
    shown = {*derivation.graph.outputs.values(), *later, *kept}
    return any(node in shown for node in nodes)


def _follow(derivation: Derivation, nodes: Iterable[Node], previous: Node, after: frozenset[Node]) -> bool:
    """Whether any of the nodes follows from one of ``after``, all of which follow from ``previous``."""
    order = derivation.order
    waiting, seen = list(nodes), set()
    while waiting:
        node = waiting.pop()
        if node in after:
            return True
        if node not in seen and order[node] > order[previous]:
            seen.add(node)
            waiting += node.sources
    return False


class BlockBody(Body):
    """The derivation of what is made in a block, from the state in front of it."""

    def __init__(self, outer: Derivation, selective: Selective) -> None:
        previous = selective.recurrence.previous
        frame = outer.frame(previous)
        size = block_of(frame.size)
        imports = Imports(size)
        positions, valid = imports.scan(frame.positions), imports.scan(frame.valid)
        front = previous.tensor.with_shape((frame.rows, *previous.tensor.static_shape))
        key: Key = (previous, "carry")
        buffers = Buffers(initial={key: body_input(f"carry.{previous.name}", front)})
        super().__init__(
            outer,
            selective.inside,
            imports,
            Frame(frame.rows, size, positions, valid, {}, {}),
            buffers,
            {},
        )
        self.selective = selective

    def make_loop(self, node: Node) -> Steps:
        front = self.buffers.initial[node, "carry"]
        rows, *own = front.tensor.static_shape
        front = Maker(node).reshape(front, (rows, 1, *own), "front")
        return make_scan_from(self, self.selective.recurrence, front)


def make_selective(outer: Derivation, selective: Selective) -> Steps:
    """The streams that are read of the states, and the state behind the last position."""
    previous = selective.recurrence.previous
    for source in selective.imports:
        yield source, "own"
    start = yield from start_of(outer, previous)
    frame, body = outer.frame(previous), BlockBody(outer, selective)
    size = body.imports.size
    carried = body.buffers.initial[previous, "carry"]
    results = {carried.name: body.value((previous, "carry")).node}
    for reader in selective.readers:
        read = stretch(Maker(reader), body.value((reader, "own")), frame.rows, size).node
        rows, *rest = read.tensor.static_shape
        results[f"stream.{reader.name}"] = Maker(reader).reshape(read, (rows, 1, *rest), "block")
    needed = set(postorder(results.values(), lambda node: node.sources))
    scanned, invariant = (
        [(o, i) for o, i in pairs if i in needed] for pairs in (body.imports.scanned, body.imports.invariant)
    )
    taken = (carried, *(inner for _, inner in (*scanned, *invariant)))
    graph = Graph(f"{previous.name}.blocks", taken, (), results).with_unique_names()
    make = Maker(previous)
    loop = make(
        "loop",
        make.reshape(start, carried.tensor.static_shape, "start"),
        *(body.imports.operand(node) for node, _ in scanned),
        *(node for node, _ in invariant),
        label="blocks",
        body=graph,
        carries=1,
        scanned=len(scanned),
        length=-(-frame.size // size),
    )
    parts = [make("part", loop, label="part", index=i) for i in range(len(results))]
    streams = {
        reader: Placed(_positions(Maker(reader), blocks, frame.size), 2, reader.tensor.shape)
        for reader, blocks in zip(selective.readers, parts[1:], strict=True)
    }
    return Loop(streams, {(previous, "carry"): Placed(parts[0], 1, previous.tensor.shape)})


def _positions(make: Maker, blocks: Node, count: int) -> Node:
    """The first ``count`` positions of blocks [B, K, S, …]."""
    rows, number, size, *rest = blocks.tensor.static_shape
    flat = make.reshape(blocks, (rows, number * size, *rest), "positions")
    letters = "abcdefghij"[: len(rest)]
    return part(make, Term(flat, f"BT{letters}"), "T", 0, count).node
