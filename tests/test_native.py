"""Native kernels: the numbers of plain StableHLO, absent without a compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from quick_programs import quick_programs

import systolic as sy
from systolic.backends.contractions.table import forced_table
from systolic.backends.native import build
from systolic.backends.native.build import load_kernels
from systolic.backends.numpy_backend import NumpyBackend
from systolic.backends.processor import this_processor
from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.xla import XlaBackend
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.compiler.pipeline import passes_with, run_passes
from systolic.ir.types import DTYPES
from systolic.models.compact import keep_compact
from systolic.models.load import COMPACT, load
from systolic.models.quantised import SCHEMES
from systolic.runner.compilation import compile

pytestmark = pytest.mark.optimised


@pytest.fixture(scope="module")
def optimised():
    if not any(map(shutil.which, build.COMPILERS)):
        pytest.skip("this machine has no C++ compiler")
    backend = XlaBackend("cpu", forms=forced_table("kernel"))
    assert backend.kernels is not None
    return backend


@pytest.fixture(scope="module")
def native(optimised):
    """Calls the same kernels: they are as the C++ compiler optimises them."""
    with quick_programs():
        return XlaBackend("cpu", forms=optimised.forms)


@pytest.fixture(scope="module")
def plain():
    with quick_programs():
        return XlaBackend("cpu", native=False, forms=forced_table("dot"))


@pytest.mark.parametrize(
    "architecture",
    ["x86-64", "haswell", "znver2", "skylake-avx512", "icelake-server", "sapphirerapids", "armv8-a"],
)
def test_kernels_compile_for_other_processors(architecture):
    """What this machine has no instructions for is checked by the compiler alone."""
    compiler = next(filter(None, map(shutil.which, build.COMPILERS)), None)
    if compiler is None:
        pytest.skip("this machine has no C++ compiler")
    empty = [compiler, f"-march={architecture}", "-fsyntax-only", "-x", "c++", "/dev/null"]
    if subprocess.run(empty, capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} makes nothing for {architecture}")
    flags = [f"-march={architecture}" if flag == "-march=native" else flag for flag in build.FLAGS]
    command = [compiler, *flags, "-fsyntax-only", "-I", str(build.HEADERS), str(build.SOURCE)]
    checked = subprocess.run(command, capture_output=True, check=False, text=True)
    assert checked.returncode == 0, checked.stderr


def rounding(rows):
    """What products with bf16 or integers may differ by: many vectors are rounded to the 8 bits of bf16, few
    keep at least 16."""
    return 2.0**-8 if rows > 8 else 2.0**-14


def run(backend, program, seed=0):
    """The results of a program on random parameters, inputs and states."""
    random = np.random.default_rng(seed)
    rows, chunk = program.rows, program.chunk

    def draw(node):
        shape, dtype = node.tensor.static_shape, node.tensor.dtype
        if dtype == "i8":
            return random.integers(-127, 128, shape).astype(np.int8)
        values = random.normal(size=shape).astype(np.float32)
        if node.name.endswith("scales"):
            return np.abs(values) / 127
        return (
            values.astype(DTYPES["bf16"]).view(np.uint16) if dtype == "u16" else values.astype(DTYPES[dtype])
        )

    # Small weights keep scores small: large ones would magnify rounding through the exponential.
    parameters = {node.name: 0.1 * draw(node) for node in program.graph.parameters}
    inputs, states = {}, {}
    for node in program.graph.inputs:
        if node.name.startswith("state."):
            states[node.name.removeprefix("state.")] = draw(node)
        else:
            inputs[node.name] = draw(node)
    inputs["offset"] = random.integers(0, program.capacity - chunk, rows).astype(np.int32)
    inputs["length"] = np.full(rows, chunk, np.int32)
    results, updated = backend.prepare(program).run(parameters, inputs, states)
    return {name: np.asarray(value) for name, value in {**results, **updated}.items()}


def attention(heads=2, group=3, size=20, width=12, *, window=None, cap=None, scale=0.3):
    def model(x):
        def weight(name, count):
            return (sy.parameter(name, (count, 64)) @ x).reshape

        q = weight("q", heads * group * size)(heads, group, size)
        k = weight("k", heads * size)(heads, size)
        v = weight("v", heads * width)(heads, width)
        scores = sy.einsum("hgd,phd->hgp", q, sy.history(k, window)) * scale
        if cap is not None:
            scores = sy.tanh(scores / cap) * cap
        return sy.einsum("hgp,phe->hge", sy.softmax(scores), sy.history(v, window)).reshape(-1)

    return sy.trace(model, x="f32[64]")


def chunk_program(graph, *, rows=1, chunk=1, capacity=40, state_dtype="f32"):
    graph = run_passes(graph, passes_with(state_dtype, "sources"))[-1].graph
    plan = choose_states(graph, "sources")
    return derive_chunk(graph, plan, rows=rows, chunk=chunk, capacity=capacity, reserve=chunk, last=False)


@pytest.mark.parametrize(
    "graph",
    [
        attention(),
        attention(1, 8, 64, 64, window=5),
        attention(3, 1, 7, 33, cap=2.0),
        attention(2, 5, 16, 16),
    ],
    ids=["grouped", "window", "bounded", "odd"],
)
@pytest.mark.parametrize(("rows", "chunk"), [(1, 1), (3, 1), (2, 6), (2, 20), (1, 70)])
def test_attention_is_that_of_plain_stablehlo(native, plain, graph, rows, chunk):
    program = chunk_program(graph, rows=rows, chunk=chunk, capacity=40 + chunk)
    assert "systolic_attend" in native.lower(program).text
    got, want = run(native, program), run(plain, program)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("state_dtype", ["f16", "bf16", "int8"])
@pytest.mark.parametrize(
    "graph",
    [
        attention(),
        attention(1, 8, 64, 64, window=5),
        attention(3, 1, 7, 33, cap=2.0),
        attention(1, 13, 32, 16),
    ],
    ids=["grouped", "window", "bounded", "many"],
)
@pytest.mark.parametrize(("rows", "chunk", "capacity"), [(3, 1, 40), (2, 6, 40), (1, 1, 3000)])
def test_states_in_fewer_bits_are_read_as_they_are_kept(
    native, plain, graph, state_dtype, rows, chunk, capacity
):
    program = chunk_program(graph, rows=rows, chunk=chunk, capacity=capacity, state_dtype=state_dtype)
    text = native.lower(program).text
    assert ("systolic_attend_scaled" if state_dtype == "int8" else "systolic_attend_") in text
    numpy = NumpyBackend()
    got, want, meant = run(native, program), run(plain, program), run(numpy, program)
    # What this chunk keeps may be rounded to a neighbour: few numbers are, and outputs move no further.
    step = {"f16": 2.0**-10, "bf16": 2.0**-7, "int8": 1 / 127}[state_dtype]
    for other in (want, meant):
        difference, size = np.abs(got["output"] - other["output"]), np.abs(other["output"]).max()
        assert (difference > 1e-4 * (1 + size)).mean() < 0.01
        assert difference.max() < step * size


@pytest.mark.parametrize("state_dtype", ["f32", "f16", "bf16", "int8"])
def test_a_head_is_read_in_parts_where_heads_are_few(native, plain, state_dtype):
    program = chunk_program(attention(1, 1, 64, 64), capacity=5000, state_dtype=state_dtype)
    got, want = run(native, program), run(plain, program)
    np.testing.assert_allclose(got["output"], want["output"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("state_dtype", ["f16", "bf16", "int8"])
def test_no_state_is_copied_or_made_wider_as_a_whole(optimised, state_dtype):
    program = chunk_program(attention(2, 2, 64, 64), capacity=4096, state_dtype=state_dtype)
    prepared = optimised.prepare(program)
    assert prepared.memory.temp_size_in_bytes < program.states[0].bytes / 4
    assert prepared.memory.alias_size_in_bytes >= sum(state.bytes for state in program.states)
    whole = r"= \w+\[(?:\d+,)*4096(?:,\d+)*\]\S* (\w[\w-]*)\("
    touched = {op for op in re.findall(whole, prepared.optimized_text) if op not in ("parameter", "bitcast")}
    # Only the mask is as long as a state, and what updates one.
    assert touched <= {
        "compare",
        "iota",
        "dynamic-update-slice",
        "scatter",
        "fusion",
        "broadcast",
        "select",
    }, touched


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 40, 70])
@pytest.mark.parametrize("shape", [(257, 70), (64, 1030), (33, 513)])
@pytest.mark.parametrize("turned", [False, True])
def test_projections(native, plain, rows, shape, turned):
    def model(x):
        w = sy.parameter("w", shape[::-1] if turned else shape)
        return sy.einsum("kn,k->n" if turned else "nk,k->n", w, x)

    program = chunk_program(sy.trace(model, x=f"f32[{shape[1]}]"), rows=rows)
    text = native.lower(program).text
    assert "systolic_project" in text
    assert f"turned = {str(turned).lower()}" in text
    got, want = run(native, program)["output"], run(plain, program)["output"]
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


def test_rows_beyond_those_whose_sums_stay_near(native, plain):
    graph = sy.trace(lambda x: sy.parameter("w", (45, 300)) @ x, x="f32[300]")
    program = chunk_program(graph, rows=3, chunk=230, capacity=240)
    got, want = run(native, program)["output"], run(plain, program)["output"]
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_products_of_the_same_vectors_are_one_call(native, plain, rows):
    def model(x):
        q, k, v = (sy.parameter(name, (n, 96)) @ x for name, n in (("q", 130), ("k", 48), ("v", 51)))
        return {"q": q, "k": k, "v": v, "o": sy.parameter("o", (64, 130)) @ q}

    program = chunk_program(sy.trace(model, x="f32[96]"), rows=rows)
    assert native.lower(program).text.count("custom_call @systolic_project") == 2
    got, want = run(native, program), run(plain, program)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=3e-6 * np.abs(value).max())


def test_small_weights_stay_with_xla(native):
    small = sy.trace(lambda x: sy.parameter("w", (8, 16)) @ x, x="f32[16]")
    assert "custom_call" not in native.lower(chunk_program(small)).text


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 20, 40])
@pytest.mark.parametrize("turned", [False, True])
def test_bf16_weights_are_read_as_they_are_kept(native, plain, rows, turned):
    random = np.random.default_rng(3)
    shape = (192, 131) if turned else (131, 192)

    def model(x):
        w = sy.cast(sy.parameter("w", shape, "bf16"), "f32")
        return sy.einsum("kn,k->n" if turned else "nk,k->n", w, x)

    weights = {"w": random.normal(size=shape).astype(DTYPES["bf16"])}
    program = chunk_program(sy.trace(model, x="f32[192]"), rows=rows)
    inputs = {"x": random.normal(size=(rows, 1, 192)).astype(np.float32)}
    inputs |= {"offset": np.zeros(rows, np.int32), "length": np.ones(rows, np.int32)}
    prepared = native.prepare(program), plain.prepare(program)
    assert "dot_general" not in prepared[0].text
    got, want = (np.asarray(p.run(weights, inputs, {})[0]["output"]) for p in prepared)
    np.testing.assert_allclose(got, want, rtol=0, atol=rounding(rows) * np.abs(want).max())


def test_attention_that_is_looked_at_stays_open(native):
    def model(x):
        probabilities = sy.softmax(sy.einsum("hd,phd->hp", x, sy.history(x))).named("probs")
        return {
            "mixed": sy.einsum("hp,phd->hd", probabilities, sy.history(x)),
            "least": sy.sum(probabilities**2),
        }

    program = chunk_program(sy.trace(model, x="f32[4,8]"))
    assert "systolic_attend" not in native.lower(program).text


def test_what_is_hidden_is_not_read(native):
    program = chunk_program(attention(), capacity=40)
    random = np.random.default_rng(1)
    parameters = {
        n.name: random.normal(size=n.tensor.static_shape).astype(np.float32) for n in program.graph.parameters
    }
    states = {s.name: np.full(s.type.static_shape, np.nan, np.float32) for s in program.states}
    x = random.normal(size=(1, 1, 64)).astype(np.float32)
    inputs = {"x": x, "offset": np.zeros(1, np.int32), "length": np.ones(1, np.int32)}
    results, _ = native.prepare(program).run(parameters, inputs, states)
    assert np.isfinite(np.asarray(results["output"])).all()


def test_states_stay_in_place(optimised):
    program = chunk_program(attention(2, 2, 64, 64), capacity=4096)
    prepared = optimised.prepare(program)
    assert prepared.memory.temp_size_in_bytes < program.states[0].bytes / 4
    assert prepared.memory.alias_size_in_bytes >= sum(state.bytes for state in program.states)


@pytest.mark.parametrize("name", ["llama_gqa_llama3", "gemma2", "mistral_sliding"])
def test_models_say_the_same_with_and_without(shared, native, plain, name):
    folder = shared / "oracle" / name
    model, recorded = load(folder), np.load(folder / "oracle.npz")
    executable = compile(model, capacity=64, chunk=16)
    text = executable.programs.chunk(1).text
    assert text.count("@systolic_attend") == len(executable.states) // 2
    reply = executable.generate(recorded["ids_1"].tolist(), max_new_tokens=24, ignore_eos=True)
    assert reply == recorded["greedy_1"].tolist()


def test_without_a_compiler_there_are_none(monkeypatch, tmp_path):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert load_kernels(tmp_path, this_processor().description) is None


def test_a_compiler_that_fails_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "FLAGS", ("--no-such-flag",))
    if any(map(shutil.which, build.COMPILERS)):
        with pytest.warns(UserWarning, match="run without them"):
            assert load_kernels(tmp_path, this_processor().description) is None
    assert not list(tmp_path.iterdir())


def test_one_process_builds_and_those_that_start_meanwhile_wait(tmp_path):
    compiler, builds, library = tmp_path / "c++", tmp_path / "builds", tmp_path / "cache" / "kernels.so"
    compiler.write_text(f'#!/bin/sh\necho one >>"{builds}"; sleep 0.2; for last; do :; done; touch "$last"\n')
    compiler.chmod(0o755)
    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(build._build, [str(compiler)] * 3, [library] * 3))
    assert builds.read_text() == "one\n"
    assert [file.name for file in library.parent.iterdir()] == [library.name]


def test_programs_that_are_written_call_none():
    assert "custom_call" not in emit_stablehlo(chunk_program(attention()))


@pytest.mark.parametrize("shape", [(3, 1 << 20), (1, 1024, 257), (262_145,)])
def test_zeros_are_zeros_also_where_something_else_was(native, shape):
    for dtype in ("f32", "i8"):
        for _ in range(3):
            used = native.device.place(np.ones(shape, DTYPES[dtype]))
            del used
            zeros = native.zeros(shape, dtype)
            assert (zeros.aval.shape, zeros.aval.dtype) == (shape, DTYPES[dtype])
            assert not native.fetch(zeros).any()


def check_integers(native, plain, kind, rows, shape):
    random = np.random.default_rng(2)
    weights = {"w": random.normal(size=shape).astype(np.float32)}
    graph = sy.trace(lambda x: sy.parameter("w", shape) @ x, x=f"f32[{shape[1]}]")
    graph, kept = keep_compact(graph, weights, COMPACT[kind])
    program = chunk_program(graph, rows=rows)
    x = random.normal(size=(rows, 1, shape[1])).astype(np.float32)
    inputs = {"x": x, "offset": np.zeros(rows, np.int32), "length": np.ones(rows, np.int32)}
    prepared = native.prepare(program), plain.prepare(program)
    assert "dot_general" not in prepared[0].text
    got, want = (np.asarray(p.run(kept, inputs, {})[0]["output"]) for p in prepared)
    tolerance = rounding(rows) if kind == "int8" else rounding(1)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("kind", list(SCHEMES))
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 20, 40])
def test_integers_are_read_as_they_are_kept(native, plain, kind, rows):
    check_integers(native, plain, kind, rows, (131, 192))


@pytest.mark.parametrize("shape", [(90, 77), (70, 1030), (67, 601)])
@pytest.mark.parametrize("rows", [1, 2, 4, 7, 9, 20])
def test_integers_whose_rows_have_odd_ends(native, plain, shape, rows):
    check_integers(native, plain, "int8", rows, shape)


@pytest.mark.parametrize("kind", [kind for kind, scheme in SCHEMES.items() if scheme.group])
@pytest.mark.parametrize("width", [64, 320, 704, 20480])  # one group, some behind a vector, rows side by side
@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_groups_that_fill_no_vector(native, plain, kind, rows, width):
    check_integers(native, plain, kind, rows, (67, width))
