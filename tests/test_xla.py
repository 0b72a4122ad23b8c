"""StableHLO text and XLA: locations, donation, the compilation cache, portable artifacts."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from programs_by_hand import (
    apply,
    attention_graph,
    attention_values,
    compare,
    expected,
    input_node,
    program_from,
)

from systolic.backends.cache import (
    PROGRAM_LIMIT,
    default_cache_directory,
    read_entry,
    size_limit,
    write_entry,
)
from systolic.backends.numpy_backend import NumpyBackend
from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.xla import XlaBackend, portable_artifact
from systolic.ir.errors import SystolicError
from systolic.ir.graph import Graph
from systolic.ir.ops import OPS

pytestmark = pytest.mark.optimised


@pytest.fixture
def xla(tmp_path: Path) -> XlaBackend:
    return XlaBackend("cpu", tmp_path / "cache")


def test_locations_and_donation_stand_in_the_text() -> None:
    text = emit_stablehlo(program_from(attention_graph()))
    assert 'loc("attn.k"("model.py":12:0))' in text
    assert '%state.attn.k: tensor<2x8x5xf32> {tf.aliasing_output = 1 : i32} loc("state.attn.k")' in text
    assert "%attn.k = stablehlo.dot_general %x, %attn.w, contracting_dims = [2] x [1]" in text
    assert text == emit_stablehlo(program_from(attention_graph()))


def test_names_are_escaped() -> None:
    x = input_node('odd "name" \\ 1', "f32[]")
    graph = Graph("1 odd program", (x,), (), {'an "output"': apply("negative", x, name="7 %x")})
    text = emit_stablehlo(program_from(graph))
    assert "%_7__x" in text
    XlaBackend("cpu").compile(text)
    results, _ = NumpyBackend().prepare(program_from(graph)).run({}, {x.name: np.float32(2)}, {})
    assert results['an "output"'] == -2


def copies_of(text: str, shape: str) -> list[str]:
    """Operations in optimised HLO that materialise a whole array of the shape."""
    return re.findall(rf"= f32\[{shape}\]\S* (?:copy|convert|transpose)\(", text)


def test_xla_writes_a_donated_state_in_place(xla: XlaBackend) -> None:
    graph = attention_graph(capacity=4096)
    prepared = xla.prepare(program_from(graph))
    state_bytes = 2 * 4096 * 5 * 4
    assert prepared.memory.alias_size_in_bytes == state_bytes
    assert copies_of(prepared.optimized_text, "2,4096,5") == []
    parameters, inputs, states = attention_values(graph)
    want = expected(graph, parameters, inputs, states)
    results, updated = prepared.run(parameters, inputs, states)
    compare((results, updated), want)
    state = updated["attn.k"]
    pointer = state.unsafe_buffer_pointer()
    _, updated = prepared.run(parameters, inputs, updated)
    assert updated["attn.k"].unsafe_buffer_pointer() == pointer
    assert state.is_deleted()


def test_xla_loops_over_a_donated_state_in_place(xla: XlaBackend) -> None:
    state, values = input_node("state.s", "f32[2,4096,3]"), input_node("values", "f32[2,4,3]")
    at = input_node("at", "i32[2,4]")
    body_state = input_node("s", "f32[2,4096,3]")
    body_values, body_at = input_node("v", "f32[2,1,3]"), input_node("a", "i32[2,1]")
    written = apply("write_rows", body_state, body_values, body_at)
    body = Graph("body", (body_state, body_values, body_at), (), {"s": written})
    loop = apply("loop", state, values, at, body=body, carries=1, scanned=2, length=4)
    graph = Graph("g", (state, values, at), (), {"state.s": apply("part", loop, index=0)})
    prepared = xla.prepare(program_from(graph))
    assert prepared.memory.alias_size_in_bytes == 2 * 4096 * 3 * 4
    assert copies_of(prepared.optimized_text, "2,4096,3") == []


def test_a_program_is_compiled_once(tmp_path: Path) -> None:
    program = program_from(attention_graph())
    first = XlaBackend("cpu", tmp_path).prepare(program)
    second = XlaBackend("cpu", tmp_path).prepare(program)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.compile_seconds > 0
    values = attention_values(program.graph)
    compare(second.run(*values), expected(program.graph, *values))


def test_a_broken_cache_entry_is_replaced(tmp_path: Path) -> None:
    program = program_from(attention_graph())
    values = attention_values(program.graph)
    XlaBackend("cpu", tmp_path).prepare(program)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    for broken in (b"", b"not an executable", whole[: len(whole) // 2]):
        entry.write_bytes(broken)
        prepared = XlaBackend("cpu", tmp_path).prepare(program)
        assert not prepared.from_cache
        compare(prepared.run(*values), expected(program.graph, *values))
    assert XlaBackend("cpu", tmp_path).prepare(program).from_cache


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    prepared = XlaBackend("cpu", tmp_path / "file" / "cache").prepare(program_from(attention_graph()))
    assert not prepared.from_cache


def test_entries_that_were_not_used_for_longest_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRAM_LIMIT, "1KB")
    names = [f"{number}.program" for number in range(4)]
    for age, name in enumerate(names):
        write_entry(tmp_path / name, bytes(300))
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "mine.txt").write_bytes(bytes(5000))
    assert read_entry(tmp_path / names[0]) is None  # made room for the last one
    assert read_entry(tmp_path / names[1]) == bytes(300)  # and is the last to go now
    write_entry(tmp_path / "new.xla", bytes(300))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "1.program",
        "3.program",
        "mine.txt",
        "new.xla",
    ]
    write_entry(tmp_path / "large.xla", bytes(2000))
    assert not (tmp_path / "large.xla").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("", 7), ("0", 0), ("12", 12), ("20 gb", 20 * 10**9), ("1.5KB", 1500), ("3B", 3)]
)
def test_sizes_of_caches(monkeypatch, text, size):
    monkeypatch.setenv(PROGRAM_LIMIT, text)
    assert size_limit(PROGRAM_LIMIT, 7) == size


@pytest.mark.parametrize("text", ["much", "-1", "5 GiB"])
def test_what_is_no_size_is_a_clear_error(monkeypatch, text):
    monkeypatch.setenv(PROGRAM_LIMIT, text)
    with pytest.raises(SystolicError, match=f"{PROGRAM_LIMIT} must be a size like 500MB"):
        size_limit(PROGRAM_LIMIT, 7)


def test_the_cache_stands_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_directory() == tmp_path / "systolic" / "xla"


def test_an_unknown_platform_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SystolicError, match="jax has no platform 'abacus'"):
        XlaBackend("abacus", tmp_path)


def test_a_portable_artifact_compiles_and_runs(xla: XlaBackend) -> None:
    x = input_node("x", "f32[3]")
    text = emit_stablehlo(program_from(Graph("g", (x,), (), {"y": apply("erf", x)})))
    artifact = portable_artifact(text)
    assert isinstance(artifact, bytes)
    values = np.array([-0.5, 0.0, 2.0], np.float32)
    (result,) = xla.compile(artifact).executable.execute([xla.place(values)])
    np.testing.assert_allclose(np.asarray(result), OPS["erf"].numpy(values), rtol=1e-6)


def test_64_bit_types_stay_as_they_are(xla: XlaBackend) -> None:
    x, i = input_node("x", "f64[2]"), input_node("i", "i64[2]")
    graph = Graph("g", (x, i), (), {"y": apply("exp", x), "j": apply("add", i, i)})
    values = {"x": np.array([0.1, 0.2]), "i": np.array([2**40, 1])}
    results, _ = xla.prepare(program_from(graph)).run({}, values, {})
    np.testing.assert_array_equal(xla.fetch(results["j"]), 2 * values["i"])
    np.testing.assert_allclose(xla.fetch(results["y"]), np.exp(values["x"]), rtol=1e-15)
