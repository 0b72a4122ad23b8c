"""Recurrences of outer products, read in blocks of positions without their states at each position.

    %h     = feedback(%initial)                                    S(t) = a(t) S(t-1) + k(t) v(t)
    %total = add(multiply(%a, %h), contraction(%k, %v))            y(t) = q(t) S(t)
    %y     = contraction(%total, %q)

A state of a key and a value is much larger than they are. With p(t, s) = a(s+1) … a(t), which is what is
left at t of what came in at s, and S(0) the state in front of a block,

    y(t) = p(t, 0) q(t) S(0) + sum over s of p(t, s) (q(t) k(s)) v(s)

needs one state for each block, and these follow from each other by the same recurrence over blocks.

Must not fire where the decay varies along what a reader sums, where a reader sums over parts of the key and
of the value, or where states are no larger than what a block needs instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ...ir.graph import Graph, Node
from ...ir.ops.linear import split_subscripts
from .derivation import Derivation, Steps
from .placed import Maker, Placed, align, stretch
from .scan import Recurrence, start_of
from .terms import Term, contract, expand, in_blocks, join, multiply, part, pick

LONGEST_BLOCK = 64


@dataclass(frozen=True)
class Memory:
    """A recurrence whose inflow is an outer product. Letters name the axes of a state: those of the two
    factors, and those along which the decay varies."""

    recurrence: Recurrence
    letters: str
    factors: tuple[tuple[Node, str], tuple[Node, str]]
    decay_letters: str

    def swapped(self) -> Memory:
        """With its factors in the other order."""
        return replace(self, factors=(self.factors[1], self.factors[0]))

    def block(self, positions: int) -> int:
        """How many positions are read together, a power of two: so many that what a block needs and the
        states between blocks are about equally large."""
        state = self.recurrence.total.tensor.static_shape
        decays = math.prod(
            size for size, c in zip(state, self.letters, strict=True) if c in self.decay_letters
        )
        longest = min(positions, LONGEST_BLOCK, math.isqrt(math.prod(state) // decays))
        return 1 << (max(longest, 1).bit_length() - 1)


@dataclass(frozen=True)
class Reading:
    """A contraction of a state with a query: which factor is the key, what is summed, what is left."""

    memory: Memory
    query: Node
    query_letters: str
    key: int
    summed: frozenset[str]
    result: str


@dataclass(frozen=True, eq=False)
class Blocks:
    """A memory over K blocks of positions T (or S, where something came in).

    ``factors`` are BKS…; ``left`` [BKTS…] is what is left at T of what came in at S, ``first`` [BKT…] of
    the state before the block; ``starts`` [BK…] are these states, and ``end`` [B…] the last of all.
    """

    factors: tuple[Term, Term]
    left: Term
    first: Term
    starts: Term
    end: Term


def find_memory(recurrence: Recurrence) -> Memory | None:
    """The recurrence as a memory, if what flows in is an outer product and its states are worth avoiding."""
    inflow, decay = recurrence.inflow, recurrence.decay
    if recurrence.join != "add" or inflow.op.name != "contraction" or inflow.clock is None:
        return None
    x, y, letters = split_subscripts(inflow.params["subscripts"])
    if set(x) | set(y) != set(letters) or inflow.tensor.shape != recurrence.total.tensor.shape:
        return None
    shape = (1,) * len(letters)
    if decay is not None:
        shape = (*shape[decay.tensor.rank :], *decay.tensor.static_shape)
    varying = "".join(letter for letter, size in zip(letters, shape, strict=True) if size != 1)
    factors = ((inflow.sources[0], x), (inflow.sources[1], y))
    memory = Memory(recurrence, letters, factors, varying)
    return memory if memory.block(LONGEST_BLOCK) >= 4 else None


def find_readings(graph: Graph, memory: Memory) -> dict[Node, Reading]:
    """The contractions that read the memory's state and can do without it."""
    total = memory.recurrence.total
    found = ((user, find_reading(user, total, memory)) for user in graph.users[total])
    return {user: reading for user, reading in found if reading is not None}


