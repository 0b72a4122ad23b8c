"""Programs built node by node, and how to compare what backends make of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from systolic.compiler.program import Program
from systolic.ir.errors import Location
from systolic.ir.evaluate import evaluate
from systolic.ir.graph import Graph, Node, make_node
from systolic.ir.ops import OPS
from systolic.ir.types import TensorType, parse_type

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of a few products, in another order


def program_from(graph: Graph) -> Program:
    """A graph without time as a program; it declares no states."""
    return Program(graph.name, graph, (), 1, 1, 1)


def input_node(name: str, type_: str | TensorType) -> Node:
    """An input of a program: without a clock."""
    declared = parse_type(type_) if isinstance(type_, str) else type_
    return make_node(OPS["input"], (), {"type": declared}, name=name)


def constant(value: Any, dtype: Any = np.float32) -> Node:
    return make_node(OPS["constant"], (), {"value": np.asarray(value, dtype)})


def apply(op: str, *sources: Node, name: str = "", **params: Any) -> Node:
    """A node of an op, by name."""
    return make_node(OPS[op], sources, params, name=name)


def recurrence_body(rows: int = 2, width: int = 3) -> Graph:
    """h, n, x_t, u_t, w → h' = tanh(h @ w + x_t), n' = n + 1; and h', u_t * n, joined over time."""
    h, n = input_node("h", f"f32[{rows},{width}]"), input_node("n", "i32[]")
    x, u = input_node("x", f"f32[{rows},1,{width}]"), input_node("u", f"i32[{rows},1]")
    w = input_node("w", f"f32[{width},{width}]")
    turned = apply("contraction", h, w, subscripts="bi,ij->bj")
    new = apply("tanh", apply("add", turned, apply("reshape", x, shape=(rows, width))), name="h.new")
    count = apply("add", n, constant(1, np.int32))
    outputs = {
        "h": new,
        "n": count,
        "y": apply("reshape", new, shape=(rows, 1, width)),
        "z": apply("multiply", u, n),
    }
    return Graph("body", (h, n, x, u, w), (), outputs)


def writing_body() -> Graph:
    """s, values, at → s with one value written, and what then stands in the first slot."""
    s, at = input_node("s", "f32[2,6,3]"), input_node("at", "i32[2,1]")
    values = input_node("values", "f32[2,1,3]")
    written = apply("write_rows", s, values, at)
    first = apply("slice", written, starts=(0, 0, 0), limits=(2, 1, 3))
    return Graph("body", (s, values, at), (), {"s": written, "first": first})


def ending_body() -> Graph:
    """going, h, x_t → False once the sum of h is above 0, and h + x_t; and h + x_t, joined over time."""
    going, h = input_node("going", "bool[]"), input_node("h", "f32[2,3]")
    x = input_node("x", "f32[2,1,3]")
    added = apply("add", h, apply("reshape", x, shape=(2, 3)), name="h.new")
    total = apply("sum", added, axes=(0, 1))
    below = apply("logical_and", going, apply("less", total, constant(0.0)), name="below")
    outputs = {"going": below, "h": added, "y": apply("reshape", added, shape=(2, 1, 3))}
    return Graph("body", (going, h, x), (), outputs)


def weight(name: str, type_: str) -> Node:
    return make_node(OPS["parameter"], (), {"type": parse_type(type_)}, name=name)


def attention_graph(rows: int = 2, chunk: int = 3, capacity: int = 8) -> Graph:
    """One head: keys are projected, written into their state, and read by the scores."""
    x, at = input_node("x", f"f32[{rows},{chunk},4]"), input_node("at", f"i32[{rows},{chunk}]")
    state = input_node("state.attn.k", f"f32[{rows},{capacity},5]")
    w = weight("attn.w", "f32[5,4]")
    location = Location("model.py", 12)
    key = make_node(
        OPS["contraction"],
        [x, w],
        {"subscripts": "bcd,nd->bcn"},
        name="attn.k",
        scope="attn",
        location=location,
    )
    written = apply("write_rows", state, key, at, name="attn.k.state")
    scores = apply("contraction", key, written, subscripts="bcn,bsn->bcs", name="attn.scores")
    scaled = apply("multiply", scores, constant(0.1), name="attn.scaled")
    return Graph("step", (x, at, state), (w,), {"output": scaled, "state.attn.k": written})


def attention_values(graph: Graph) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    random = np.random.default_rng(0)
    x, at, state = (node.tensor.static_shape for node in graph.inputs)
    inputs = {"x": random.normal(size=x).astype(np.float32), "at": np.arange(at[0] * at[1]).reshape(at)}
    inputs["at"] = (inputs["at"] % (state[1] + 1)).astype(np.int32)
    parameters = {"attn.w": random.normal(size=(5, 4)).astype(np.float32)}
    return parameters, inputs, {"attn.k": random.normal(size=state).astype(np.float32)}


def expected(graph: Graph, parameters: Any, inputs: Any, states: Any) -> dict[str, np.ndarray]:
    named = {f"state.{name}": array for name, array in states.items()}
    return evaluate(graph, {**parameters, **inputs, **named})


def compare(got: tuple[dict, dict], want: dict[str, np.ndarray]) -> None:
    results, states = got
    for name, array in want.items():
        short = name.removeprefix("state.")
        value = np.asarray((results if short == name else states)[short])
        assert value.dtype == array.dtype
        np.testing.assert_allclose(value, array, **TOLERANCE)
    assert len(results) + len(states) == len(want)
