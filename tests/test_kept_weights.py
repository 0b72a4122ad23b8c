"""Weights that were rounded or moved once are found again, as long as they are those of the same files."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import systolic as sy
from systolic.models.compact import keep_compact
from systolic.models.embedded import embedded_models
from systolic.models.load import COMPACT
from systolic.models.merge import MergedTensor
from systolic.models.weights import ALIGNMENT, read_file
from systolic.runner import kept_weights
from systolic.runner.executable import Executable
from systolic.runner.kept_weights import LIMIT, KeptWeights, write_tensors

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept_weights, "LEAST", 1)
    folder = tmp_path / "model"
    shutil.copytree(embedded_models()["shakespeare"], folder)
    return folder


def start(checkpoint: Path, dtype: str = "int8", backend: str = "numpy") -> Executable:
    """A new start, with its weights placed and what it keeps written."""
    made = sy.compile(
        sy.load(checkpoint, dtype), backend=backend, cache_directory=checkpoint.parent / "cache"
    )
    _ = made.parameters
    for thread in threading.enumerate():
        if thread.name == "keep weights":
            thread.join()
    return made


def kept(checkpoint: Path) -> list[Path]:
    return sorted((checkpoint.parent / "cache").glob("*.weights"))


def is_found(executable: Executable) -> bool:
    weights = executable.model.weights
    return isinstance(weights, KeptWeights) and bool(weights._found)


@pytest.mark.parametrize("backend", ["numpy", "xla"])
@pytest.mark.parametrize("dtype", ["int8", "int4-32", "bf16", "f32-packed", "bf16-packed"])
def test_a_second_start_finds_the_same_numbers(checkpoint, dtype, backend):
    first, second = (start(checkpoint, dtype, backend) for _ in range(2))
    assert (is_found(first), is_found(second)) == (False, True)
    assert len(kept(checkpoint)) == 1
    fetch = first.backend.fetch
    for name, array in first.parameters.items():
        found = fetch(second.parameters[name])
        assert found.dtype == fetch(array).dtype
        np.testing.assert_array_equal(found, fetch(array))
    reply = [executable.generate(PROMPT, max_new_tokens=4) for executable in (first, second)]
    assert reply[0] == reply[1]


def test_each_scheme_has_a_file(checkpoint):
    for dtype in ("int8", "int8-32", "int4-32"):
        assert not is_found(start(checkpoint, dtype))
    assert len(kept(checkpoint)) == 3


def test_a_checkpoint_that_changed_is_another_one(checkpoint):
    first = start(checkpoint)
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(-2.5).tobytes()
    replaced = file.with_name("new")
    replaced.write_bytes(data)
    os.replace(replaced, file)
    second = start(checkpoint)
    assert not is_found(second)
    assert any(
        not np.array_equal(first.parameters[name], second.parameters[name]) for name in first.parameters
    )


def test_a_damaged_file_is_written_anew(checkpoint):
    start(checkpoint)
    (entry,) = kept(checkpoint)
    whole = entry.read_bytes()
    for broken in (b"", whole[: len(whole) // 2]):
        entry.write_bytes(broken)
        assert not is_found(start(checkpoint))
        assert entry.read_bytes() == whole
    assert is_found(start(checkpoint))


def test_nothing_is_kept_where_the_user_says_so(checkpoint, monkeypatch):
    monkeypatch.setenv(LIMIT, "0")
    start(checkpoint)
    assert kept(checkpoint) == []


def test_the_file_used_last_stays_where_there_is_no_room_for_both(checkpoint, monkeypatch):
    start(checkpoint, "int8")
    (first,) = kept(checkpoint)
    os.utime(first, (1, 1))
    monkeypatch.setenv(LIMIT, str(first.stat().st_size + 1000))
    start(checkpoint, "int4-32")
    (second,) = kept(checkpoint)
    assert second != first


def test_weights_that_are_not_those_of_files_are_not_kept(checkpoint):
    model = sy.load(checkpoint)
    arrays = {name: np.array(array) for name, array in (model.weights or {}).items()}
    graph, rounded = keep_compact(model.graph, arrays, COMPACT["int8"])
    assert kept_weights.kept_weights(rounded, graph.signature.parameters, 64, None) is rounded
    merged = MergedTensor(*(None,) * 7)  # type: ignore[arg-type]  # whatever is merged
    assert merged.identity is None


def test_tensors_are_written_where_a_backend_can_use_them(tmp_path):
    arrays = {
        "odd": np.arange(3, dtype=np.int8),
        "matrix": np.arange(64, dtype=np.float32).reshape(4, 16),
        "half": np.ones(32, ml_dtypes.bfloat16),
        "packed": np.arange(64, dtype=np.uint8),
        "places": np.arange(64, dtype=np.int32),
    }
    with (tmp_path / "x").open("wb") as file:
        write_tensors(file.write, arrays)
    found = read_file(tmp_path / "x")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].array(array.dtype), array)
        if name != "odd":
            assert found[name].is_in_place(array.dtype, ALIGNMENT)
