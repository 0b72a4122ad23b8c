"""What depends on its own past, run step by step: only the strongly connected part becomes a loop.

The body is the same derivation with a chunk of one position. What it needs from outside comes in
as it is (weights, histories) or one position at a time (streams); buffers of its own are carried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from ...ir.graph import Graph, Node
from .body import Body, Imports, body_input
from .correction import Correction, find_correction, make_corrected
from .derivation import Buffers, Derivation, Key, Loop, Steps, zeros
from .frames import Frame, Slots
from .memory import (
    Memory,
    Reading,
    find_memory,
    find_readings,
    is_read_alone,
    make_blocks,
    make_reading,
)
from .placed import Maker, Placed, stretch, with_slots
from .scan import Recurrence, find_recurrence, make_scan
from .selective import Selective, block_of, find_selective, make_selective


class LoopBody(Body):
    """One step of a strongly connected part."""

    def __init__(self, outer: Derivation, members: frozenset[Node], carried: Mapping[Key, Node]) -> None:
        imports, clock = Imports(), str(next(iter(members)).clock)
        frame = _step_frame(imports, outer.frames[clock])
        make = Maker(None, "step")
        length = make("cast", make.reshape(frame.valid, (frame.rows,), "valid"), label="length", dtype="i32")
        buffers = Buffers(
            frozenset(node for node, place in carried if place == "state") | outer.buffers.stored,
            {
                node: inner.tensor.static_shape[1]
                for (node, place), inner in carried.items()
                if place == "tail"
            },
            dict(carried),
        )
        super().__init__(outer, members, imports, frame, buffers, {clock: length})


def _step_frame(imports: Imports, outer: Frame) -> Frame:
    positions, valid = imports.scan(outer.positions), imports.scan(outer.valid)

    def inside(slots: Slots) -> Slots:
        return replace(slots, positions=imports.keep(slots.positions))

    return Frame(
        outer.rows,
        1,
        positions,
        valid,
        {dim: inside(slots) for dim, slots in outer.slots.items()},
        {clock: imports.keep(end) for clock, end in outer.ends.items()},
        inside(outer.default) if outer.default else None,
    )


class ChunkDerivation(Derivation):
    """A derivation for chunks of any length: what depends on its own past becomes a scan or a loop."""

    @cached_property
    def recurrences(self) -> Mapping[Node, Recurrence]:
        """The linear recurrences, by their feedback."""
        found = {
            previous: find_recurrence(self, self.cycles[previous])
            for previous, _ in self.graph.feedback
            if self.representative(previous) is previous
        }
        return {previous: recurrence for previous, recurrence in found.items() if recurrence}

    @cached_property
    def memories(self) -> Mapping[Node, Memory]:
        """The recurrences of outer products whose states nothing wants, by their feedback."""
        found = {previous: correction.memory for previous, correction in self.corrections.items()}
        for previous, recurrence in self.recurrences.items():
            memory = find_memory(recurrence)
            if memory is not None and is_read_alone(self.graph, memory, self.cycles[previous]):
                found[previous] = memory
        return found

    @cached_property
    def corrections(self) -> Mapping[Node, Correction]:
        """The memories that are corrected by what they hold, by their feedback."""
        found = {
            previous: find_correction(self, self.cycles[previous])
            for previous, _ in self.graph.feedback
            if self.representative(previous) is previous and previous not in self.recurrences
        }
        return {previous: correction for previous, correction in found.items() if correction}

    @cached_property
    def readings(self) -> Mapping[Node, Reading]:
        """The contractions that read a memory without its states."""
        found: dict[Node, Reading] = {}
        for memory in self.memories.values():
            found |= find_readings(self.graph, memory)
        return found

    @cached_property
    def selective(self) -> Mapping[Node, Selective]:
        """The recurrences whose states are made and read in blocks of positions, by their feedback."""
        found = {
            previous: find_selective(self, recurrence)
            for previous, recurrence in self.recurrences.items()
            if previous not in self.memories
        }
        return {previous: part for previous, part in found.items() if part}

    @cached_property
    def selected(self) -> Mapping[Node, Node]:
        """The feedback of the block in which a stream is made that is read from states there."""
        return {reader: previous for previous, part in self.selective.items() for reader in part.readers}

    def make_own(self, node: Node) -> Steps:
        size = self.frame(node).size
        if size > 1 and node in self.readings:
            return (yield from make_reading(self, node, self.readings[node]))
        if block_of(size) > 1 and node in self.selected:
            return (yield self.representative(self.selected[node]), "loop").streams[node]
        return (yield from super().make_own(node))

    def needs_all(self, node: Node) -> bool:
        return node in self.selected or super().needs_all(node)

    def make_last(self, node: Node) -> Steps:
        """What the next position reads of a recurrence is what the last one made."""
        previous = self.opening.get(node)
        if previous is None or self.closed or self.frame(node).size == 1:
            return (yield from super().make_last(node))
        carry = yield previous, "carry"
        shape = carry.node.tensor.static_shape
        newest = Maker(node, "@last").reshape(carry.node, (shape[0], 1, *shape[1:]))
        return Placed(newest, 2, node.tensor.shape)

    @cached_property
    def opening(self) -> Mapping[Node, Node]:
        """The feedback that each closing stream is read by."""
        return {value: previous for previous, value in self.graph.feedback}

    def make_blocks(self, previous: Node) -> Steps:
        if previous in self.corrections:
            return (yield from make_corrected(self, self.corrections[previous]))
        return (yield from make_blocks(self, self.memories[previous]))

    def make_carry(self, node: Node) -> Steps:
        if self.frame(node).size > 1 and node in self.memories:
            blocks = yield node, "blocks"
            return Placed(blocks.end.node, 1, node.tensor.shape)
        return (yield from super().make_carry(node))

    def make_loop(self, node: Node) -> Steps:
        if node in self.selective and block_of(self.frame(node).size) > 1:
            return make_selective(self, self.selective[node])
        if node in self.recurrences:
            return make_scan(self, self.recurrences[node])
        return make_loop(self, self.cycles[node])


def make_loop(outer: Derivation, members: frozenset[Node]) -> Steps:
    """Builds the body and the loop node of a strongly connected part of a derivation."""
    graph = outer.graph
    ordered = [node for node in graph.nodes if node in members]
    for node in ordered:
        for source in node.sources:
            if source not in members:
                yield source, "own"
    initial = _carried(outer, ordered)
    inputs = {key: body_input(f"{key[1]}.{key[0].name}", start.tensor) for key, start in initial.items()}
    body = LoopBody(outer, members, inputs)
    exported = [node for node in ordered if _is_needed_outside(outer, node, members)]
    results: dict[str, Node] = {f"{place}.{n.name}": body.value((n, place)).node for n, place in inputs}
    streams: dict[Node, Placed] = {}
    for node in exported:
        streams[node] = stretch(Maker(node), body.value((node, "own")), body.frames[body.clock].rows, 1)
        results[f"stream.{node.name}"] = streams[node].node
    imports = body.imports
    taken = [*inputs.values(), *(i for _, i in imports.scanned), *(i for _, i in imports.invariant)]
    body_graph = Graph(f"{ordered[0].name}.loop", tuple(taken), (), results).with_unique_names()
    make = Maker(ordered[0])
    loop = make(
        "loop",
        *initial.values(),
        *(o for o, _ in imports.scanned),
        *(o for o, _ in imports.invariant),
        label="loop",
        body=body_graph,
        carries=len(inputs),
        scanned=len(imports.scanned),
        length=outer.frames[body.clock].size,
    )
    parts = [make("part", loop, label="part", index=i) for i in range(len(results))]
    buffers = {key: Placed(parts[i], 1, key[0].tensor.shape) for i, key in enumerate(inputs)}
    for i, node in enumerate(exported, start=len(inputs)):
        streams[node] = replace(streams[node], node=parts[i])
    return Loop(streams, buffers)


def _carried(outer: Derivation, members: list[Node]) -> dict[Key, Node]:
    """The buffers that the part itself reads and writes, with their values before the chunk."""
    frame = outer.frame(members[0])
    wanted: dict[Key, tuple[int, ...]] = {}
    for node in members:
        if node.op.name == "feedback":
            wanted[node, "carry"] = ()
        elif node.op.name == "delay":
            key = (node.sources[0], "tail")
            wanted[key] = (max(node.params["steps"], *wanted.get(key, (0,))),)
        elif node.op.name == "history" and outer.closed:
            wanted[node.sources[0], "state"] = (frame.size,)  # every position of the frame has a slot
        if node in outer.buffers.stored:
            wanted[node, "state"] = ()
    if not outer.closed:
        return {key: outer.buffers.initial[key] for key in wanted}
    return {key: _empty(frame.rows, key, extra) for key, extra in wanted.items()}


def _empty(rows: int, key: Key, extra: tuple[int, ...]) -> Node:
    """A buffer of zeros, for a derivation that begins at the start."""
    node, place = key
    value = node.tensor.static_shape
    shape = with_slots(value, *extra) if place == "state" else (*extra, *value)
    return zeros(Maker(node), node.tensor.with_shape((rows, *shape)))


def _is_needed_outside(outer: Derivation, node: Node, members: frozenset[Node]) -> bool:
    if node.op.name == "history":
        return False  # outside, it reads the buffer
    users = outer.graph.users[node]
    read_in_frame = outer.closed and any(user.op.name == "history" for user in users)
    is_output = any(node is output for output in outer.graph.outputs.values())
    return is_output or read_in_frame or any(user not in members for user in users)
