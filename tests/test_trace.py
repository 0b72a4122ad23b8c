"""Tracing: what functions become, and what is said when one is wrong, with the line where it is."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import systolic as sy
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.ir.interpret import interpret
from systolic.ir.types import Past


def line_of(function, text: str) -> int:
    """The line of this file on which ``text`` stands inside ``function``."""
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


def error_of(function, text: str, **inputs) -> str:
    """The message of the error that tracing raises; it must name the line of ``text``."""
    with pytest.raises(sy.GraphError) as caught:
        sy.trace(function, **inputs)
    message = str(caught.value)
    assert f"test_trace.py:{line_of(function, text)}:" in message
    return message


# ---- what works ----


def test_operators_mean_what_numpy_means():
    def model(x):
        matrix = sy.constant(np.arange(6, dtype=np.float32).reshape(2, 3))
        y = (x @ sy.constant(np.eye(3, dtype=np.float32)) + 1.0 - x * 0.5) / 2.0
        z = sy.concatenate([y[1:], -y[:1], y[None, 0]])
        chosen = sy.where((x > 0) & ~(x >= 1.0) | (x == 5.0), x, abs(x) ** 2)
        return {
            "z": z,
            "chosen": chosen,
            "sums": sy.einsum("ij,j->i", matrix, x) + sy.sum(matrix, axis=1) + sy.max(matrix, axis=-1),
            "mean": sy.mean(matrix * 1.0, axis=0, keepdims=True) + x,
            "parts": sy.stack(sy.split(matrix, [1, 2], axis=1)[1:])[0, :, -1] % 2.0,
            "moved": sy.transpose(matrix).reshape(-1),
            "taken": matrix[sy.position() % 2],
        }

    graph = sy.trace(model, x="f32[3]")
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = interpret(graph, {"x": values}, {})
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    for t, x in enumerate(values):
        y = (x + 1 - x * 0.5) / 2
        wanted = {
            "z": np.concatenate([y[1:], -y[:1], y[:1]]),
            "chosen": np.where((x > 0) & ~(x >= 1), x, np.abs(x) ** 2),
            "sums": matrix @ x + matrix.sum(1) + matrix.max(1),
            "mean": matrix.mean(0, keepdims=True) + x,
            "taken": matrix[t % 2],
        }
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name][t], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["moved"], matrix.T.reshape(-1))
    np.testing.assert_array_equal(found["parts"], matrix[:, 2] % 2)


def test_time_is_on_the_edges():
    def model(x):
        kept = sy.feedback(sy.zeros((2,)))
        return {
            "near": sy.sum(sy.history(x, window=3), 0),
            "far": sy.sum(sy.history(x), 0),
            "before": sy.delay(x, 2, 9.0),
            "sum": kept.close(kept + x),
            "age": sy.position() - sy.min(sy.history(sy.position(), window=3), 0),
        }

    graph = sy.trace(model, x="f32[2]")
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = interpret(graph, {"x": x}, {})
    np.testing.assert_array_equal(found["near"], [x[max(0, t - 2) : t + 1].sum(0) for t in range(5)])
    np.testing.assert_array_equal(found["far"], np.cumsum(x, 0))
    np.testing.assert_array_equal(found["before"], [[9, 9], [9, 9], *x[:3]])
    np.testing.assert_array_equal(found["sum"], np.cumsum(x, 0))
    np.testing.assert_array_equal(found["age"], [0, 1, 2, 2, 2])


def test_scopes_and_names_stay_on_the_nodes():
    def model(x):
        with sy.scope("layers.3"), sy.scope("attn"):
            return sy.softmax(x * 2.0).named("probs")

    graph = sy.trace(model, x="f32[2]")
    assert graph.outputs["output"].name == "layers.3.attn.probs"
    assert {node.scope for node in graph if node.op.name == "multiply"} == {"layers.3.attn"}


def test_a_history_is_ragged_and_sizes_can_stay_open():
    def model(x):
        assert sy.history(x, window=4).shape == (Past("main", 4), sy.Size("D"))
        return x @ sy.parameter("w", ("D", "E"))

    graph = sy.trace(model, x="f32[$D]")
    assert str(graph.outputs["output"].type) == "f32[$E]"
    bound = graph.bind(D=3, E=5)
    assert str(bound.outputs["output"].type) == "f32[5]"
    with pytest.raises(sy.GraphError, match=r"\[\$D\] and \[3\]"):
        sy.trace(lambda x: x + sy.parameter("w", (3,)), x="f32[$D]")


# ---- what is refused, and how ----


def test_a_shape_mismatch_shows_both_types_and_the_line():
    def model(x):
        return x + sy.parameter("w", (4,))  # here

    message = error_of(model, "# here", x="f32[3]")
    assert "[3]" in message
    assert "[4]" in message


def test_element_types_must_agree():
    def model(x, n):
        return x * n  # here

    assert "cast" in error_of(model, "# here", x="f32[3]")


@pytest.mark.parametrize(
    "read",
    [float, int, bool, len, list, np.asarray, lambda x: 1 if x > 0 else 2, lambda x: [1, 2][x]],
    ids=["float", "int", "bool", "len", "list", "asarray", "if", "index"],
)
def test_a_traced_value_is_not_a_number(read):
    def model(x):
        return read(x) * x  # here

    with pytest.raises(sy.GraphError, match="no value while it is traced"):
        sy.trace(model, x="f32[3]")


def test_the_line_of_a_value_read_is_named():
    def model(x):
        if x > 0:  # here
            return x
        return -x

    assert "where()" in error_of(model, "# here", x="f32[]")


def test_the_future_cannot_be_read():
    def model(x):
        return sy.delay(x, -1)  # here

    assert "non-causal" in error_of(model, "# here", x="f32[3]")


def test_a_position_of_the_past_has_no_index():
    def model(x):
        return sy.history(x)[0]  # here

    assert "delay" in error_of(model, "# here", x="f32[3]")


def test_parts_of_time_do_not_mix():
    def model(x):
        return sy.history(x) + sy.history(x, window=2)  # here

    assert "different parts of time" in error_of(model, "# here", x="f32[3]")


def test_clocks_do_not_mix():
    def model(x, y):
        return x + y  # here

    assert "whole()" in error_of(model, "# here", x="f32[3]@source", y="f32[3]@target")


def test_a_feedback_must_be_closed_with_its_type():
    def never(x):
        return x + sy.feedback(sy.zeros((3,)))  # here

    def other(x):
        h = sy.feedback(sy.zeros((3,)))
        return h.close(sy.sum(x))  # here

    assert "never closed" in error_of(never, "# here", x="f32[3]")
    assert "cannot carry" in error_of(other, "# here", x="f32[3]")


def test_a_history_of_a_history_is_refused():
    def model(x):
        return sy.history(sy.history(x))  # here

    assert "part of time" in error_of(model, "# here", x="f32[3]")


def test_a_constant_has_no_history():
    def model(x):
        return x + sy.sum(sy.history(sy.parameter("w", (3,))), 0)  # here

    assert "changes over time" in error_of(model, "# here", x="f32[3]")


def test_streams_live_only_inside_a_trace():
    with pytest.raises(sy.GraphError, match="only inside"):
        sy.position()


def test_a_name_has_one_shape():
    def model(x):
        return x * sy.parameter("w", (3,)) @ sy.parameter("w", (3, 3))  # here

    assert "cannot also be" in error_of(model, "# here", x="f32[3]")


def test_a_function_returns_streams():
    with pytest.raises(sy.GraphError, match="returns"):
        sy.trace(lambda x: 3, x="f32[3]")
    with pytest.raises(sy.GraphError, match="no argument"):
        sy.trace(lambda x: x, y="f32[3]")
    with pytest.raises(sy.GraphError, match="not a type"):
        sy.trace(lambda x: x, x="float[3]")


def test_an_input_without_a_clock_is_one_value_for_a_text():
    graph = sy.trace(lambda x, scale: x * scale, x="f32[2]", scale="f32[]@")
    assert [node.clock for node in graph.inputs] == ["main", None]
    values, scale = np.arange(6, dtype=np.float32).reshape(3, 2), np.array(2, np.float32)
    got = interpret(graph, {"x": values, "scale": scale}, {})["output"]
    np.testing.assert_array_equal(got, values * 2)
    program = derive_chunk(graph, choose_states(graph), rows=2, chunk=3, capacity=4)
    given = {node.name: node.tensor.static_shape for node in program.graph.inputs}
    assert given["scale"] == (2,)
    assert given["x"] == (2, 3, 2)
