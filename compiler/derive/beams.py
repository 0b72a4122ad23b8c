"""One step of a beam search: rows take over each other's states, read a token, and list what could follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...ir.graph import Graph, Node, make_node
from ...ir.ops import OPS
from ...ir.types import TensorType
from ..passes.share import share
from ..passes.simplify import simplify
from ..program import STATE_PREFIX, Program
from .generation import SAMPLING, as_f32, inlined, inputs_of, prefixed
from .placed import Maker


def derive_beam_step(
    decode: Program, choose: Program, *, token: str, logits: str, candidates: int, beside: Sequence[str] = ()
) -> Program:
    """The program that extends beams, one in each row.

    ``choose`` yields ``scores`` [B, 1, V]. Inputs beside those of ``derive_generation`` without limits:
    ``length`` i32[B] (1 for a row that reads), ``parent`` i32[B], the row whose states each row goes on
    from, and ``total`` f32[B], the score of each beam so far. Results: the ``candidates`` best tokens of
    each row i32[B, ``candidates``], the best first, their ``scores`` with the total, and the results of
    ``decode`` that are named ``beside``.
    """
    rows = decode.rows
    outer = inputs_of(decode, choose)
    numbers = TensorType((rows,), "i32")
    outer = {**{n: _input(n, numbers) for n in ("length", "parent")}, **outer}
    outer["total"] = _input("total", numbers.with_dtype("f32"))
    states = {name: node for name, node in outer.items() if name.startswith(STATE_PREFIX)}
    updated = {*decode.donated, *map(prefixed, choose.donated)}
    taken = {
        name: Maker(None, name)("take", node, outer["parent"], label="of parent", axis=0)
        for name, node in states.items()
        if name in updated
    }
    given = {**outer, **taken, **{node.name: node for node in decode.graph.parameters}}
    read = inlined(decode.graph, given, "")
    shared = {
        "token": outer[token],
        "logits": as_f32(Maker(None, "beams"), read[logits]),
        "offset": outer["offset"],
        "length": outer["length"],
    }
    own = {n.name: given[prefixed(n.name)] for n in choose.graph.inputs if n.name not in shared}
    chosen = inlined(choose.graph, {**shared, **own}, SAMPLING)
    results = _best(chosen["scores"], outer["total"], rows, candidates)
    results |= {name: read[name] for name in beside}
    results |= {name: node for name, node in read.items() if name.startswith(STATE_PREFIX)}
    results |= {prefixed(n): node for n, node in chosen.items() if n.startswith(STATE_PREFIX)}
    graph = Graph(f"{decode.graph.name}.beams", tuple(outer.values()), decode.graph.parameters, results)
    graph = share(simplify(graph)).with_unique_names()
    kept = (*decode.states, *(replace(s, name=SAMPLING + s.name) for s in choose.states))
    return Program(f"beams.{candidates}", graph, kept, rows, 1, decode.capacity)


def _input(name: str, type_: TensorType) -> Node:
    return make_node(OPS["input"], (), {"type": type_}, name=name)


def _best(scores: Node, total: Node, rows: int, candidates: int) -> dict[str, Node]:
    make = Maker(None, "beams")
    flat = make.reshape(scores, (rows, scores.tensor.static_shape[-1]), "row")
    summed = make("add", flat, make.reshape(total, (rows, 1), "column"), label="summed")
    tokens = make("top_k", summed, label="tokens", k=candidates)
    return {"tokens": tokens, "scores": make("read_rows", summed, tokens, label="scores")}
