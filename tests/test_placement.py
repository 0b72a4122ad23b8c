"""Weights on their way from files to backends: whatever the layout, every backend gets the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import systolic as sy
from systolic.backends import backend_named
from systolic.ir.types import DTYPES
from systolic.models.compact import keep_compact
from systolic.models.load import COMPACT
from systolic.models.precision import keep_weights_as
from systolic.models.quantised import SCHEMES
from systolic.models.weights import ALIGNMENT, Naming, fit, read_file
from systolic.runner.placement import place_weights

SHAPES = {"table": (300, 64), "matrix": (96, 64), "gain": (64,), "scalar": ()}


def graph() -> sy.Graph:
    def model(token):
        x = sy.take(sy.parameter("table", SHAPES["table"]), token) * sy.parameter("gain", SHAPES["gain"])
        return (sy.parameter("matrix", SHAPES["matrix"]) @ x) * sy.parameter("scalar", ())

    return sy.trace(model)


def values(dtype: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: np.asarray(random.normal(size=shape), DTYPES[dtype]) for name, shape in SHAPES.items()}


def write(path: Path, arrays: dict[str, np.ndarray], dtype: str, shift: int) -> None:
    """A safetensors file whose data begin ``shift`` bytes behind a multiple of the alignment."""
    header, end = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * ((shift - 8 - len(text)) % ALIGNMENT)
    body = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("shift", [0, 8, 40])
@pytest.mark.parametrize("stored", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("kept", ["f32", "bf16"])
@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_a_backend_gets_the_numbers_of_the_file(tmp_path, shift, stored, kept, backend):
    arrays = values(stored)
    write(tmp_path / "weights.safetensors", arrays, stored.upper(), shift)
    wanted = graph() if kept == "f32" else keep_weights_as(graph(), kept)
    weights = fit(wanted, read_file(tmp_path / "weights.safetensors"), Naming(), "here")
    runs = backend_named(backend)
    placed = place_weights(wanted, weights, runs, "a model")
    assert list(placed) == [node.name for node in wanted.parameters]
    for name, array in arrays.items():
        found = runs.fetch(placed[name])
        dtype = DTYPES[kept if array.ndim == 2 else "f32"]  # a gain is nothing that is rounded
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, array.astype(dtype))


def test_what_a_backend_can_use_where_it_is_is_not_copied(tmp_path):
    arrays = values("f32")
    write(tmp_path / "here.safetensors", arrays, "F32", 0)
    write(tmp_path / "moved.safetensors", arrays, "F32", 8)
    xla = backend_named("xla")
    for name, is_view in (("here", True), ("moved", False)):
        stored = read_file(tmp_path / f"{name}.safetensors")["table"]
        table = stored.array(np.dtype(np.float32), xla.alignment)
        assert np.shares_memory(table, stored.data) is is_view
        assert xla.place(table).unsafe_buffer_pointer() == table.ctypes.data
        assert np.shares_memory(stored.array(np.dtype(np.float32)), stored.data)


def test_reading_ahead_ends_also_where_a_file_has_gone(tmp_path):
    write(tmp_path / "weights.safetensors", values("f32"), "F32", 0)
    weights = fit(graph(), read_file(tmp_path / "weights.safetensors"), Naming(), "here")
    weights.read_ahead().join(10)
    (tmp_path / "weights.safetensors").unlink()
    reader = weights.read_ahead()
    reader.join(10)
    assert not reader.is_alive()


@pytest.mark.parametrize("kind", list(SCHEMES))
@pytest.mark.parametrize("stored", ["f32", "bf16"])
def test_integers_are_the_same_from_a_file_and_from_an_array(tmp_path, kind, stored):
    arrays = values(stored)
    write(tmp_path / "weights.safetensors", arrays, stored.upper(), 8)
    mapped = fit(graph(), read_file(tmp_path / "weights.safetensors"), Naming(), "here")
    given = {name: array.astype(np.float32) for name, array in arrays.items()}
    _, from_file = keep_compact(graph(), mapped, COMPACT[kind])
    _, from_arrays = keep_compact(graph(), given, COMPACT[kind])
    assert set(from_file) == set(from_arrays) > {"matrix.integers", "matrix.scales"}
    for name in from_arrays:
        np.testing.assert_array_equal(from_file[name], from_arrays[name])


def test_scales_do_not_depend_on_what_is_asked_for_first():
    _, weights = keep_compact(graph(), values("f32"), COMPACT["int8-32"])
    first = weights["matrix.scales"]
    assert weights["matrix.integers"].shape == (96, 2, 32)
    np.testing.assert_array_equal(weights["matrix.scales"], first)


def test_halving_finds_the_largest_of_any_number():
    from systolic.models.quantised import _largest

    for size in (1, 2, 3, 12, 37, 64):
        array = np.random.default_rng(size).normal(size=(5, 3, size)).astype(np.float32)
        np.testing.assert_array_equal(_largest(array), array.max(axis=-1))


def test_half_precision_that_is_no_number_stays_none(tmp_path):
    special = np.array([np.nan, np.inf, -np.inf, 0.0], ml_dtypes.bfloat16)
    write(tmp_path / "x.safetensors", {"x": special}, "BF16", 8)
    found = read_file(tmp_path / "x.safetensors")["x"].array(np.dtype(np.float32))
    np.testing.assert_array_equal(found, special.astype(np.float32))


def test_placing_says_how_many_weights_are_there():
    told = []
    place_weights(
        graph(), values("f32"), backend_named("numpy"), "a model", report=lambda *of: told.append(of)
    )
    assert told == [(i, 4) for i in (1, 2, 3, 4)]
