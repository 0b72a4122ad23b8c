"""The verifier accepts what tracing makes and names the node that breaks a rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import systolic as sy
from systolic.ir.errors import GraphError, Location
from systolic.ir.graph import Edge, Graph, Node, make_node
from systolic.ir.ops import OPS
from systolic.ir.time import PREFIX
from systolic.ir.types import Size, TensorType
from systolic.ir.verify import verify

HERE = Location("model.py", 12)


def model(x):
    """One of each op of time."""
    state = sy.feedback(sy.zeros((4,)))
    new = state.close(state * 0.5 + x)
    recent = sy.sum(sy.history(new, window=3), axis=0)
    return {"y": recent + sy.delay(x, 2), "z": sy.mean(sy.whole(x), axis=0)}


def traced() -> Graph:
    return sy.trace(model, x="f32[4]")


def _input(name: str, clock: str | None = None, dtype: str = "f32") -> Node:
    return make_node(OPS["input"], (), {"type": TensorType((4,), dtype), "clock": clock}, name=name)


def _apply(op: str, *sources: Node, name: str = "y", **params) -> Node:
    return make_node(OPS[op], sources, params, name=name, location=HERE)


def _graph(output: Node, *inputs: Node, **fields) -> Graph:
    return Graph("g", inputs, (), {"y": output}, **fields)


def test_what_tracing_makes_is_accepted():
    verify(traced())
    verify(traced(), "traced")


def test_a_program_is_accepted_as_a_program_only():
    x, index = _input("x"), make_node(OPS["constant"], (), {"value": np.zeros((2, 1), np.int32)}, name="i")
    state = make_node(OPS["input"], (), {"type": TensorType((2, 3, 4), "f32")}, name="state")
    rows = _apply("read_rows", state, index)
    program = Graph("program", (x, state), (), {"rows": rows})
    verify(program, "program")
    with pytest.raises(GraphError, match=r"model.py:12: a traced graph cannot contain .* y: f32\[2,1,4\]"):
        verify(program, "traced")


def test_a_wrong_type_is_named_with_operands_and_line():
    x = _input("x", "main")
    wrong = replace(_apply("exp", x), type=TensorType((5,), "f32"))
    expected = r"model.py:12: the type should be f32\[4\], in y: f32\[5\] = exp\(x: f32\[4\]\)"
    with pytest.raises(GraphError, match=expected):
        verify(_graph(wrong, x))


def test_operands_that_do_not_fit_are_named():
    x, other = _input("x", "main"), _input("other", "main", "f64")
    wrong = replace(_apply("add", x, x), inputs=(Edge(x), Edge(other)))
    with pytest.raises(GraphError, match=r"element types differ .* add\(x: f32\[4\], other: f64\[4\]\)"):
        verify(_graph(wrong, x, other))


def test_a_wrong_number_of_operands_is_refused():
    x = _input("x", "main")
    with pytest.raises(GraphError, match="add takes 2 operands, not 3"):
        verify(_graph(_apply("add", x, x, x), x))


def test_a_wrong_clock_is_refused():
    x = _input("x", "main")
    with pytest.raises(GraphError, match="the clock should be main, not other"):
        verify(_graph(replace(_apply("exp", x), clock="other"), x))


def test_mixed_clocks_are_refused():
    x, other = _input("x", "main"), _input("other", "source")
    wrong = replace(_apply("add", x, x), inputs=(Edge(x), Edge(other)))
    with pytest.raises(GraphError, match="mixes the clocks main and source"):
        verify(_graph(wrong, x, other))


def test_a_clock_that_cannot_be_written_is_refused():
    x = _input("x", "my clock")
    with pytest.raises(GraphError, match="letters and digits, not 'my clock'"):
        verify(_graph(_apply("exp", x), x))


def test_a_wrong_access_is_refused():
    x = _input("x", "main")
    wrong = replace(_apply("exp", x), inputs=(Edge(x, PREFIX),))
    with pytest.raises(GraphError, match=r"its edges should read \[t\], not \[0:t\]"):
        verify(_graph(wrong, x))


@pytest.mark.parametrize(
    ("name", "message"), [("x", "the name x is also that of x: f32"), ("", "has no name")]
)
def test_names_are_unique_and_not_empty(name, message):
    x = _input("x", "main")
    with pytest.raises(GraphError, match=message):
        verify(_graph(_apply("exp", x, name=name), x))


@pytest.mark.parametrize("op", ["input", "parameter"])
def test_an_undeclared_source_is_refused(op):
    stray = make_node(OPS[op], (), {"type": TensorType((4,), "f32")}, name="stray")
    with pytest.raises(GraphError, match=f"this {op} is not declared by graph g, in stray"):
        verify(_graph(_apply("exp", stray)))


def test_a_computed_input_is_refused():
    x = _input("x", "main")
    with pytest.raises(GraphError, match="declared as input, but it is computed"):
        verify(_graph(_apply("exp", x), x, _apply("exp", x, name="z")))


def _feedback(clock: str = "main") -> tuple[Node, Node, Node]:
    x, zeros = (
        _input("x", clock),
        make_node(OPS["constant"], (), {"value": np.zeros(4, np.float32)}, name="0"),
    )
    state = _apply("feedback", zeros, name="state", clock="main")
    return x, state, _apply("exp", state)


def test_a_feedback_is_closed_exactly_once():
    x, state, y = _feedback()
    verify(_graph(y, x, feedback=((state, x),)))
    with pytest.raises(GraphError, match="never closed, in state"):
        verify(_graph(y, x))
    with pytest.raises(GraphError, match="closed twice, in state"):
        verify(_graph(y, x, feedback=((state, x), (state, y))))
    with pytest.raises(GraphError, match="only a feedback can be closed, in y"):
        verify(_graph(y, x, feedback=((state, x), (y, x))))


def test_a_feedback_carries_its_own_type_and_clock():
    x, state, y = _feedback("source")
    with pytest.raises(GraphError, match=r"of clock main cannot carry x: f32\[4\] .* of clock source"):
        verify(_graph(y, x, feedback=((state, x),)))
    wide = _apply("cast", y, name="wide", dtype="f64")
    with pytest.raises(GraphError, match=r"cannot carry wide: f64\[4\]"):
        verify(_graph(y, feedback=((state, wide),)))


def test_a_feedback_without_a_clock_is_refused():
    zeros = make_node(OPS["constant"], (), {"value": np.zeros(4, np.float32)}, name="0")
    state = make_node(OPS["feedback"], (zeros,), {}, name="state")
    with pytest.raises(GraphError, match="a feedback needs a clock"):
        verify(_graph(_apply("exp", state), feedback=((state, zeros),)))


@pytest.mark.parametrize(
    ("op", "params"),
    [("history", {}), ("history", {"window": 2}), ("whole", {})],
)
def test_a_program_has_no_time(op, params):
    x = _input("x", "main")
    with pytest.raises(GraphError, match="a program cannot contain an op of time"):
        verify(_graph(_apply(op, x, clock="main", **params), x), "program")


def test_a_program_has_only_numbers_for_sizes():
    x = make_node(OPS["input"], (), {"type": TensorType((Size("n"),), "f32")}, name="x")
    with pytest.raises(GraphError, match=r"only numbers for sizes, in x: f32\[\$n\]"):
        verify(_graph(_apply("exp", x), x), "program")


def test_bodies_of_loops_are_checked_as_well():
    row = {"type": TensorType((2, 1), "f32")}
    carried = make_node(OPS["input"], (), row, name="carried")
    new = replace(_apply("exp", carried), inputs=(Edge(carried, PREFIX),))
    body = Graph("step", (carried,), (), {"y": new})
    start = make_node(OPS["input"], (), row, name="start")
    loop = _apply("loop", start, name="loop", body=body, carries=1, scanned=0, length=3)
    with pytest.raises(GraphError, match=r"should read \[t\], not \[0:t\], in y"):
        verify(_graph(_apply("part", loop, name="part", index=0), start), "program")


def test_a_thousand_layers_are_checked():
    def deep(x):
        for _ in range(3000):
            x = x * 0.5
        return x

    verify(sy.trace(deep, x="f32[4]"))
