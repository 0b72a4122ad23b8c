"""From values of one position to rows and chunks: one demand-driven walk over the graph.

``value`` of a key (a stream, and where its values are wanted) runs a generator that yields the keys
it needs and is sent their values; a stack of generators replaces recursion, so depth does not matter.
The places are

    own      at every position of the chunk                       [B, n, …]
    last     at each row's last real position only                [B, 1, …]
    past8    at every slot of a window class, recomputed          [B, S, …]
    state    the buffer of a stored stream, this chunk written    [B, …, S, …]
    kept     the same, slots first                                [B, S, …]
    joined   the tail of a delayed stream with the chunk behind   [B, steps + n, …]
    tail     the tail after this chunk                            [B, steps, …]
    carry    the newest value of a feedback after this chunk      [B, …]
    loop     one strongly connected part, run step by step or as a scan
    blocks   a recurrence of outer products, by blocks of positions
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...ir.errors import CausalityError
from ...ir.graph import Graph, Node, postorder
from ...ir.types import TensorType
from .frames import Frame
from .placed import Maker, Placed, align, constant_axis, slot_axis, slots_first, stretch
from .rules import RULES, Rule

Key = tuple[Node, str]
Steps = Generator[Key, Any, Any]


@dataclass(frozen=True)
class Buffers:
    """Which streams have a buffer, and the buffers' values before this chunk.

    ``stored`` streams are kept in slots, ``tails`` maps delayed streams to steps. ``initial`` holds the
    node of the buffer for keys (stream, "state" | "tail" | "carry" | "constant").
    """

    stored: frozenset[Node] = frozenset()
    tails: Mapping[Node, int] = field(default_factory=dict)
    initial: Mapping[Key, Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Loop:
    """What a strongly connected part yields: streams for every position, buffers after the last one."""

    streams: Mapping[Node, Placed]
    buffers: Mapping[Key, Placed]


class Derivation:
    """One walk: a graph, frames for its clocks, and buffers for what came before the chunk.

    ``closed`` means that the frames hold every position from the start on, so that the past is in
    the frame itself and nothing is kept.
    """

    def __init__(
        self,
        graph: Graph,
        frames: Mapping[str, Frame],
        given: Mapping[Node, Node],
        buffers: Buffers,
        *,
        clock: str,
        closed: bool,
        lengths: Mapping[str, Node],
    ) -> None:
        self.graph = graph
        self.clock = clock
        self.frames = frames
        self.given = given
        self.buffers = buffers
        self.closed = closed
        self.lengths = lengths
        self.closing = dict(graph.feedback)
        self.known: dict[Key, Any] = {}

    # ---- the walk ----

    def value(self, key: Key) -> Any:
        """The value of a key, with everything that it needs."""
        stack: list[tuple[Key, Steps]] = []
        wanted, result = key, None
        while True:
            if wanted in self.known:
                result = self.known[wanted]
            else:
                stack.append((wanted, self.steps(wanted)))
                result = None
            while True:
                if not stack:
                    return result
                current, steps = stack[-1]
                try:
                    wanted = steps.send(result)
                    break
                except StopIteration as finished:
                    result = self.known[current] = finished.value
                    stack.pop()

    def steps(self, key: Key) -> Steps:
        """The generator that makes the value of a key."""
        node, place = key
        if place.startswith("past"):
            return self.make_past(node, place)
        if node.clock is None:
            return self.constant(node)
        return getattr(self, f"make_{place}")(node)

    # ---- streams ----

    @cached_property
    def cycles(self) -> Mapping[Node, frozenset[Node]]:
        """For each node on a cycle through a feedback, all nodes of its strongly connected part."""
        return find_cycles(self.graph)

    @cached_property
    def order(self) -> Mapping[Node, int]:
        """The place of each node in the graph, behind its sources."""
        return {node: place for place, node in enumerate(self.graph.nodes)}

    @cached_property
    def own_needed(self) -> frozenset[Node]:
        """Streams that are wanted at every position, because a state is made from them."""
        roots = [*self.buffers.stored, *self.buffers.tails, *self.closing.values()]
        return frozenset(postorder(roots, lambda node: node.sources))

    def constant(self, node: Node) -> Steps:
        """Weights and constants, what is given for a row, and what finished clocks left behind."""
        if node in self.given:
            return Placed(self.given[node], 1, node.tensor.shape)
        if (node, "constant") in self.buffers.initial:
            kept = self.buffers.initial[node, "constant"]
            kept = slots_first(Maker(node, "@kept"), kept, constant_axis(node.tensor.shape))
            return Placed(kept, 1, node.tensor.shape)
        if node.op.kind == "source":
            return Placed(node, 0, node.tensor.shape)
        frame = next(iter(self.frames.values()))
        if node.op.name == "whole":
            source = node.sources[0]
            if source.op.name == "position" and source.clock != self.clock:  # not read, but counted
                size = frame.extent(node.tensor.shape[0])
                return Placed(Maker(node)("arange", size=size), 0, node.tensor.shape)
            if not self.closed:
                raise CausalityError(
                    f"{node.name} reads the whole sequence of clock {source.clock}, which is not over "
                    "while it is decoded",
                    node.location,
                )
            x = yield source, "own"
            return Placed(x.node, 1, node.tensor.shape)
        return (yield from self.apply(node, frame, "own"))

    def apply(self, node: Node, frame: Frame, place: str) -> Steps:
        operands = []
        for source in node.sources:
            operands.append((yield source, place))
        suffix = "" if place == "own" else f"@{place}"
        return RULES[node.op.name](Rule(node, frame, Maker(node, suffix)), operands)

    def frame(self, node: Node) -> Frame:
        return self.frames[str(node.clock)]

    def make_own(self, node: Node) -> Steps:
        frame, name = self.frame(node), node.op.name
        if node in self.given:
            return Placed(self.given[node], 2, node.tensor.shape)
        if name == "position":
            return Placed(frame.positions, 2, ())
        if name == "history":
            return (yield from self.read_history(node))
        if node in self.cycles and frame.size > 1:
            return (yield self.representative(node), "loop").streams[node]
        if name == "delay":
            return (yield from self.read_delay(node, frame))
        if name == "feedback":
            return (yield from self.read_feedback(node, frame))
        return (yield from self.apply(node, frame, "own"))

    def make_last(self, node: Node) -> Steps:
        frame = self.frame(node)
        if frame.size == 1 or node.op.name == "history":
            return (yield node, "own")
        if not self.needs_all(node):
            return (yield from self.apply(node, self.last_frame(node), "last"))
        x = yield node, "own"
        if x.lead < 2:
            return x
        taken = Maker(node, "@last")("read_rows", x.node, self.last_index(node))
        return replace(x, node=taken)

    def needs_all(self, node: Node) -> bool:
        """Whether a stream is made at every position even if only the last one is wanted."""
        return node in self.own_needed or node.op.kind in ("time", "source")

    def make_past(self, node: Node, place: str) -> Steps:
        """Recomputed at every slot, as if the slots were a chunk; no time is left in between."""
        frame = self.past_frame(place)
        if node.clock is None:
            return (yield node, "own")
        if node in self.buffers.stored:
            kept = yield node, "kept"
            return Placed(kept.node, 2, node.tensor.shape)
        if node.op.name == "position":
            return Placed(frame.positions, 2, ())
        return (yield from self.apply(node, frame, place))

    def past_frame(self, place: str) -> Frame:
        """The slots of a window class, seen as positions for which values are computed."""
        frame = self.frames[self.clock]
        key = (frame.positions, place)
        if key not in self.known:
            slots = next(s for s in frame.slots.values() if s.place == place)
            positions = Maker().broadcast(slots.positions, (frame.rows, slots.count), "slots.positions")
            valid = Maker()("greater_equal", positions, Maker().integer(0), label="slots.valid")
            self.known[key] = replace(frame, size=slots.count, positions=positions, valid=valid, masks={})
        return self.known[key]

    # ---- time ----

    def read_history(self, node: Node) -> Steps:
        source = node.sources[0]
        frame = self.frame(node)
        if self.closed:
            x = yield source, "own"
        elif source in self.buffers.stored:
            x = yield source, "kept"
        else:
            place = frame.slots_of(node.tensor.shape[0]).place  # type: ignore[arg-type]
            x = yield source, place
        if self.closed or source not in self.buffers.stored:
            x = stretch(Maker(node), x, frame.rows, frame.extent(node.tensor.shape[0]))
        return Placed(x.node, 1, node.tensor.shape)

    def make_state(self, node: Node) -> Steps:
        frame = self.frame(node)
        if node in self.cycles and frame.size > 1:
            loop = yield self.representative(node), "loop"
            if (node, "state") in loop.buffers:  # else nothing inside of the loop reads it
                return loop.buffers[node, "state"]
        x = yield node, "own"
        buffer, make = self.buffers.initial[node, "state"], Maker(node, "@state")
        x_all = stretch(make, x, frame.rows, frame.size).node
        axis = slot_axis(node.tensor.shape)
        index = self.write_index(frame, buffer.tensor.static_shape[axis])
        written = make("write_rows", buffer, x_all, index, axis=axis)
        return Placed(written, 1, node.tensor.shape)

    def make_kept(self, node: Node) -> Steps:
        buffer = yield node, "state"
        kept = slots_first(Maker(node, "@kept"), buffer.node, slot_axis(node.tensor.shape))
        return replace(buffer, node=kept)

    def write_index(self, frame: Frame, count: int) -> Node:
        """i32[B, n]: the slot of each position, and ``count``, which is none, for padding."""
        key = (frame.positions, f"index.{count}")
        if key not in self.known:
            make = Maker(None, f"slots.{count}")
            slot = frame.positions
            if any(s.is_ring and s.count == count for s in frame.slots.values()):
                slot = make("remainder", slot, make.integer(count), label="turn")
            self.known[key] = make("where", frame.valid, slot, make.integer(count), label="index")
        return self.known[key]

    def make_joined(self, node: Node) -> Steps:
        x = yield node, "own"
        frame, make = self.frame(node), Maker(node, "@tail")
        x_all = stretch(make, x, frame.rows, frame.size).node
        if self.closed:
            steps = max(n.params["steps"] for n in self.graph.users[node] if n.op.name == "delay")
            shape = (frame.rows, steps, *node.tensor.static_shape)
            tail = zeros(make, TensorType(shape, node.tensor.dtype))
        else:
            tail = self.buffers.initial[node, "tail"]
        return make("concatenate", tail, x_all, label="joined", axis=1)

    def read_delay(self, node: Node, frame: Frame) -> Steps:
        source, initial = node.sources
        joined = yield source, "joined"
        before = yield initial, "own"
        make, steps = Maker(node), node.params["steps"]
        start = joined.tensor.static_shape[1] - frame.size - steps
        shape = joined.tensor.static_shape
        earlier = make(
            "slice",
            joined,
            label="earlier",
            starts=(0, start, *(0 for _ in shape[2:])),
            limits=(shape[0], start + frame.size, *shape[2:]),
        )
        started = make("greater_equal", frame.positions, make.integer(steps), label="started")
        return self.choose(make, started, earlier, before)

    def choose(self, make: Maker, condition: Node, value: Node, before: Placed) -> Placed:
        """``value`` [B, n, …] where the condition [B, n] holds, else what was before the start."""
        shape = value.tensor.static_shape
        condition = make.reshape(condition, (*shape[:2], *(1 for _ in shape[2:])), "started")
        node = make("where", condition, value, align(make, before, 2, len(before.shape)))
        return Placed(node, 2, before.shape)

    def make_tail(self, node: Node) -> Steps:
        frame = self.frame(node)
        if node in self.cycles and frame.size > 1:
            loop = yield self.representative(node), "loop"
            if (node, "tail") in loop.buffers:  # else only delays outside of the loop read it
                return loop.buffers[node, "tail"]
        joined = yield node, "joined"
        make, steps = Maker(node, "@tail"), self.buffers.tails[node]
        length = make.reshape(self.lengths[str(node.clock)], (frame.rows, 1), "column")
        index = make("add", length, make("arange", label="steps", size=steps), label="index")
        return Placed(make("read_rows", joined, index), 1, node.tensor.shape)

    def read_feedback(self, node: Node, frame: Frame) -> Steps:
        before = yield node.sources[0], "own"
        make, carry = Maker(node), self.buffers.initial[node, "carry"]
        shape = (frame.rows, frame.size, *node.tensor.static_shape)
        previous = make.reshape(carry, shape, "previous")
        started = make("greater", frame.positions, make.integer(0), label="started")
        return self.choose(make, started, previous, before)

    def make_carry(self, node: Node) -> Steps:
        frame = self.frame(node)
        if frame.size > 1:
            return (yield self.representative(node), "loop").buffers[node, "carry"]
        x = yield self.closing[node], "own"
        make, carry = Maker(node, "@carry"), self.buffers.initial[node, "carry"]
        newest = make.reshape(
            stretch(make, x, frame.rows, frame.size).node, carry.tensor.static_shape, "newest"
        )
        valid = make.reshape(frame.valid, (frame.rows, *(1 for _ in node.tensor.shape)), "valid")
        return Placed(make("where", valid, newest, carry), 1, node.tensor.shape)

    # ---- cycles ----

    def representative(self, node: Node) -> Node:
        """The node under whose key the loop of a strongly connected part is kept."""
        members = self.cycles[node]
        return next(previous for previous, _ in self.graph.feedback if previous in members)

    def make_loop(self, node: Node) -> Steps:
        """A chunk of one position needs no loop; ``loop.ChunkDerivation`` makes those of longer ones."""
        raise NotImplementedError(f"{node.name} is run step by step")

    # ---- the last position ----

    def last_index(self, node: Node) -> Node:
        """i32[B, 1]: the index of each row's last real position in the chunk."""
        key = (self.frame(node).positions, "last.index")
        if key not in self.known:
            make, frame = Maker(None, "last"), self.frame(node)
            length = make.reshape(self.lengths[str(node.clock)], (frame.rows, 1), "column")
            index = make("subtract", length, make.integer(1), label="before")
            self.known[key] = make("maximum", index, make.integer(0), label="index")
        return self.known[key]

    def last_frame(self, node: Node) -> Frame:
        frame = self.frame(node)
        key = (frame.positions, "last.frame")
        if key not in self.known:
            positions = Maker()("read_rows", frame.positions, self.last_index(node), label="last.positions")
            valid = Maker()("read_rows", frame.valid, self.last_index(node), label="last.valid")
            self.known[key] = replace(frame, size=1, positions=positions, valid=valid, masks={})
        return self.known[key]


def zeros(make: Maker, type_: TensorType) -> Node:
    zero = make.constant(0, type_.dtype)
    return make.broadcast(zero, type_.static_shape, "zeros")


def find_cycles(graph: Graph) -> dict[Node, frozenset[Node]]:
    """For each node on a cycle, the strongly connected part that it is in."""
    if not graph.feedback:
        return {}
    import networkx as nx  # a tenth of a second to load, and most graphs have no cycles

    edges = nx.DiGraph()
    edges.add_edges_from((source, node) for node in graph.nodes for source in node.sources)
    edges.add_edges_from((value, previous) for previous, value in graph.feedback)
    parts = (frozenset(part) for part in nx.strongly_connected_components(edges) if len(part) > 1)
    cycles = {node: part for part in parts for node in part}
    for previous, _ in graph.feedback:
        # A feedback whose stream does not depend on it is a delay by one: still a part of its own.
        cycles.setdefault(previous, frozenset({previous}))
    return cycles
