"""Whole programs on every backend: derived ones chunk by chunk, and a thousand layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from programs_by_hand import (
    TOLERANCE,
    attention_graph,
    attention_values,
    compare,
    expected,
    input_node,
    program_from,
    weight,
)
from quick_programs import QUICK
from random_graphs import WIDTH, build, draw_parameters, recipes

from systolic.backends import backend_named
from systolic.backends.jax_table import to_jax
from systolic.backends.numpy_backend import NumpyBackend
from systolic.backends.numpy_source import emit_numpy
from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.xla import XlaBackend
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.compiler.program import Program
from systolic.ir.errors import SystolicError
from systolic.ir.graph import Graph, make_node
from systolic.ir.ops import OPS

pytestmark = pytest.mark.optimised


@pytest.fixture
def xla(tmp_path: Path) -> XlaBackend:
    return XlaBackend("cpu", tmp_path / "cache")


def test_backends_by_name(tmp_path: Path) -> None:
    assert backend_named("numpy").name == "numpy"
    backend = backend_named("xla", tmp_path)
    assert (backend.name, backend.cache_directory) == ("xla", tmp_path)
    with pytest.raises(SystolicError, match="no backend 'cuda'; the backends are numpy and xla"):
        backend_named("cuda")


@pytest.mark.parametrize("name", ["numpy", "xla"])
def test_a_program_runs(name: str, tmp_path: Path) -> None:
    graph = attention_graph()
    parameters, inputs, states = attention_values(graph)
    want = expected(graph, parameters, inputs, states)
    backend = backend_named(name, tmp_path)
    prepared = backend.prepare(program_from(graph))
    placed = [
        {key: backend.place(array) for key, array in group.items()} for group in (parameters, inputs, states)
    ]
    compare(prepared.run(*placed), want)
    zeros = backend.fetch(backend.zeros((2, 3), "bf16"))
    assert (zeros.shape, zeros.dtype.name, float(zeros.max())) == ((2, 3), "bfloat16", 0.0)


def calls_of(graph: Graph, strategy: str) -> list[tuple[Program, dict[str, np.ndarray]]]:
    """Programs that read 3, 1 and 2 positions of two rows, with their inputs; the second row is shorter."""
    plan = choose_states(graph, strategy)
    values = np.random.default_rng(2).normal(size=(2, 6, WIDTH)).astype(np.float32)
    calls, start = [], 0
    for chunk in (3, 1, 2):
        program = derive_chunk(graph, plan, rows=2, chunk=chunk, capacity=7, reserve=3, last=False)
        inputs = {
            "x": values[:, start : start + chunk],
            "offset": np.array([start, max(0, start - 1)], np.int32),
            "length": np.array([chunk, chunk - 1 if start == 0 else chunk], np.int32),
        }
        calls.append((program, inputs))
        start += chunk
    return calls


@pytest.mark.filterwarnings("ignore:.*encountered in")  # the reference warns about padding
@settings(max_examples=50, deadline=None)
@given(recipe=recipes)
def test_derived_programs_in_numpy_and_what_they_returned_stays(recipe: Any) -> None:
    graph = build(recipe)
    parameters, backend = draw_parameters(graph), NumpyBackend()
    calls = calls_of(graph, "auto")
    states = {s.name: backend.zeros(s.type.static_shape, s.type.dtype) for s in calls[0][0].states}
    kept = []
    for program, inputs in calls:
        before = {name: array.copy() for name, array in (parameters | inputs).items()}
        want = expected(program.graph, parameters, inputs, states)
        results, states = backend.prepare(program).run(parameters, inputs, states)
        # Nothing is promised of padding, not even where it has NaN.
        is_padding = np.arange(program.chunk)[:, None] >= inputs["length"][:, None, None]
        want["output"] = np.where(is_padding, 0, want["output"])
        compare(({"output": np.where(is_padding, 0, results["output"])}, states), want)
        for name, array in (parameters | inputs).items():
            np.testing.assert_array_equal(array, before[name])
        kept.append((results["output"], is_padding, want["output"]))
    for result, is_padding, wanted in kept:  # later calls wrote into the states
        np.testing.assert_allclose(np.where(is_padding, 0, result), wanted, **TOLERANCE)


def test_loops_of_numpy_that_count_the_same_slots() -> None:
    graph = build([("self_history", 0, 1, 4), ("self_history", 2, 1, 4), ("delay", 1, 0, 3)])
    program, inputs = calls_of(graph, "auto")[0]
    backend, parameters = NumpyBackend(), draw_parameters(graph)
    states = {s.name: backend.zeros(s.type.static_shape, s.type.dtype) for s in program.states}
    want = expected(program.graph, parameters, inputs, states)
    compare(backend.prepare(program).run(parameters, inputs, states), want)


def test_derived_programs_on_xla_and_in_jax(xla: XlaBackend) -> None:
    kinds = ("prefix_attention", "window_attention", "delay", "self_history", "decay")
    graph = build([(kind, i, 2 * i, 2) for i, kind in enumerate(kinds)])
    parameters = draw_parameters(graph)
    calls = calls_of(graph, "auto")
    states = {s.name: np.zeros(s.type.static_shape, np.float32) for s in calls[0][0].states}
    on_xla, in_jax = states, states
    for program, inputs in calls:
        want = expected(program.graph, parameters, inputs, states)
        states = {name: want[f"state.{name}"] for name in states}
        got = xla.prepare(program).run(parameters, inputs, on_xla)
        compare(got, want)
        on_xla = got[1]
        got = jax.jit(to_jax(program), compiler_options=QUICK)(parameters, inputs, in_jax)
        compare(got, want)
        in_jax = got[1]


def deep_graph(layers: int) -> Graph:
    x = node = input_node("x", "f32[1,1,4]")
    parameters = []
    for i in range(layers):
        w = weight(f"layers.{i}.w", "f32[4,4]")
        parameters.append(w)
        scope = f"layers.{i}"
        turned = make_node(
            OPS["contraction"], [node, w], {"subscripts": "bcd,nd->bcn"}, name=f"{scope}.y", scope=scope
        )
        for op in ("tanh", "exp", "negative") * 9:
            turned = make_node(OPS[op], [turned], {}, name="", scope=scope)
        node = make_node(OPS["add"], [node, turned], {}, name=f"{scope}.sum", scope=scope)
    return Graph("deep", (x,), tuple(parameters), {"output": node})


def test_a_thousand_layers_are_emitted_without_recursion() -> None:
    program = program_from(deep_graph(1000))
    assert len(program.graph) > 30_000
    text = emit_stablehlo(program)
    assert text.count("stablehlo.tanh") == 9000
    source = emit_numpy(program)
    compile(source, "deep.py", "exec")
    assert "layers_999_sum = layers_998_sum + " in source
