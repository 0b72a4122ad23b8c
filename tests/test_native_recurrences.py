"""Recurrences on XLA: kernels say what plain StableHLO says, and neither keeps a state for each position."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from quick_programs import quick_programs

import systolic as sy
from systolic.backends.contractions.table import forced_table
from systolic.backends.native import build
from systolic.backends.xla import XlaBackend
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.models import families
from systolic.models.spec import Config

pytestmark = pytest.mark.optimised


@pytest.fixture(scope="module")
def native():
    if not any(map(shutil.which, build.COMPILERS)):
        pytest.skip("this machine has no C++ compiler")
    with quick_programs():
        return XlaBackend("cpu", forms=forced_table("kernel"))


@pytest.fixture(scope="module")
def plain():
    with quick_programs():
        return XlaBackend("cpu", native=False, forms=forced_table("dot"))


def chunk_program(graph, rows, chunk):
    return derive_chunk(graph, choose_states(graph), rows=rows, chunk=chunk, capacity=64, last=False)


def run(backend, program, lengths, **given_parameters):
    """Outputs where positions are real, and states, of a program on random values; row 0 begins a text."""
    random = np.random.default_rng(0)

    def draw(node):
        return 0.3 * random.normal(size=node.tensor.static_shape).astype(np.float32)

    parameters = {node.name: draw(node) for node in program.graph.parameters} | given_parameters
    inputs = {node.name: draw(node) for node in program.graph.inputs if node.tensor.dtype == "f32"}
    states = {name.removeprefix("state."): inputs.pop(name) for name in list(inputs) if "state." in name}
    offsets = np.arange(program.rows, dtype=np.int32)
    given = {**inputs, "offset": offsets, "length": np.array(lengths, np.int32)}
    results, updated = backend.prepare(program).run(parameters, given, states)
    outputs = np.asarray(results["output"])
    real = [row[:length] for row, length in zip(outputs, lengths, strict=True)]
    return [*real, *map(np.asarray, updated.values())]


def channels(width, size, groups=()):
    """Mamba's recurrence for ``width`` channels (in each of the ``groups``) of ``size`` numbers."""

    def model(x):
        def made(name, *shape):
            weight = sy.parameter(name, (int(np.prod(shape)), 8))
            return sy.tanh(weight @ x).reshape(*shape)

        step, flow = sy.exp(made("step", *groups, width)), made("flow", *groups, width)
        enter, leave = made("enter", *groups, size), made("leave", *groups, size)
        before = sy.feedback(sy.zeros((*groups, width, size)) + 0.25)
        decay = sy.exp(step[..., None] * sy.parameter("rate", (*groups, width, size)))
        after = before.close(decay * before + flow[..., None] * enter[..., None, :])
        return sy.einsum("gcn,gn->gc" if groups else "cn,n->c", after, leave)

    return sy.trace(model, x="f32[8]")


