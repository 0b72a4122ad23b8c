"""The programs of a graph: chunks against states, one closed pass, and the run of a source clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...ir.errors import SystolicError
from ...ir.graph import Graph, Node, make_node, with_unique_names
from ...ir.ops import OPS
from ...ir.time import NOW, Access, delay_access
from ...ir.types import Past, TensorType, Whole, is_ragged
from ..program import STATE_PREFIX, Program, State
from .derivation import Buffers, Derivation, Key
from .frames import Frame, Slots, append_slots, chunk_positions, ring_slots
from .placed import Maker, stretch
from .states import StatePlan


@dataclass(frozen=True)
class Sizes:
    """The numbers that make one program out of many: rows, slots, and positions of other clocks."""

    rows: int
    capacity: int
    reserve: int
    sources: Mapping[str, int]

    def slots(self, window: int | None) -> int:
        """A ring must survive the largest chunk: its first position still reads a whole window."""
        return self.capacity if window is None else min(self.capacity, window + self.reserve - 1)

    def is_ring(self, window: int | None) -> bool:
        return window is not None and window + self.reserve - 1 < self.capacity


def derive_chunk(
    graph: Graph,
    plan: StatePlan,
    *,
    rows: int,
    chunk: int,
    capacity: int,
    reserve: int | None = None,
    last: bool = True,
    source_lengths: Mapping[str, int] | None = None,
) -> Program:
    """The program that advances ``rows`` rows by up to ``chunk`` positions each.

    ``capacity`` is the number of positions that a row can hold, ``reserve`` the largest chunk of all
    programs that share these states (by default this one's). With ``last``, results are those of
    each row's last real position, [rows, 1, …]; otherwise of all, [rows, chunk, …].
    """
    graph.certificate().raise_if_leaking()
    if chunk > capacity:
        raise SystolicError(f"a chunk of {chunk} positions does not fit a capacity of {capacity}")
    sizes = Sizes(rows, capacity, max(reserve or chunk, chunk), dict(source_lengths or {}))
    states = plan_states(graph, plan, sizes)
    inputs = {
        n: _program_input(n.name, _chunk_type(n, rows, chunk)) for n in graph.inputs if n.clock == plan.clock
    }
    offset, length = (_program_input(name, TensorType((rows,), "i32")) for name in ("offset", "length"))
    ends, ended = _ends(plan, graph, sizes)
    held = {state.name: _program_input(STATE_PREFIX + state.name, state.type) for state in states.values()}
    initial: dict[Key, Node] = {key: held[state.name] for key, state in states.items()}
    stored = frozenset(node for node, place in states if place == "state")
    tails = dict(plan.tails)
    positions, valid = chunk_positions(rows, chunk, offset, length)
    slots = _slots(plan, sizes, offset, length)
    frame = Frame(rows, chunk, positions, valid, slots, ends, append_slots("past", capacity))
    derivation = Derivation(
        graph,
        {plan.clock: frame},
        inputs,
        Buffers(stored, tails, initial),
        clock=plan.clock,
        closed=False,
        lengths={plan.clock: length},
    )
    wanted = {name: node for name, node in graph.outputs.items() if node.clock == plan.clock}
    if plan.strategy == "tokens":
        results = _recompute_all(derivation, wanted, sizes, last)
    else:
        place = "last" if last else "own"
        size = 1 if last else chunk
        results = {
            n: stretch(Maker(v), derivation.value((v, place)), rows, size).node for n, v in wanted.items()
        }
    for key, state in states.items():
        if state.kind != "constant":
            results[STATE_PREFIX + state.name] = derivation.value(key).node
    signature = (*inputs.values(), offset, length, *ended, *held.values())
    name = "decode" if chunk == 1 else f"prefill.{chunk}" if last else f"chunk.{chunk}"
    program = with_unique_names(Graph(f"{graph.name}.{name}", signature, graph.parameters, results))
    return Program(name, program, tuple(states.values()), rows, chunk, capacity)


def derive_score(
    graph: Graph,
    *,
    rows: int,
    length: int,
    source_lengths: Mapping[str, int] | None = None,
) -> Program:
    """The program that runs whole sequences of up to ``length`` positions in one pass, without
    states; results are [rows, length, …]. Also for graphs that read the whole of their own clock."""
    first = next(iter(graph.outputs.values()))
    clock = str(first.clock)
    lengths = {c: length if c == clock else (source_lengths or {}).get(c, length) for c in graph.clocks}
    inputs = {n: _program_input(n.name, _chunk_type(n, rows, lengths[str(n.clock)])) for n in graph.inputs}
    offset = _program_input("offset", TensorType((rows,), "i32"))
    derivation, counts = _closed(graph, rows, lengths, clock, inputs)
    results = {
        name: stretch(Maker(node), derivation.value((node, "own")), rows, length).node
        for name, node in graph.outputs.items()
        if node.clock == clock
    }
    signature = (*inputs.values(), offset, counts.pop(clock), *counts.values())
    program = with_unique_names(Graph(f"{graph.name}.score", signature, graph.parameters, results))
    return Program(f"score.{length}", program, (), rows, length, length)


def derive_source(
    graph: Graph, plan: StatePlan, *, rows: int, source_lengths: Mapping[str, int], capacity: int
) -> Program:
    """The program that runs the source clocks once and yields the constants that the target reads."""
    sizes = Sizes(rows, capacity, 1, dict(source_lengths))
    states = {key: s for key, s in plan_states(graph, plan, sizes).items() if s.kind == "constant"}
    inputs = {
        n: _program_input(n.name, _chunk_type(n, rows, source_lengths[str(n.clock)]))
        for n in graph.inputs
        if n.clock != plan.clock
    }
    offset = _program_input("offset", TensorType((rows,), "i32"))
    length = _program_input("length", TensorType((rows,), "i32"))
    derivation, counts = _closed(graph, rows, dict(source_lengths), plan.clock, inputs)
    results = {}
    for (node, _), state in states.items():
        placed = derivation.value((node, "own"))
        make = Maker(node)
        results[STATE_PREFIX + state.name] = make.broadcast(placed.node, state.type.static_shape)
    signature = (*inputs.values(), offset, length, *counts.values())
    program = with_unique_names(Graph(f"{graph.name}.source", signature, graph.parameters, results))
    return Program("source", program, tuple(states.values()), rows, max(source_lengths.values()), capacity)


def plan_states(graph: Graph, plan: StatePlan, sizes: Sizes) -> dict[Key, State]:
    """A state for each key (stream, place) of the plan, in the order of the graph."""
    states: dict[Key, State] = {}
    rank = {node: i for i, node in enumerate(graph.nodes)}

    def keep(node: Node, place: str, kind: str, shape: tuple[int, ...], access: Access, reason: str) -> None:
        # A stream can have two buffers, say a history and the tail of a delay.
        taken = any(state.name == node.name for state in states.values())
        per_token = node.tensor.bytes if place == "state" else 0
        states[node, place] = State(
            name=f"{node.name}.{place}" if taken else node.name,
            kind=kind,
            type=node.tensor.with_shape((sizes.rows, *shape)),
            value=node.tensor,
            bytes_per_token=per_token,
            access=access,
            reason=reason,
        )

    for node, window in sorted(plan.histories.items(), key=lambda item: rank[item[0]]):
        kind = "ring" if sizes.is_ring(window) else "append"
        shape = (sizes.slots(window), *node.tensor.static_shape)
        keep(node, "state", kind, shape, plan.access(node), plan.reasons[node])
    for node, steps in plan.tails.items():
        reason = f"read {steps} position{'s' * (steps > 1)} later"
        keep(node, "tail", "tail", (steps, *node.tensor.static_shape), delay_access(steps), reason)
    for node in plan.carries:
        reason = "read one position later, by what it is made from"
        keep(node, "carry", "carry", node.tensor.static_shape, delay_access(1), reason)
    for node in plan.constants:
        shape = tuple(sizes.sources[d.clock] if isinstance(d, Whole) else int(d) for d in node.tensor.shape)  # type: ignore[arg-type]
        reason = "the same at every position, once the source clock has ended"
        keep(node, "constant", "constant", shape, NOW, reason)
    return states


def _closed(
    graph: Graph, rows: int, lengths: Mapping[str, int], clock: str, inputs: Mapping[Node, Node]
) -> tuple[Derivation, dict[str, Node]]:
    """A derivation whose frames hold every position of each clock, and the length inputs by clock."""
    counts: dict[str, Node] = {}
    frames: dict[str, Frame] = {}
    ends: dict[str, Node] = {}
    for name, size in lengths.items():
        label = "length" if name == clock else f"length.{name}"
        counts[name] = _program_input(label, TensorType((rows,), "i32"))
        make = Maker(None, f"whole.{name}")
        start = make.broadcast(make.integer(0), (rows,), "start")
        positions, valid = chunk_positions(rows, size, start, counts[name])
        ends[name] = valid
        frames[name] = Frame(rows, size, positions, valid, {}, ends, append_slots("past", size))
    derivation = Derivation(graph, frames, inputs, Buffers(), clock=clock, closed=True, lengths=counts)
    return derivation, counts


def _recompute_all(
    derivation: Derivation, wanted: Mapping[str, Node], sizes: Sizes, last: bool
) -> dict[str, Node]:
    """Every result from the stored inputs alone: one closed pass over all slots, then the chunk's."""
    graph, clock = derivation.graph, derivation.clock
    frame = derivation.frames[clock]
    inputs = {node: derivation.value((node, "state")).node for node in derivation.given}
    make = Maker(None, "recompute")
    steps = make("arange", label="positions", size=sizes.capacity)
    positions = make.broadcast(steps, (sizes.rows, sizes.capacity), "positions")
    newest = make.reshape(make("max", frame.positions, axes=(1,), label="newest"), (sizes.rows, 1), "newest")
    valid = make("less_equal", positions, newest, label="valid")
    everything = Frame(
        sizes.rows, sizes.capacity, positions, valid, {}, frame.ends, append_slots("past", sizes.capacity)
    )
    constants = {key: node for key, node in derivation.buffers.initial.items() if key[1] == "constant"}
    closed = Derivation(
        graph,
        {clock: everything},
        inputs,
        Buffers(initial=constants),
        clock=clock,
        closed=True,
        lengths=derivation.lengths,
    )
    first = next(iter(graph.outputs.values()))
    wanted_positions = derivation.last_frame(first).positions if last else frame.positions
    results = {}
    for name, node in wanted.items():
        placed = stretch(Maker(node), closed.value((node, "own")), sizes.rows, sizes.capacity)
        results[name] = Maker(node, "@chunk")("read_rows", placed.node, wanted_positions)
    return results


def _slots(plan: StatePlan, sizes: Sizes, offset: Node, length: Node) -> dict[Past, Slots]:
    """Where the past of each ragged dimension is; one ``Slots`` for each window class."""
    classes: dict[int | None, Slots] = {}
    for window in dict.fromkeys((*plan.layouts.values(), *plan.histories.values())):
        place, count = f"past{window or ''}", sizes.slots(window)
        if sizes.is_ring(window):
            classes[window] = ring_slots(place, count, sizes.rows, offset, length)
        else:
            classes[window] = append_slots(place, count)
    return {dim: classes[window] for dim, window in plan.layouts.items()}


def _ends(plan: StatePlan, graph: Graph, sizes: Sizes) -> tuple[dict[str, Node], tuple[Node, ...]]:
    """For each finished clock that is read: which of its positions are real, from ``length.CLOCK``."""
    read = {d.clock for node in graph.nodes for d in _dims(node) if isinstance(d, Whole)}
    ends: dict[str, Node] = {}
    inputs = []
    for clock in sorted(read - {plan.clock}):
        if clock not in sizes.sources:
            raise SystolicError(
                f"the length of clock {clock!r} is not given: source_lengths={{{clock!r}: …}}"
            )
        count = _program_input(f"length.{clock}", TensorType((sizes.rows,), "i32"))
        inputs.append(count)
        make = Maker(None, f"whole.{clock}")
        steps = make("arange", label="steps", size=sizes.sources[clock])
        column = make.reshape(count, (sizes.rows, 1), "column")
        ends[clock] = make("less", steps, column, label="real")
    return ends, tuple(inputs)


def _dims(node: Node) -> tuple:
    return tuple(d for d in node.tensor.shape if is_ragged(d)) if isinstance(node.type, TensorType) else ()


def _chunk_type(node: Node, rows: int, size: int) -> TensorType:
    return node.tensor.with_shape((rows, size, *node.tensor.shape))


def _program_input(name: str, type_: TensorType) -> Node:
    return make_node(OPS["input"], (), {"type": type_}, name=name)
