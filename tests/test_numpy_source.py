"""Emitted NumPy: what is printed runs, states are written in place, nothing else changes."""

from __future__ import annotations

import re
import traceback
from typing import Any

import numpy as np
from programs_by_hand import (
    apply,
    attention_graph,
    attention_values,
    compare,
    constant,
    expected,
    input_node,
    program_from,
    writing_body,
)

from systolic.backends.numpy_backend import NumpyBackend
from systolic.backends.numpy_source import emit_numpy
from systolic.ir.graph import Graph, Node


def test_emitted_numpy_reads_like_the_model() -> None:
    source = emit_numpy(program_from(attention_graph(rows=1)))
    assert 'attn_w = parameters["attn.w"]  # f32[5,4]' in source
    assert "    # attn\n    attn_k = x @ attn_w.T  # f32[1,3,5]  bcd,nd->bcn" in source
    assert "attn_k_state = write_rows_in_place(state_attn_k, attn_k, at)" in source
    assert "attn_scaled = attn_scores * 0.1" in source
    assert set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)) == {"__future__", "numpy"}
    assert "einsum" not in source


def test_what_is_printed_is_what_runs() -> None:
    graph = attention_graph()
    program = program_from(graph)
    prepared = NumpyBackend().prepare(program)
    assert prepared.source == emit_numpy(program)
    module: dict[str, Any] = {}
    exec(prepared.source, module)
    parameters, inputs, states = attention_values(graph)
    want = expected(graph, parameters, inputs, states)
    compare(module["run"](parameters, inputs, states), want)


def test_tracebacks_show_the_emitted_line() -> None:
    graph = attention_graph()
    parameters, inputs, states = attention_values(graph)
    inputs["x"] = inputs["x"][..., :3]
    try:
        NumpyBackend().prepare(program_from(graph)).run(parameters, inputs, states)
    except ValueError:
        shown = traceback.format_exc()
    assert 'File "<systolic step ' in shown
    assert "attn_k = np.tensordot(x, attn_w, axes=(2, 1))  # f32[2,3,5]  bcd,nd->bcn" in shown


def numpy_run(graph: Graph, inputs: dict, states: dict) -> tuple[dict, dict]:
    return NumpyBackend().prepare(program_from(graph)).run({}, inputs, states)


def state_write() -> tuple[Node, Node, tuple[Node, ...]]:
    """A state ``f32[1,4,2]``, the state with one row written, and the graph's inputs."""
    state, values = input_node("state.k", "f32[1,4,2]"), input_node("values", "f32[1,1,2]")
    at = input_node("at", "i32[1,1]")
    return state, apply("write_rows", state, values, at), (state, values, at)


def written_values(slot: int) -> dict[str, np.ndarray]:
    return {"values": np.full((1, 1, 2), 5, np.float32), "at": np.array([[slot]], np.int32)}


def test_a_state_is_written_in_place() -> None:
    _, written, inputs = state_write()
    state = np.zeros((1, 4, 2), np.float32)
    _, states = numpy_run(Graph("g", inputs, (), {"state.k": written}), written_values(2), {"k": state})
    assert states["k"] is state
    assert state[0, 2, 0] == 5


def test_a_state_that_is_also_read_is_copied() -> None:
    before, written, inputs = state_write()
    old = apply("negative", before)
    graph = Graph("g", inputs, (), {"old": old, "state.k": written})
    state = np.ones((1, 4, 2), np.float32)
    results, states = numpy_run(graph, written_values(2), {"k": state})
    assert results["old"][0, 2, 0] == -1
    assert states["k"][0, 2, 0] == 5
    assert state[0, 2, 0] == 1


def test_results_do_not_change_when_the_state_does() -> None:
    _, written, inputs = state_write()
    view = apply("slice", written, starts=(0, 2, 0), limits=(1, 3, 2))
    graph = Graph("g", inputs, (), {"view": view, "all": written, "state.k": written})
    results, states = numpy_run(graph, written_values(2), {"k": np.zeros((1, 4, 2), np.float32)})
    later = written_values(2)
    later["values"] = later["values"] * 2
    numpy_run(graph, later, states)
    assert results["view"].max() == results["all"].max() == 5


def test_a_new_state_has_memory_of_its_own() -> None:
    x, fixed = input_node("x", "f32[1,4,2]"), constant(np.zeros((1, 4, 2)))
    wide = apply("broadcast_to", input_node("y", "f32[1,1,2]"), shape=(1, 4, 2))
    outputs = {"state.a": x, "state.b": fixed, "state.c": fixed, "state.d": wide, "state.e": x}
    graph = Graph("g", (x, wide.sources[0]), (), outputs)
    given_x = np.zeros((1, 4, 2), np.float32)
    _, states = numpy_run(graph, {"x": given_x, "y": np.zeros((1, 1, 2), np.float32)}, {})
    arrays = [given_x, *states.values()]
    for number, array in enumerate(arrays):
        array[:] = number
    assert [array.max() for array in arrays] == [0, 1, 2, 3, 4, 5]


def test_a_loop_writes_its_state_in_place() -> None:
    state, values = input_node("state.s", "f32[2,6,3]"), input_node("values", "f32[2,4,3]")
    at = input_node("at", "i32[2,4]")
    loop = apply("loop", state, values, at, body=writing_body(), carries=1, scanned=2, length=4)
    outputs = {"first": apply("part", loop, index=1), "state.s": apply("part", loop, index=0)}
    graph = Graph("g", (state, values, at), (), outputs)
    random = np.random.default_rng(0)
    inputs = {
        "values": random.normal(size=(2, 4, 3)).astype(np.float32),
        "at": np.array([[0, 0, 5, 0], [3, 0, 9, 1]], np.int32),
    }
    buffer = random.normal(size=(2, 6, 3)).astype(np.float32)
    want = expected(graph, {}, inputs, {"s": buffer})
    got = numpy_run(graph, inputs, {"s": buffer})
    compare(got, want)
    assert got[1]["s"] is buffer