@pytest.mark.parametrize(
    ("graph", "chunk"),
    [(channels(37, 16), 20), (channels(64, 5), 16), (channels(20, 8, (3,)), 33)],
    ids=["odd", "few numbers", "groups"],
)
def test_selective_scans_are_those_of_plain_stablehlo(native, plain, graph, chunk):
    program = chunk_program(graph, 3, chunk)
    assert "systolic_select" in native.lower(program).text
    assert "custom_call" not in plain.lower(program).text
    for lengths in ((chunk, chunk, chunk), (chunk - 3, 1, 0)):  # what grows magnifies rounding
        for got, want in zip(run(native, program, lengths), run(plain, program, lengths), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("graph", [channels(300, 16), channels(500, 9), channels(90, 8, (7,))])
def test_steps_are_those_of_plain_stablehlo(native, plain, graph):
    program = chunk_program(graph, 3, 1)
    assert "systolic_advance" in native.lower(program).text
    for lengths in ((1, 1, 1), (0, 1, 0)):
        for got, want in zip(run(native, program, lengths), run(plain, program, lengths), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [-1e9, -0.0, 3.0])
def test_rates_of_any_size(native, plain, rate):
    """What decays at once leaves nothing, what does not decay stays, and what grows grows."""
    program = chunk_program(channels(32, 16), 1, 16)
    rates = {"rate": np.full((32, 16), rate, np.float32), "step": np.ones((32, 8), np.float32)}
    got, want = (run(backend, program, (16,), **rates) for backend in (native, plain))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def other_recurrence(decay=None, read=None):
    """One that the kernel does not compute."""

    def model(x):
        step, wide = sy.tanh(x), sy.sin(sy.arange(16).cast("f32") * x[0])
        before = sy.feedback(sy.zeros((8, 16)))
        factor = decay(step) if decay else sy.exp(step[:, None] * sy.parameter("rate", (8, 16)))
        after = before.close(factor * before + step[:, None] * wide)
        return read(after, wide) if read else sy.einsum("cn,n->c", after, wide)

    return sy.trace(model, x="f32[8]")


@pytest.mark.parametrize(
    "graph",
    [
        other_recurrence(lambda step: sy.sigmoid(step[:, None] * sy.parameter("rate", (8, 16)))),
        other_recurrence(read=lambda state, wide: sy.sum(sy.tanh(state) * wide, 1)),
        other_recurrence(read=lambda state, wide: sy.einsum("cn,n->c", state, sy.parameter("leave", (16,)))),
        other_recurrence(
            read=lambda state, wide: sy.einsum("cn,c->n", state, sy.parameter("l", (8,))) * wide
        ),
    ],
    ids=["another decay", "read in two steps", "read by weights", "summed over channels"],
)
def test_other_recurrences_stay_with_xla(native, plain, graph):
    program = chunk_program(graph, 2, 16)
    assert "systolic_select" not in native.lower(program).text
    for got, want in zip(run(native, program, (16, 9)), run(plain, program, (16, 9)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("join", ["add", "maximum"])
@pytest.mark.parametrize("width", [300, 1031])
def test_linear_scans_are_those_of_plain_stablehlo(native, plain, join, width):
    def model(x):
        left, right = (sy.tanh(sy.parameter(name, (width, 8)) @ x) for name in ("left", "right"))
        before = sy.feedback(sy.zeros((width,)) - 0.5)
        return before.close(left * before + right if join == "add" else sy.maximum(left + before, right))

    program = chunk_program(sy.trace(model, x="f32[8]"), 3, 16)
    assert f"maximum = {str(join == 'maximum').lower()}" in native.lower(program).text
    for got, want in zip(run(native, program, (16, 5, 0)), run(plain, program, (16, 5, 0)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_few_numbers_stay_with_xla(native):
    def model(x):
        before = sy.feedback(sy.zeros((8,)))
        return before.close(sy.sigmoid(x) * before + x)

    assert "@systolic_recur" not in native.lower(chunk_program(sy.trace(model, x="f32[8]"), 1, 16)).text


MAMBA = {"model_type": "mamba", "vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2}


@pytest.mark.parametrize("is_native", [True, False])
def test_a_prefill_of_mamba_has_no_memory_for_states_of_all_positions(native, plain, is_native):
    """A dozen streams of 512 positions, and what a block needs; the states alone would be 16 streams."""
    graph = families.build(Config("config.json", MAMBA))[1]
    rows, positions, channels, size = 1, 512, 256, 16
    program = derive_chunk(graph, choose_states(graph), rows=rows, chunk=positions, capacity=positions)
    forms = (native if is_native else plain).forms
    prepared = XlaBackend("cpu", native=is_native, forms=forms).prepare(program)
    streams = rows * positions * channels * 4
    block = rows * 16 * channels * size * 4
    assert prepared.memory.temp_size_in_bytes < 12 * streams + 6 * block
    assert prepared.memory.temp_size_in_bytes < rows * positions * channels * size * 4


def test_a_cell_goes_from_step_to_step_in_place(native):
    """The kernel for products is used inside of the loop, where only the states of a row are copied."""
    values = {"model_type": "lstm_lm", "vocab_size": 64, "embedding_size": 48, "hidden_size": 96}
    graph = families.build(Config("config.json", values))[1]
    program = derive_chunk(graph, choose_states(graph), rows=1, chunk=64, capacity=64)
    prepared = XlaBackend("cpu", forms=native.forms).prepare(program)
    (loop,) = (part.split("stablehlo.return")[0] for part in prepared.text.split("} do {")[1:])
    assert "systolic_project" in loop
    copied = re.findall(r"= f32\[([\d,]+)\]\S* copy\(", prepared.optimized_text)
    assert all(np.prod([int(size) for size in shape.split(",")]) <= 96 for shape in copied)
