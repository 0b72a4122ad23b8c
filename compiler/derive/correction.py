"""Memories that are corrected by what they hold: the delta rule, in blocks of positions.

    %faded = multiply(%a, %h)                       S(t) = a(t) S(t-1) + k(t) v(t)
    %read  = contraction(%faded, %q)                v(t) = b(t) + c(t) q(t) a(t) S(t-1)
    %change = multiply(%c, subtract(%v, %read))
    %total = add(%faded, contraction(%k, %change))

With p(t, s) as in ``memory``, the values of a block are the solution of a triangular system,

    v(t) - sum over s < t of c(t) p(t, s) (q(t) k(s)) v(s) = b(t) + c(t) p(t, 0) q(t) S(0)

whose matrix does not depend on the state S(0) in front of the block: all blocks are solved at once, and
only S(0) goes from block to block in a loop.

Must not fire where the correction is not a sum of what was read, scaled alike for all elements of a value,
and of what comes from outside, or where anything else reads what is inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Graph, Node, make_node
from ...ir.ops import OPS
from .derivation import Derivation, Steps
from .memory import (
    Blocks,
    Memory,
    Reading,
    find_memory,
    find_reading,
    inflow_of,
    is_read_alone,
    make_factor,
    make_responses,
    real,
)
from .placed import Maker, Placed, align, stretch
from .scan import Recurrence, start_of
from .terms import Term, contract, expand, in_blocks, multiply, pick

_AFFINE = ("add", "subtract", "multiply", "negative")


@dataclass(frozen=True)
class Correction:
    """A memory whose value, ``path[-1]``, is made from what it holds, ``read``, by the ops of ``path``."""

    memory: Memory
    read: Node
    reading: Reading
    path: tuple[Node, ...]


def find_correction(derivation: Derivation, members: frozenset[Node]) -> Correction | None:
    """The corrected memory that a strongly connected part is, if it is one."""
    previous = next(node for node in members if node.op.name == "feedback")
    memory = _find_memory(derivation, previous, members)
    if memory is None:
        return None
    recurrence, graph = memory.recurrence, derivation.graph
    faded, change = recurrence.product or previous, memory.factors[1][0]
    inner = {previous, faded, recurrence.inflow, recurrence.total}
    reads = [node for node in members - inner if faded in node.sources]
    reading = find_reading(reads[0], faded, memory) if len(reads) == 1 else None
    if reading is None or reading.key != 0 or reading.query in members:
        return None
    path = tuple(node for node in graph.nodes if node in members - inner and node is not reads[0])
    if not path or path[-1] is not change or not _is_diagonal(memory, reading):
        return None
    shared = "".join(c if c in _kept(memory, reading) else "." for c in memory.factors[1][1])
    if not all(_is_affine(node, reads[0], members, shared) for node in path):
        return None
    if not is_read_alone(graph, memory, members):
        return None
    return Correction(memory, reads[0], reading, path)


def _find_memory(derivation: Derivation, previous: Node, members: frozenset[Node]) -> Memory | None:
    """The memory that the part would be if its value came from outside; the value is its second factor."""
    total = derivation.closing[previous]
    inside = [node for node in total.sources if node in members]
    flows = [node for node in inside if node.op.name == "contraction"]
    if total.op.name != "add" or len(inside) != 2 or len(flows) != 1:
        return None
    (faded,) = (node for node in inside if node is not flows[0])
    decays = [node for node in faded.sources if node is not previous]
    product = None if faded is previous else faded
    if product and (product.op.name != "multiply" or len(decays) != 1 or decays[0] in members):
        return None
    decay = decays[0] if product else None
    memory = find_memory(Recurrence(previous, total, flows[0], product, decay))
    values = [node for node, _ in memory.factors if node in members] if memory else []
    if memory is None or len(values) != 1:
        return None
    return memory if memory.factors[1][0] is values[0] else memory.swapped()


def _is_affine(node: Node, read: Node, members: frozenset[Node], shared: str) -> bool:
    """Whether an op on the way keeps elements apart, and scales all alike along axes that ``shared`` dots."""
    inside = [source for source in node.sources if source in members]
    if (
        node.op.name not in _AFFINE
        or node.tensor != read.tensor
        or any(s.tensor != read.tensor for s in inside)
    ):
        return False
    if node.op.name != "multiply":
        return True
    scales = [source.tensor.static_shape for source in node.sources if source not in members]
    return len(inside) == 1 and all(
        size == 1 or letter != "."
        for shape in scales
        for size, letter in zip(reversed(shape), reversed(shared), strict=False)
    )


def _kept(memory: Memory, reading: Reading) -> set[str]:
    """The axes along which there is a system of its own for each element."""
    return {*reading.query_letters, *memory.factors[0][1], *memory.decay_letters} - reading.summed


def _is_diagonal(memory: Memory, reading: Reading) -> bool:
    """Whether each element of a value is read from the same element of values alone."""
    value = memory.factors[1][1]
    return reading.result == value and _kept(memory, reading) <= set(value)


def make_corrected(derivation: Derivation, correction: Correction) -> Steps:
    """The blocks of a corrected memory, with the values that solve the system of each."""
    memory, reading = correction.memory, correction.reading
    recurrence = memory.recurrence
    frame, make = derivation.frame(recurrence.total), Maker(recurrence.total, "@blocks")
    size = memory.block(frame.size)
    scale, offset = yield from _make_path(derivation, correction)
    value = memory.factors[1][1]
    own = real(derivation, recurrence.total, make, offset, 0.0)
    own_value = in_blocks(make, Term(own, f"BT{value}"), size, 0.0)
    factor = in_blocks(make, _without_ones(make, Term(scale, f"BT{value}")), size, 0.0)
    placed = yield reading.query, "own"
    query = Term(stretch(make, placed, frame.rows, frame.size).node, f"BT{reading.query_letters}")
    query = in_blocks(make, query, size, 0.0)
    key = yield from make_factor(derivation, memory, 0)
    left, first = yield from make_responses(derivation, memory)
    start = yield from start_of(derivation, recurrence.previous)
    solver = _solver(make, query, key, left, factor, reading)
    entering = _product(make, factor, first)
    parts = {"solver": solver, "own": own_value, "query": query, "entering": entering, "key": key}
    parts |= {"left": pick(make, left, "T", size - 1), "first": pick(make, first, "T", size - 1)}
    return _chain(make, memory, parts, left, first, start)


def _make_path(derivation: Derivation, correction: Correction) -> Steps:
    """The value as scale * read + offset: both [B, n, …], the scale with ones where it is the same."""
    read = correction.read
    frame, make, rank = derivation.frame(read), Maker(correction.path[-1], "@affine"), read.tensor.rank
    one, zero = (make.constant(number, read.tensor.dtype) for number in (1.0, 0.0))
    shape = (1,) * (rank + 2)
    known = {read: (make.broadcast(one, shape), make.broadcast(zero, shape))}
    for node in correction.path:
        scales, offsets = [], []
        for source in node.sources:
            if source in known:
                scale, offset = known[source]
            else:
                placed = yield source, "own"
                scale, offset = make.broadcast(zero, shape), _spread(make, placed, rank)
            scales.append(scale)
            offsets.append(offset)
        offset = make(node.op.name, *offsets)
        if node.op.name == "multiply":
            inside = 0 if node.sources[0] in known else 1
            known[node] = (make("multiply", scales[inside], offsets[1 - inside]), offset)
        else:
            known[node] = (make(node.op.name, *scales), offset)
    scale, offset = known[correction.path[-1]]
    rows = (frame.rows, frame.size)
    scale = make.broadcast(scale, (*rows, *scale.tensor.static_shape[2:]), "scale")
    return scale, make.broadcast(offset, (*rows, *read.tensor.static_shape), "offset")


def _spread(make: Maker, placed: Placed, rank: int) -> Node:
    """The value [B, n, …] with ones where it is the same for all."""
    node = align(make, placed, 2, rank)
    missing = rank + 2 - node.tensor.rank
    return make.reshape(node, (*(1,) * missing, *node.tensor.static_shape), "spread")


def _without_ones(make: Maker, x: Term) -> Term:
    """Without the axes behind the first two along which there is one element."""
    letters = x.letters[:2] + "".join(c for c in x.letters[2:] if x.size(c) != 1)
    return Term(make.reshape(x.node, tuple(x.size(c) for c in letters), "narrow"), letters)


def _product(make: Maker, x: Term, y: Term) -> Term:
    """The product over the letters of both."""
    letters = x.letters + "".join(c for c in y.letters if c not in x.letters)
    return multiply(make, x, y, letters)


def _solver(make: Maker, query: Term, key: Term, left: Term, factor: Term, reading: Reading) -> Term:
    """The inverse of the system of each block, BK…TS."""
    kept = "".join(c for c in dict.fromkeys(query.letters[3:] + key.letters[3:]) if c not in reading.summed)
    scores = contract(make, query, key, f"BKTS{kept}", "scores")
    matrix = _product(make, _product(make, scores, left), factor)
    letters = f"BK{matrix.letters[4:]}TS"
    size = matrix.size("T")
    strict = np.tril(np.ones((size, size), bool), -1)
    nodes = expand(make, matrix, letters)
    none = make.constant(0.0, nodes.tensor.dtype)
    mask = make.broadcast(make.constant(strict, "bool"), nodes.tensor.static_shape, "strict")
    return Term(_inverse(make, make("where", mask, nodes, none, label="strict")), letters)


def _inverse(make: Maker, lower: Node) -> Node:
    """The inverse of 1 - ``lower`` [..., n, n], of which only what lies below the diagonal is not zero.

    Blocks on the diagonal are inverted in pairs, from blocks of one element up: below the inverses of a
    pair lies what is between them, times the one from the left and the other from the right.
    """
    *lead, size, _ = lower.tensor.static_shape
    names = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(lead)]
    dtype = lower.tensor.dtype
    done = make.broadcast(make.constant(1.0, dtype), (*lead, size, 1, 1), "ones")
    width = 1
    while width < size:
        pairs = size // (2 * width)
        grid = make.reshape(lower, (*lead, pairs, 2, width, pairs, 2, width), "grid")
        none, full = [0] * len(lead), list(lead)
        starts, limits = (*none, 0, 1, 0, 0, 0, 0), (*full, pairs, 2, width, pairs, 1, width)
        between = make("slice", grid, label="between", starts=starts, limits=limits)
        between = make.reshape(between, (*lead, pairs, width, pairs, width), "between")
        same = make.constant(np.eye(pairs), dtype)
        between = make("contraction", between, same, subscripts=f"{names}asbt,ab->{names}ast")
        halves = make.reshape(done, (*lead, pairs, 2, width, width), "halves")
        upper, under = (
            make.reshape(
                make(
                    "slice",
                    halves,
                    label="half",
                    starts=(*none, 0, i, 0, 0),
                    limits=(*full, pairs, i + 1, width, width),
                ),
                (*lead, pairs, width, width),
                "half",
            )
            for i in (0, 1)
        )
        corner = make("contraction", under, between, subscripts=f"{names}ast,{names}atu->{names}asu")
        corner = make("contraction", corner, upper, subscripts=f"{names}ast,{names}atu->{names}asu")
        empty = make.broadcast(make.constant(0.0, dtype), corner.tensor.static_shape, "empty")
        axis = len(lead) + 2
        top = make("concatenate", upper, empty, label="top", axis=axis)
        bottom = make("concatenate", corner, under, label="bottom", axis=axis)
        done = make("concatenate", top, bottom, label="inverse", axis=axis - 1)
        width *= 2
    return make.reshape(done, (*lead, size, size), "inverse")


def _chain(
    make: Maker, memory: Memory, parts: Mapping[str, Term], left: Term, first: Term, start: Node
) -> Blocks:
    """The states from block to block, in a loop over blocks."""
    rows, blocks = left.size("B"), left.size("K")
    state_shape = (rows, *start.tensor.static_shape[2:])
    carried = _given("state", Term(make.reshape(start, state_shape, "start"), f"B{memory.letters}"))
    inside = {name: _given(name, term, one=True) for name, term in parts.items()}
    results = _step(memory, carried, inside)
    taken = (carried.node, *(term.node for term in inside.values()))
    body = Graph(f"{memory.recurrence.total.name}.blocks", taken, (), results).with_unique_names()
    loop = make(
        "loop",
        make.reshape(start, state_shape, "start"),
        *(term.node for term in parts.values()),
        label="blocks",
        body=body,
        carries=1,
        scanned=len(parts),
        length=blocks,
    )
    end, starts, values = (make("part", loop, label="part", index=i) for i in range(3))
    value = Term(values, f"BKS{memory.factors[1][1]}")
    letters = memory.letters
    return Blocks((parts["key"], value), left, first, Term(starts, f"BK{letters}"), Term(end, f"B{letters}"))


def _given(name: str, term: Term, *, one: bool = False) -> Term:
    """An input of the loop's body; with ``one``, one block of the term."""
    type_ = term.node.tensor
    if one:
        rows, _, *rest = type_.static_shape
        type_ = type_.with_shape((rows, 1, *rest))
    return Term(make_node(OPS["input"], (), {"type": type_}, name=name), term.letters)


def _step(memory: Memory, state: Term, parts: Mapping[str, Term]) -> dict[str, Node]:
    """One block: its values, from the state in front of it, and the state behind."""
    make, value = Maker(None, "block"), memory.factors[1][1]
    shape = state.node.tensor.static_shape
    front = Term(make.reshape(state.node, (shape[0], 1, *shape[1:]), "front"), f"BK{memory.letters}")
    read = contract(make, parts["query"], front, f"BKT{value}", "read")
    read = multiply(make, read, parts["entering"], f"BKT{value}", "entering")
    right = Term(make("add", parts["own"].node, read.node, label="right"), f"BKT{value}")
    found = contract(make, parts["solver"], right.renamed("T", "S"), f"BKT{value}", "values").renamed(
        "T", "S"
    )
    flow = inflow_of(make, (parts["key"], found), parts["left"], memory.letters)
    kept = multiply(make, front, parts["first"], front.letters, "kept")
    behind = make("add", kept.node, flow.node, label="behind")
    return {"state": make.reshape(behind, shape, "state"), "front": front.node, "values": found.node}
