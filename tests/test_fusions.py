"""Small operations between products as one call: what is found, and that numbers stay the same."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from op_samples import SAMPLES, program_of
from programs_by_hand import input_node, program_from
from test_ops import check

import systolic as sy
from systolic.backends.contractions.table import forced_table
from systolic.backends.native import Kernels, build
from systolic.backends.native.fusions import find_fusions
from systolic.backends.native.instructions import OPERATIONS
from systolic.backends.numpy_backend import NumpyBackend
from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.xla import XlaBackend
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.compiler.pipeline import run_passes
from systolic.compiler.program import Program
from systolic.ir.graph import Graph, Node, make_node
from systolic.ir.ops import OPS
from systolic.ir.types import TensorType
from systolic.models.load import load
from systolic.runner.compilation import compile

LARGEST = 1 << 15


@pytest.fixture(scope="module")
def native():
    if not any(map(shutil.which, build.COMPILERS)):
        pytest.skip("this machine has no C++ compiler")
    return XlaBackend("cpu", forms=forced_table("kernel"))


def test_every_operation_that_has_an_instruction(native):
    """On the samples of all ops: next to zero, at infinity, not a number."""
    program, values = program_of(SAMPLES)
    nodes = program.graph.nodes
    (fusion,) = find_fusions(nodes, tuple(program.graph.outputs.values()), {}, LARGEST)
    assert {node.op.name for node in fusion.nodes} == OPERATIONS
    results, _ = native.prepare(program).run({}, values, {})
    fused = [sample for sample in SAMPLES if sample.op in OPERATIONS]
    assert len(fused) > len(OPERATIONS)
    for sample in fused:
        check(results, sample)


# ---- where elements lie ----


def program_with(outputs: dict[str, Node], *inputs: Node) -> Program:
    return program_from(Graph("small", inputs, (), outputs))


def apply(op: str, *sources: Node, **params: object) -> Node:
    return make_node(OPS[op], sources, params, name=op)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=3, max_size=3).map(tuple),
    wide=st.sampled_from([1, 3, 16, 37]),
    order=st.permutations(range(3)),
    axes=st.sets(st.integers(0, 2), min_size=1).map(sorted).map(tuple),
    reduction=st.sampled_from(["sum", "max", "min"]),
    start=st.integers(0, 2),
)
def test_views_and_sums_in_any_order_of_axes(native, shape, wide, order, axes, reduction, start):
    shape = (*shape[:2], shape[2] * wide)
    assume(2 * np.prod(shape) <= Kernels.largest_fused)  # more stays with XLA
    x, y = input_node("x", TensorType(shape, "f32")), input_node("y", TensorType(shape[2:], "f32"))
    starts = tuple(min(start, size - 1) for size in shape)
    part = apply("slice", apply("add", x, y), starts=starts, limits=shape)
    turned = apply("transpose", part, permutation=tuple(order))
    squared = apply("multiply", turned, turned)
    flat = apply("reshape", squared, shape=(squared.tensor.size,))
    less = apply(reduction, squared, axes=axes)
    joined = apply("concatenate", turned, squared, axis=axes[0])
    middle = apply("subtract", joined, apply("tanh", joined))
    outputs = {"flat": flat, "less": less, "middle": middle, "turned": turned}
    program = program_with(outputs, x, y)
    random = np.random.default_rng(0)
    values = {node.name: random.standard_normal(node.tensor.static_shape, np.float32) for node in (x, y)}
    prepared = native.prepare(program)
    assert prepared.text.count("@systolic_fuse") == 1
    got, want = (run.run({}, values, {})[0] for run in (prepared, NumpyBackend().prepare(program)))
    for name in outputs:
        np.testing.assert_allclose(native.fetch(got[name]), want[name], rtol=2e-6, atol=2e-6)


# ---- what is found ----


def chunk_program(graph, *, rows=1, chunk=1):
    graph = run_passes(graph)[-1].graph
    plan = choose_states(graph)
    return derive_chunk(graph, plan, rows=rows, chunk=chunk, capacity=40, reserve=chunk, last=False)


def gated(width: int, inner: int):
    """A norm, two products of it, a gate, and the way back."""

    def model(x):
        normed = x * sy.rsqrt(sy.mean(x * x, keepdims=True) + 1e-5) * sy.parameter("norm", (width,))
        gate, up = (sy.parameter(name, (inner, width)) @ normed for name in ("gate", "up"))
        return x + sy.parameter("down", (width, inner)) @ (gate * sy.sigmoid(gate) * up)

    return sy.trace(model, x=f"f32[{width}]")


def test_what_lies_between_products_is_one_call(native):
    program = chunk_program(gated(70, 1030))
    text = native.lower(program).text
    assert [text.count(f"@systolic_{name}") for name in ("fuse", "project")] == [2, 2]
    assert "reduce" not in text
    assert "logistic" not in text


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("width", "inner"), [(64, 1024), (70, 1030), (77, 1031)])
def test_numbers_are_those_of_xla(native, rows, width, inner):
    program = chunk_program(gated(width, inner), rows=rows)
    random = np.random.default_rng(0)
    shapes = {node.name: node.tensor.static_shape for node in program.graph.parameters}
    drawn = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    x = random.standard_normal((rows, 1, width), np.float32)
    inputs = {"x": x, "offset": np.zeros(rows, np.int32), "length": np.ones(rows, np.int32)}
    plain = XlaBackend("cpu", native=False)
    got, want = (b.fetch(b.prepare(program).run(drawn, inputs, {})[0]["output"]) for b in (native, plain))
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


def test_values_that_are_large_stay_with_xla(native):
    program = chunk_program(gated(64, 1024), chunk=40)
    text = native.lower(program).text
    assert text.count("@systolic_fuse") == 1  # the norm's 40 x 64, not the gate's 40 x 1024
    assert "logistic" in text
    kernels = replace(native.kernels, largest_fused=0)
    assert "@systolic_fuse" not in emit_stablehlo(program, kernels)


def test_one_result_of_each_element_stays_with_xla(native):
    graph = sy.trace(lambda x: (x + 1.0) * x - 2.0, x="f32[2048]")
    assert "custom_call" not in native.lower(chunk_program(graph)).text


def test_what_is_needed_in_between_is_not_joined(native):
    """The sum of a sorted value needs the sum that was sorted: they are not in one call."""

    def model(x):
        first = sy.sort(x * sy.sum(x))
        return first * sy.sum(first), x * sy.max(x)

    graph = sy.trace(lambda x: dict(zip("ab", model(x), strict=True)), x="f32[33]")
    program = chunk_program(graph)
    assert native.lower(program).text.count("@systolic_fuse") == 2
    x = np.random.default_rng(0).standard_normal((1, 1, 33), np.float32)
    inputs = {"x": x, "offset": np.zeros(1, np.int32), "length": np.ones(1, np.int32)}
    got, want = (b.prepare(program).run({}, inputs, {})[0] for b in (native, NumpyBackend()))
    for name, value in want.items():
        np.testing.assert_allclose(native.fetch(got[name]), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "mamba", "qwen3"])
def test_models_say_what_was_recorded(native, shared, name):
    folder = shared / "oracle" / name
    model, recorded = load(folder), np.load(folder / "oracle.npz")
    executable = compile(model, capacity=64, chunk=16)
    assert "@systolic_fuse" in executable.programs.chunk(1).text
    reply = executable.generate(recorded["ids_1"].tolist(), max_new_tokens=24, ignore_eos=True)
    assert reply == recorded["greedy_1"].tolist()


def test_parts_of_integers_stay_with_xla(native):
    """They lie between the same products, but no instruction moves them."""

    def model(x):
        half = sy.split(sy.cast(sy.floor(x * 4.0), "i32"), [16, 17])[0]
        return {"half": half, "sum": sy.sum(x), "tanh": sy.tanh(x)}

    program = chunk_program(sy.trace(model, x="f32[33]"))
    x = np.random.default_rng(0).standard_normal((1, 1, 33), np.float32)
    inputs = {"x": x, "offset": np.zeros(1, np.int32), "length": np.ones(1, np.int32)}
    assert "@systolic_fuse" in native.lower(program).text
    got, want = (b.prepare(program).run({}, inputs, {})[0] for b in (native, NumpyBackend()))
    np.testing.assert_array_equal(native.fetch(got["half"]), want["half"])


# ---- the chosen token ----


@pytest.mark.parametrize("size", [1024, 1500, 32003])
def test_the_place_of_the_largest(native, size):
    """The first one of several, wherever it stands; what is not a number is the largest, as in NumPy."""
    rows = 12
    x = np.random.default_rng(0).standard_normal((rows, 1, size), np.float32)
    for row, places in enumerate([[0], [size - 1], [15], [16], [63, 64], [7, 900], [1000, 1001]]):
        x[row, 0, places] = 9.0
    x[7], x[8] = -np.inf, 1.0
    x[9, 0, [5, 800]], x[10, 0, size - 1], x[11, 0, 700] = np.nan, np.nan, np.inf
    program = chunk_program(sy.trace(lambda x: sy.argmax(x), x=f"f32[{size}]"), rows=rows)
    prepared = native.prepare(program)
    assert "@systolic_argmax" in prepared.text
    inputs = {"x": x, "offset": np.zeros(rows, np.int32), "length": np.ones(rows, np.int32)}
    got = native.fetch(prepared.run({}, inputs, {})[0]["output"])
    np.testing.assert_array_equal(got, np.argmax(x, axis=-1))


# ---- the best tokens ----


def cuts(native, x, weights, limit):
    """What the kernel yields for rows x [B, 1, V], and the text of its program; no ``weights``: ranks."""
    rows, _, size = x.shape
    types = {"x": f"f32[{size}]", "limit": "i32[]" if weights is None else "f32[]"}
    inputs = {"x": x, "limit": limit[:, None], "offset": np.zeros(rows, np.int32)}
    inputs["length"] = np.ones(rows, np.int32)
    if weights is None:
        step = sy.trace(lambda x, limit: sy.cut(x, sy.constant(1), limit), **types)
    else:
        step = sy.trace(sy.cut, x=types["x"], weights=types["x"], limit="f32[]")
        inputs["weights"] = weights
    prepared = native.prepare(chunk_program(step, rows=rows))
    return native.fetch(prepared.run({}, inputs, {})[0]["output"])[:, 0], prepared.text


@pytest.mark.parametrize("size", [1024, 1500, 32003])
def test_the_element_of_a_rank(native, size):
    """Of equal ones, of zeros of both signs, of rows that are cut off, and of ranks that there are not."""
    random = np.random.default_rng(0)
    x = 8 * random.standard_normal((8, 1, size), np.float32)
    x[1] = np.round(x[1])
    x[2, 0, random.permutation(size)[: size - 40]] = -np.inf
    x[3] = 1.5
    x[4] = -abs(x[4])
    limit = np.array([size - 40, size // 2, size - 40, 7, 0, size - 1, size + 5, -1], np.int32)
    got, text = cuts(native, x, None, limit)
    assert "@systolic_rank" in text
    for row, rank in enumerate(limit):
        assert got[row] == np.sort(x[row, 0])[np.clip(rank, 0, size - 1)], row


@pytest.mark.parametrize("size", [1024, 32003])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_the_best_elements_of_a_mass(native, size, scale):
    """As from sorting, but where a sum is a rounding away from the limit."""
    random = np.random.default_rng(1)
    x = (scale * random.standard_normal((6, 1, size))).astype(np.float32)
    x[1, 0, : size // 2] = -np.inf
    weights = np.exp(x.astype(np.float64))
    weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    limit = np.array([0.05, 0.1, 0.5, 0.999, 2.0, -1.0], np.float32)
    got, text = cuts(native, x, weights, limit)
    assert "@systolic_cut" in text
    for row, most in enumerate(limit):
        below = weights[row, 0, x[row, 0] < got[row]].sum(dtype=np.float64)
        upto = weights[row, 0, x[row, 0] <= got[row]].sum(dtype=np.float64)
        assert got[row] in x[row, 0]
        assert below <= most + 1e-6 or got[row] == x[row].min(), row
        assert upto > most - 1e-6 or got[row] == x[row].max(), row
