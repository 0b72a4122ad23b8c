"""Checkpoints that were read before are found again, as long as nothing that they depend on has changed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import systolic as sy
from systolic.models.embedded import embedded_models
from systolic.models.weights import StoredTensor
from systolic.runner import kept_models, package
from systolic.runner.kept_weights import write_tensors

ROOT = Path(__file__).resolve().parent.parent
DTYPES = ["f32", "bf16", "int8"]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(embedded_models()["shakespeare"], tmp_path / "model"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The dtypes for which a checkpoint is read, as it is."""
    dtypes: list[str] = []
    read = kept_models._read

    def counted(path, dtype, adapter):
        dtypes.append(dtype)
        return read(path, dtype, adapter)

    monkeypatch.setattr(kept_models, "_read", counted)
    return dtypes


def entries(checkpoint: Path) -> list[Path]:
    return sorted((checkpoint.parent / "cache" / "systolic" / "xla").glob("*.model"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_found_is_what_was_read(checkpoint, reads, dtype):
    first, second = (sy.load(checkpoint, dtype) for _ in range(2))
    assert reads == [dtype]
    assert str(second.graph) == str(first.graph)
    assert second.graph.digest == first.graph.digest
    for name in ("name", "path", "context_length", "eos_ids", "sampling", "constraints", "dtype"):
        assert getattr(second, name) == getattr(first, name)
    assert list(second.weights) == list(first.weights)
    for name, array in first.weights.items():
        np.testing.assert_array_equal(second.weights[name], array)


def test_values_stay_in_their_file(checkpoint):
    sy.load(checkpoint)
    (entry,) = entries(checkpoint)
    weights = (checkpoint / "model.safetensors").stat().st_size
    assert entry.stat().st_size < weights / 20
    tensors = sy.load(checkpoint).weights._tensors
    assert all(isinstance(tensor, StoredTensor) and tensor.mapped is not None for tensor in tensors.values())


def change_config(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.25}))


def change_generation(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.5}))


def change_weights(checkpoint: Path) -> None:
    """Other values in the same file, of the same size, at what claims to be the same time."""
    file = checkpoint / "model.safetensors"
    before = file.stat()
    content = file.read_bytes()
    with file.open("r+b") as written:
        written.write(content[:-4] + b"\0\0\0\0")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_places(checkpoint: Path) -> None:
    """The same tensors in another order: each lies elsewhere."""
    file = checkpoint / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(file).items()}
    with file.open("wb") as written:
        write_tensors(written.write, dict(sorted(tensors.items(), key=lambda item: item[1].nbytes)))


@pytest.mark.parametrize("change", [change_config, change_generation, change_weights, change_places])
def test_a_changed_checkpoint_is_read_anew(checkpoint, reads, change):
    sy.load(checkpoint)
    change(checkpoint)
    found = sy.load(checkpoint)
    assert len(reads) == 2
    fresh = kept_models._read(checkpoint, "f32", ())
    assert (str(found.graph), found.sampling) == (str(fresh.graph), fresh.sampling)
    for name, array in fresh.weights.items():
        np.testing.assert_array_equal(found.weights[name], array)


def test_a_changed_checkpoint_has_other_programs(checkpoint):
    """What was compiled of the model before it was changed is not run for the one behind."""
    ids = [3, 1, 4, 1, 5]
    directory = checkpoint.parent / "programs"

    def logits() -> np.ndarray:
        return sy.compile(sy.load(checkpoint), backend="numpy", cache_directory=directory).score(ids)

    before = [logits() for _ in range(2)]
    np.testing.assert_array_equal(*before)
    change_config(checkpoint)
    after = [logits() for _ in range(2)]
    np.testing.assert_array_equal(*after)
    model = kept_models._read(checkpoint, "f32", ())
    fresh = sy.compile(model, backend="numpy", cache_directory=directory / "none")
    np.testing.assert_array_equal(after[0], fresh.score(ids))
    assert np.abs(after[0] - before[0]).max() > 0.1


def test_another_version_of_this_package_reads_anew(checkpoint, reads, monkeypatch):
    sy.load(checkpoint)
    monkeypatch.setattr(kept_models, "package_digest", lambda: "another")
    sy.load(checkpoint)
    assert len(reads) == 2


def test_every_source_file_counts(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "ir", tmp_path / "ir")
    for folder in package._FOLDERS[1:]:
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(package, "PACKAGE", tmp_path)

    def digest() -> str:
        package.package_digest.cache_clear()
        return package.package_digest()

    try:
        seen = [digest(), digest()]
        assert seen[0] == seen[1]
        file = tmp_path / "ir" / "ops" / "elementwise.py"
        before = file.stat()
        with file.open("r+b") as written:  # one letter, at the same time as before
            written.write(b"'")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert digest() not in seen
        (tmp_path / "runner" / "more.py").write_text("")
        assert digest() not in seen
    finally:
        package.package_digest.cache_clear()


def test_a_damaged_entry_is_made_anew(checkpoint, reads):
    expected = str(sy.load(checkpoint).graph)
    (entry,) = entries(checkpoint)
    whole = entry.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        entry.write_bytes(broken)
        assert str(sy.load(checkpoint).graph) == expected
    assert len(reads) == 4


def test_nothing_is_kept_where_nothing_may_be(checkpoint, reads, monkeypatch):
    monkeypatch.setenv("SYSTOLIC_PROGRAM_CACHE", "0")
    for _ in range(2):
        sy.load(checkpoint)
    assert len(reads) == 2
    assert entries(checkpoint) == []


def test_mistakes_are_told_as_ever(checkpoint):
    sy.load(checkpoint)
    with pytest.raises(sy.SystolicError, match="cannot be kept as 'f33'"):
        sy.load(checkpoint, "f33")
    (checkpoint / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(sy.SystolicError, match="truncated or corrupt"):
        sy.load(checkpoint)
    with pytest.raises(sy.SystolicError, match="is no model"):
        sy.load(checkpoint / "nowhere")


def test_a_graph_out_of_a_pickle_makes_its_nodes_once():
    graph = sy.load().graph
    again = pickle.loads(pickle.dumps(graph))
    assert again.signature == graph.signature
    assert "inputs" not in vars(again)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: again.parameters, range(64)))
    assert all(parameters is found[0] for parameters in found)
    assert str(again) == str(graph)
    assert again.digest == graph.digest
    with pytest.raises(AttributeError, match="a graph has no nothing"):
        _ = again.nothing


def test_a_start_from_what_is_kept_traces_nothing(tmp_path):
    """Neither the compiler nor a family of models is even loaded."""
    code = (
        "import sys, systolic as sy\n"
        "made = sy.compile(sy.load(sys.argv[1])).generate([5, 6, 7, 8], max_new_tokens=4)\n"
        "print(*made, *sorted(name for name in sys.modules if name.startswith('systolic.')))"
    )
    said = []
    checkpoint = shutil.copytree(embedded_models()["shakespeare"], tmp_path / "model")
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", code, str(checkpoint)], capture_output=True, text=True, check=True
        )
        said.append(run.stdout.split())
    assert said[0][:4] == said[1][:4]
    loaded = set(said[1][4:])
    assert "systolic.runner.decode_loop" in loaded
    unwanted = ("systolic.compiler.trace", "systolic.compiler.derive", "systolic.models.load")
    assert loaded.isdisjoint(unwanted)
