"""Recurrences that are linear in their own past: run in parallel, as an associative scan.

    %h = feedback(%initial)                       %a, %b: all positions of the chunk at once
    %product = multiply(%a, %h)            →      %start = the carry, or %initial at position 0
    %total = add(%product, %b)                    %total = linear_scan(%a, %b, %start)
    feedback %h <- %total

So is ``maximum(add(%a, %h), %b)``, as maxima and sums obey the same laws as sums and products. Must not
fire where the factor or the term depend on the recurrence itself, or where anything else happens on the
way round: such a part stays a loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes

from ...ir.graph import Node
from ...ir.ops.program import SCALES
from ...ir.types import DTYPES, FLOATS, TensorType
from .derivation import Derivation, Key, Loop, Steps, zeros
from .placed import Maker, Placed, align


@dataclass(frozen=True)
class Recurrence:
    """total = decay * previous + inflow; without a ``product`` the factor is one.

    ``join`` is the op of the plus, ``scale`` that of the times; ``zero`` and ``one`` change nothing there.
    """

    previous: Node
    total: Node
    inflow: Node
    product: Node | None = None
    decay: Node | None = None

    @property
    def join(self) -> str:
        return self.total.op.name

    @property
    def scale(self) -> str:
        return SCALES[self.join]

    @property
    def zero(self) -> float:
        limits: Any = ml_dtypes.finfo(DTYPES[self.total.tensor.dtype])
        return 0.0 if self.join == "add" else float(limits.min)

    @property
    def one(self) -> float:
        return 1.0 if self.scale == "multiply" else 0.0


def find_recurrence(derivation: Derivation, members: frozenset[Node]) -> Recurrence | None:
    """The linear recurrence that a strongly connected part is, if it is one."""
    previous = next(node for node in members if node.op.name == "feedback")
    total = derivation.closing[previous]
    if total.op.name not in SCALES or total not in members or previous.tensor.dtype not in FLOATS:
        return None
    inside = [node for node in total.sources if node in members]
    inflow = [node for node in total.sources if node not in members]
    if len(inside) != 1 or len(inflow) != 1:
        return None
    product = inside[0]
    if product is previous:
        return Recurrence(previous, total, inflow[0]) if len(members) == 2 else None
    is_scaled = product.op.name == SCALES[total.op.name] and product.type == previous.type
    if not is_scaled or len(members) != 3:
        return None
    decay = [node for node in product.sources if node is not previous]
    if len(decay) != 1:  # the square of the previous value
        return None
    return Recurrence(previous, total, inflow[0], product, decay[0])


def make_scan(derivation: Derivation, part: Recurrence) -> Steps:
    """The streams and the carry of a linear recurrence."""
    start = yield from start_of(derivation, part.previous)
    return (yield from make_scan_from(derivation, part, start))


def make_scan_from(derivation: Derivation, part: Recurrence, start: Node) -> Steps:
    """The same from what was there before the first position, ``start`` [B, 1, …]."""
    frame, make = derivation.frame(part.total), Maker(part.total)
    value = part.previous.tensor
    own = value.static_shape
    shape, row_shape = (frame.rows, frame.size, *own), (frame.rows, *own)
    inflow = yield part.inflow, "own"
    term = make.broadcast(align(make, inflow, 2, value.rank), shape, "inflow")
    factor = make.broadcast(make.constant(part.one, value.dtype), shape, "decay")
    if part.decay is not None:
        decay = yield part.decay, "own"
        factor = make.broadcast(align(make, decay, 2, value.rank), shape, "decay")
    # Padding changes nothing: h = one * h + zero.
    valid = make.reshape(frame.valid, (*shape[:2], *(1 for _ in own)), "valid")
    factor = make("where", valid, factor, make.constant(part.one, value.dtype), label="decay")
    term = make("where", valid, term, make.constant(part.zero, value.dtype), label="inflow")
    join = {} if part.join == "add" else {"join": part.join}
    states = make("linear_scan", factor, term, make.reshape(start, row_shape, "start"), **join)
    before = _shifted(Maker(part.previous), start, states)
    streams = {part.total: Placed(states, 2, value.shape), part.previous: Placed(before, 2, value.shape)}
    if part.product is not None:
        product = Maker(part.product)(part.scale, factor, before)
        streams[part.product] = Placed(product, 2, value.shape)
    last = make.reshape(_positions(make, states, frame.size - 1, frame.size), row_shape)
    key: Key = (part.previous, "carry")
    return Loop(streams, {key: Placed(last, 1, value.shape)})


def start_of(derivation: Derivation, previous: Node) -> Steps:
    """[B, 1, …]: the carry, or the initial value for rows that begin at position 0."""
    initial = yield previous.sources[0], "own"
    frame, value, make = derivation.frame(previous), previous.tensor, Maker(previous, "@start")
    shape = (frame.rows, 1, *value.static_shape)
    if derivation.closed:
        carry = zeros(make, TensorType(shape, value.dtype))
    else:
        carry = make.reshape(derivation.buffers.initial[previous, "carry"], shape, "carry")
    first = _positions(make, frame.positions, 0, 1)
    started = make("greater", first, make.integer(0), label="started")
    return derivation.choose(make, started, carry, initial).node


def _shifted(make: Maker, start: Node, states: Node) -> Node:
    """The state before each position."""
    size = states.tensor.static_shape[1]
    return make("concatenate", start, _positions(make, states, 0, size - 1), axis=1)


def _positions(make: Maker, node: Node, start: int, limit: int) -> Node:
    """Positions ``start`` up to ``limit`` of [B, n, …]."""
    rows, _, *rest = node.tensor.static_shape
    starts, limits = (0, start, *(0 for _ in rest)), (rows, limit, *rest)
    return make("slice", node, label="positions", starts=starts, limits=limits)