def is_read_alone(graph: Graph, memory: Memory, members: frozenset[Node]) -> bool:
    """Whether all that is wanted of a memory, whose part has these ``members``, are readings."""
    users = {user for node in members for user in graph.users[node]} - members
    is_output = any(node in members for node in graph.outputs.values())
    return not is_output and users <= set(find_readings(graph, memory))


def find_reading(user: Node, state: Node, memory: Memory) -> Reading | None:
    """How ``user`` reads ``state``, if it sums over the axes of one factor alone."""
    if user.op.name != "contraction" or [source is state for source in user.sources].count(True) != 1:
        return None
    *terms, result = split_subscripts(user.params["subscripts"])
    at = user.sources.index(state)
    names = dict(zip(terms[at], memory.letters, strict=True))
    for letter in (*terms[1 - at], *result):  # the query's own letters, kept apart from the state's
        names.setdefault(letter, next(c for c in _LETTERS if c not in (*memory.letters, *names.values())))
    query, result = ("".join(names[c] for c in term) for term in (terms[1 - at], result))
    summed = frozenset((*memory.letters, *query)) - set(result)
    held = summed & set(memory.letters)
    keys = [
        i for i in (0, 1) if held <= set(memory.factors[i][1]) and not held & set(memory.factors[1 - i][1])
    ]
    if not held or not keys or held & set(memory.decay_letters):
        return None
    return Reading(memory, user.sources[1 - at], query, keys[0], summed, result)


_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_blocks(derivation: Derivation, memory: Memory) -> Steps:
    """The blocks of a memory over the positions of its frame."""
    make = Maker(memory.recurrence.total, "@blocks")
    x = yield from make_factor(derivation, memory, 0)
    y = yield from make_factor(derivation, memory, 1)
    left, first = yield from make_responses(derivation, memory)
    start = yield from start_of(derivation, memory.recurrence.previous)
    return chain_blocks(make, memory, (x, y), left, first, start)


def make_factor(derivation: Derivation, memory: Memory, index: int) -> Steps:
    """A factor of what flows in, BKS…, with zeros behind the last real position."""
    node, letters = memory.factors[index]
    placed = yield node, "own"
    total = memory.recurrence.total
    frame, make = derivation.frame(total), Maker(total, "@blocks")
    whole = stretch(make, placed, frame.rows, frame.size).node
    shown = real(derivation, total, make, whole, 0.0)
    return in_blocks(make, Term(shown, f"BS{letters}"), memory.block(frame.size), 0.0)


def chain_blocks(
    make: Maker, memory: Memory, factors: tuple[Term, Term], left: Term, first: Term, start: Node
) -> Blocks:
    """The states in front of each block, from ``start`` [B, 1, …] and what the blocks add."""
    last = left.size("T") - 1
    flow = inflow_of(make, factors, pick(make, left, "T", last), memory.letters)
    shape = flow.node.tensor.static_shape
    decay = expand(make, pick(make, first, "T", last), flow.letters)
    states = make(
        "linear_scan",
        make.broadcast(decay, shape, "decay"),
        flow.node,
        make.reshape(start, (shape[0], *shape[2:]), "start"),
        label="states",
    )
    ends = Term(states, flow.letters)
    starts = Term(start, flow.letters)
    if shape[1] > 1:
        starts = join(make, starts, part(make, ends, "K", 0, shape[1] - 1), "K", "starts")
    return Blocks(factors, left, first, starts, pick(make, ends, "K", shape[1] - 1))


def inflow_of(make: Maker, factors: tuple[Term, Term], left: Term, letters: str) -> Term:
    """What a block adds to the state behind it: BK…"""
    x, y = factors
    if set(left.letters) - set(x.letters) and not set(left.letters) - set(y.letters):
        x, y = y, x
    kept = x.letters + "".join(c for c in left.letters if c not in x.letters)
    return contract(make, multiply(make, x, left, kept, "left"), y, f"BK{letters}", "inflow")


