"""The programs of a graph: chunks against states, one closed pass, and the run of a source clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...ir.errors import SystolicError
from ...ir.graph import Graph, Node, make_node, postorder
from ...ir.ops import OPS
from ...ir.types import Past, TensorType, Whole, is_ragged
from ..collection import paused_collection
from ..passes.share import share
from ..passes.simplify import simplify
from ..program import STATE_PREFIX, Program
from .derivation import Buffers, Derivation
from .frames import Frame, Slots, append_slots, chunk_positions, ring_slots
from .loop import ChunkDerivation
from .placed import Maker, constant_axis, settle, slots_inside, stretch
from .sizes import Sizes, plan_states
from .states import StatePlan


@paused_collection()
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
    inputs = _model_inputs(graph, rows, {plan.clock: chunk})
    offset, length = (_program_input(name, TensorType((rows,), "i32")) for name in ("offset", "length"))
    ends, ended = _ends(plan, graph, sizes)
    held = {key: _program_input(STATE_PREFIX + state.name, state.type) for key, state in states.items()}
    positions, valid = chunk_positions(rows, chunk, offset, length)
    slots = _slots(plan, sizes, offset, length)
    derivation = ChunkDerivation(
        graph,
        {plan.clock: Frame(rows, chunk, positions, valid, slots, ends, append_slots("past", capacity))},
        inputs,
        Buffers(frozenset(plan.histories), plan.tails, held),
        clock=plan.clock,
        closed=False,
        lengths={plan.clock: length},
    )
    wanted = {name: node for name, node in graph.outputs.items() if node.clock == plan.clock}
    if plan.strategy == "tokens":
        results = _recompute_all(derivation, wanted, sizes, last)
    else:
        results = _results(derivation, wanted, "last" if last else "own", 1 if last else chunk)
    for key, state in states.items():
        if state.kind != "constant":
            results[STATE_PREFIX + state.name] = derivation.value(key).node
    name = "decode" if chunk == 1 else f"prefill.{chunk}" if last else f"chunk.{chunk}"
    signature = (*inputs.values(), offset, length, *ended, *held.values())
    program = _tidy(Graph(f"{graph.name}.{name}", signature, graph.parameters, results))
    return Program(name, program, tuple(states.values()), rows, chunk, capacity)


@paused_collection()
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
    inputs = _model_inputs(graph, rows, lengths)
    offset = _program_input("offset", TensorType((rows,), "i32"))
    derivation, counts = _closed(graph, rows, lengths, clock, inputs)
    wanted = {name: node for name, node in graph.outputs.items() if node.clock in (clock, None)}
    results = _results(derivation, wanted, "own", length)
    signature = (*inputs.values(), offset, counts.pop(clock), *counts.values())
    program = _tidy(Graph(f"{graph.name}.score", signature, graph.parameters, results))
    return Program(f"score.{length}", program, (), rows, length, length)


@paused_collection()
def derive_source(
    graph: Graph, plan: StatePlan, *, rows: int, source_lengths: Mapping[str, int], capacity: int
) -> Program:
    """The program that runs the source clocks once and yields the constants that the target reads."""
    sizes = Sizes(rows, capacity, 1, dict(source_lengths))
    states = {key: s for key, s in plan_states(graph, plan, sizes).items() if s.kind == "constant"}
    inputs = _model_inputs(graph, rows, source_lengths)
    offset = _program_input("offset", TensorType((rows,), "i32"))
    length = _program_input("length", TensorType((rows,), "i32"))
    derivation, counts = _closed(graph, rows, dict(source_lengths), plan.clock, inputs)
    results = {}
    for (node, _), state in states.items():
        placed = derivation.value((node, "own"))
        make = Maker(node)
        shape = settle(node.tensor.shape, sizes.extent)
        values = make.broadcast(placed.node, (rows, *shape))
        axis = constant_axis(node.tensor.shape)
        results[STATE_PREFIX + state.name] = slots_inside(make, values, axis)
    signature = (*inputs.values(), offset, length, *counts.values())
    program = _tidy(Graph(f"{graph.name}.source", signature, graph.parameters, results))
    return Program("source", program, tuple(states.values()), rows, max(source_lengths.values()), capacity)


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
    derivation = ChunkDerivation(graph, frames, inputs, Buffers(), clock=clock, closed=True, lengths=counts)
    return derivation, counts


def _recompute_all(
    derivation: Derivation, wanted: Mapping[str, Node], sizes: Sizes, last: bool
) -> dict[str, Node]:
    """Every result from the stored inputs alone: one closed pass over all slots, then the chunk's."""
    graph, clock = derivation.graph, derivation.clock
    frame = derivation.frames[clock]
    inputs = {
        node: given if node.clock is None else derivation.value((node, "kept")).node
        for node, given in derivation.given.items()
    }
    make = Maker(None, "recompute")
    steps = make("arange", label="positions", size=sizes.capacity)
    positions = make.broadcast(steps, (sizes.rows, sizes.capacity), "positions")
    newest = make.reshape(make("max", frame.positions, axes=(1,), label="newest"), (sizes.rows, 1), "newest")
    valid = make("less_equal", positions, newest, label="valid")
    everything = Frame(
        sizes.rows, sizes.capacity, positions, valid, {}, frame.ends, append_slots("past", sizes.capacity)
    )
    constants = {key: node for key, node in derivation.buffers.initial.items() if key[1] == "constant"}
    closed = ChunkDerivation(
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


def _model_inputs(graph: Graph, rows: int, lengths: Mapping[str, int]) -> dict[Node, Node]:
    """The inputs of the clocks in ``lengths``, each with rows and that many positions; and those without a
    clock, with rows alone."""
    leading: dict[Node, tuple[int, ...]] = {n: (rows,) for n in graph.inputs if n.clock is None}
    leading |= {n: (rows, lengths[str(n.clock)]) for n in graph.inputs if n.clock in lengths}
    return {
        node: _program_input(node.name, node.tensor.with_shape((*leading[node], *node.tensor.shape)))
        for node in graph.inputs
        if node in leading
    }


def _results(derivation: Derivation, wanted: Mapping[str, Node], place: str, size: int) -> dict[str, Node]:
    """The outputs [rows, size, …], also those that are the same at every position."""
    rows = derivation.frames[derivation.clock].rows
    return {
        name: stretch(Maker(node), derivation.value((node, place)), rows, size).node
        for name, node in wanted.items()
    }


def _tidy(program: Graph) -> Graph:
    """Merges the rearrangements that alignment made, computes equal ones once, and names all nodes.

    Weights that only another program reads, as a decoder does not read its encoder's, are left out.
    """
    tidy = share(simplify(program)).with_unique_names()
    needed = set(postorder(tidy.outputs.values(), lambda node: node.sources))
    return replace(tidy, parameters=tuple(node for node in tidy.parameters if node in needed))


def _program_input(name: str, type_: TensorType) -> Node:
    return make_node(OPS["input"], (), {"type": type_}, name=name)
