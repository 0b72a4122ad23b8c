"""Programs that move rows of states: one row out of the buffers of a batch, and into them.

What is kept by position (``append``) moves a piece of ``slots`` positions at a time, so that a short text
costs little; every other kind moves a whole row. In a piece, slots stand where they stand in the buffer:
f32[1, …, slots, …]. A buffer that is written is donated, so only the piece is touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir.graph import Graph, Node, make_node
from ...ir.ops import OPS
from ...ir.types import TensorType
from ..passes.share import share
from ..program import STATE_PREFIX, Program, State
from .placed import Maker, with_slots

PIECE_PREFIX = "piece."
_ONE = TensorType((1,), "i32")


def derive_take(states: Sequence[State], slots: int) -> Program:
    """(``row`` i32[1], ``start`` i32[1], states) → a piece of each ``append`` state, by its name.

    The piece holds positions ``start`` … ``start + slots - 1``; what the row has not written is arbitrary.
    """
    row, start = _input("row", _ONE), _input("start", _ONE)
    held, results = _held(states), {}
    for state in states:
        make = Maker(None, state.name)
        index = _slot_index(state, slots, row, start)
        piece = make("read_rows", _flat(make, held[state.name], state), index, label="slots")
        results[state.name] = make.reshape(piece, piece_type(state, slots).static_shape, "piece")
    return _program(f"take.{slots}", states, (row, start, *held.values()), results, slots)


def derive_put(states: Sequence[State], slots: int) -> Program:
    """(``row``, ``start``, ``length`` i32[1], pieces ``piece.NAME``, states) → states.

    Writes the first ``length`` positions of each piece to positions ``start`` … of the row.
    """
    row, start, length = (_input(name, _ONE) for name in ("row", "start", "length"))
    held, results = _held(states), {}
    pieces = {s.name: _input(PIECE_PREFIX + s.name, piece_type(s, slots)) for s in states}
    for state in states:
        make = Maker(None, state.name)
        flat = _flat(make, held[state.name], state)
        index = _real_index(state, slots, length, _slot_index(state, slots, row, start))
        shape = (1, index.tensor.static_shape[1], *flat.tensor.static_shape[2:])
        values = make.reshape(pieces[state.name], shape, "values")
        written = make("write_rows", flat, values, index, label="slots")
        results[STATE_PREFIX + state.name] = make.reshape(written, state.type.static_shape, "written")
    inputs = (row, start, length, *pieces.values(), *held.values())
    return _program(f"put.{slots}", states, inputs, results, slots)


def derive_save(states: Sequence[State], name: str = "save") -> Program:
    """(``row`` i32[1], states) → the row [1, …] of each state, by its name."""
    row, held, results = _input("row", _ONE), _held(states), {}
    for state in states:
        make = Maker(None, state.name)
        rows = make.reshape(held[state.name], (1, *state.type.static_shape), "rows")
        taken = make("read_rows", rows, make.reshape(row, (1, 1), "index"), label="taken")
        results[state.name] = make.reshape(taken, row_type(state).static_shape, "row")
    return _program(name, states, (row, *held.values()), results, 1)


def derive_restore(states: Sequence[State], name: str = "restore") -> Program:
    """(``row`` i32[1], rows ``piece.NAME`` [1, …], states) → states with that row replaced."""
    row, held, results = _input("row", _ONE), _held(states), {}
    pieces = {s.name: _input(PIECE_PREFIX + s.name, row_type(s)) for s in states}
    for state in states:
        make = Maker(None, state.name)
        rows = make.reshape(held[state.name], (1, *state.type.static_shape), "rows")
        value = make.reshape(pieces[state.name], (1, *row_type(state).static_shape), "value")
        written = make("write_rows", rows, value, make.reshape(row, (1, 1), "index"), label="replaced")
        results[STATE_PREFIX + state.name] = make.reshape(written, state.type.static_shape, "written")
    return _program(name, states, (row, *pieces.values(), *held.values()), results, 1)


def piece_type(state: State, slots: int) -> TensorType:
    """The type of ``slots`` positions of one row of an ``append`` state."""
    return state.type.with_shape((1, *with_slots(state.value.static_shape, slots)))


def row_type(state: State) -> TensorType:
    """The type of one row of a state."""
    return state.type.with_shape((1, *state.type.static_shape[1:]))


def _lines(state: State) -> int:
    """How many runs of slots a row has: one for each number of the axes before the slots."""
    return math.prod(state.value.static_shape[:-1])


def _flat(make: Maker, buffer: Node, state: State) -> Node:
    """The buffer [B, …, S, D] as [1, B · … · S, D], so that slots of one row are rows of a table."""
    inner = state.value.static_shape[-1:]
    count = math.prod(buffer.tensor.static_shape) // math.prod(inner)
    return make.reshape(buffer, (1, count, *inner), "flat")


def _slot_index(state: State, slots: int, row: Node, start: Node) -> Node:
    """i32[1, lines · slots]: where the slots from ``start`` on stand in the flat buffer."""
    lines, make = _lines(state), Maker(None, "index")
    row_line = make("multiply", row, make.integer(lines), label="row")
    line = make("add", row_line, make("arange", label="lines", size=lines), label="line")
    line_slot = make("multiply", line, make.integer(slot_count(state)), label="base")
    first = make.reshape(make("add", line_slot, start, label="first"), (lines, 1), "column")
    slot = make("add", first, make("arange", label="steps", size=slots), label="slot")
    return make.reshape(slot, (1, lines * slots), "slots")


def _real_index(state: State, slots: int, length: Node, index: Node) -> Node:
    """The index with what is behind the first ``length`` slots of each line moved outside."""
    count, make = _lines(state) * slots, Maker(None, "real")
    steps = make("arange", label="steps", size=count)
    step = make("remainder", steps, make.integer(slots), label="step")
    real = make.reshape(make("less", step, length, label="slot"), (1, count), "slots")
    outside = math.prod(state.type.static_shape)  # more than any index
    return make("where", real, index, make.integer(outside), label="index")


def slot_count(state: State) -> int:
    """How many slots a row of an ``append`` or ``ring`` state has."""
    return math.prod(state.type.static_shape[1:]) // math.prod(state.value.static_shape)


def _held(states: Sequence[State]) -> dict[str, Node]:
    return {state.name: _input(STATE_PREFIX + state.name, state.type) for state in states}


def _input(name: str, type_: TensorType) -> Node:
    return make_node(OPS["input"], (), {"type": type_}, name=name)


def _program(
    name: str, states: Sequence[State], inputs: tuple[Node, ...], results: dict[str, Node], slots: int
) -> Program:
    graph = share(Graph(name, inputs, (), results)).with_unique_names()
    return Program(name, graph, tuple(states), states[0].type.static_shape[0], slots, slots)