def make_responses(derivation: Derivation, memory: Memory) -> Steps:
    """What is left at T of what came in at S of a block, BKTS…, and of what was there before, BKT…"""
    recurrence, letters = memory.recurrence, memory.decay_letters
    frame, make = derivation.frame(recurrence.total), Maker(recurrence.total, "@decay")
    value = recurrence.total.tensor
    sizes = dict(zip(memory.letters, value.static_shape, strict=True))
    shape = (frame.rows, frame.size, *(sizes[c] for c in letters))
    if recurrence.decay is None:
        node = make.broadcast(make.constant(1.0, value.dtype), shape)
    else:
        placed = yield recurrence.decay, "own"
        wide = tuple(sizes[c] if c in letters else 1 for c in memory.letters)
        node = align(make, placed, 2, value.rank)
        node = make.reshape(make.broadcast(node, (*shape[:2], *wide)), shape, "narrow")
    node = real(derivation, recurrence.total, make, node, 1.0)
    size = memory.block(frame.size)
    return _responses(make, in_blocks(make, Term(node, f"BT{letters}"), size, 1.0), size)


def real(derivation: Derivation, stream: Node, make: Maker, node: Node, fill: float) -> Node:
    """``node`` [B, n, …] with ``fill`` behind each row's last real position."""
    shape = node.tensor.static_shape
    valid = make.reshape(derivation.frame(stream).valid, (*shape[:2], *(1 for _ in shape[2:])), "valid")
    return make("where", valid, node, make.constant(fill, node.tensor.dtype), label="real")


def _responses(make: Maker, decay: Term, size: int) -> tuple[Term, Term]:
    """Products of ``decay`` BKT… by the same recurrence: each position starts one of its own, with a one,
    and one was there before."""
    rows, blocks, _, *rest = decay.node.tensor.static_shape
    shape, none = (rows * blocks, size, size + 1, *rest), (1 for _ in rest)
    dtype = decay.node.tensor.dtype
    ones = np.eye(size, size + 1, 1).reshape(1, size, size + 1, *none)
    begin = np.eye(1, size + 1).reshape(1, size + 1, *(1 for _ in rest))
    factor = make.reshape(decay.node, (rows * blocks, size, 1, *rest), "steps")
    responses = make(
        "linear_scan",
        make.broadcast(factor, shape, "factor"),
        make.broadcast(make.constant(ones, dtype), shape, "impulses"),
        make.broadcast(make.constant(begin, dtype), (shape[0], *shape[2:]), "begin"),
        label="responses",
    )
    letters = decay.letters.replace("T", "TS")
    everything = Term(make.reshape(responses, (rows, blocks, *shape[1:]), "responses"), letters)
    return part(make, everything, "S", 1, size + 1, "left"), pick(make, everything, "S", 0)


def make_reading(derivation: Derivation, node: Node, reading: Reading) -> Steps:
    """The values of a contraction that reads a memory, at every position."""
    frame, make = derivation.frame(node), Maker(node, "@blocks")
    placed = yield reading.query, "own"
    blocks: Blocks = yield reading.memory.recurrence.previous, "blocks"
    query = Term(stretch(make, placed, frame.rows, frame.size).node, f"BT{reading.query_letters}")
    query = in_blocks(make, query, reading.memory.block(frame.size), 0.0)
    y = read_blocks(make, reading, query, blocks)
    rows, count, size, *rest = y.node.tensor.static_shape
    flat = make.reshape(y.node, (rows, count * size, *rest), "positions")
    own = part(Maker(node), Term(flat, f"BT{reading.result}"), "T", 0, frame.size)
    return Placed(own.node, 2, node.tensor.shape)


def read_blocks(make: Maker, reading: Reading, query: Term, blocks: Blocks) -> Term:
    """BKT and the result's letters, for a ``query`` BKT…"""
    key, value = blocks.factors[reading.key], blocks.factors[1 - reading.key]
    kept = "".join(c for c in dict.fromkeys(query.letters[3:] + key.letters[3:]) if c not in reading.summed)
    scores = contract(make, query, key, f"BKTS{kept}", "scores")
    more = "".join(c for c in blocks.left.letters[4:] if c not in kept)
    scores = multiply(make, scores, blocks.left, f"BKTS{kept}{more}", "left")
    result = f"BKT{reading.result}"
    inside = contract(make, scores, value, result, "inside")
    before = contract(make, query, blocks.starts, result, "before")
    before = multiply(make, before, blocks.first, result, "kept")
    return Term(make("add", before.node, inside.node), result)
