"""Matrices that are kept the other way round than files have them: which, and that nothing else changes."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import systolic as sy
from systolic.backends import xla
from systolic.backends.contractions.layout import faster_transposed
from systolic.backends.contractions.table import Cell, FormTable, Setting
from systolic.compiler.program import TRANSPOSED
from systolic.models.derived import TransposedWeights
from systolic.models.precision import keep_weights_as
from systolic.models.weights import ALIGNMENT
from systolic.runner import kept_weights
from systolic.runner.kept_weights import KeptWeights
from systolic.runner.saved_state import fingerprint

CONFIG = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 96}
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
NAMES = {f"transformer.h.{layer}.{name}.weight" for layer in range(2) for name in MATRICES}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def table(turned: float, weights: tuple[str, ...] = ("f32", "bf16")) -> FormTable:
    """Measured products of which those with turned matrices take ``turned`` times as long as others."""
    return FormTable(
        tuple(
            Cell(Setting(kept, is_turned, False, 1, 64, 64), dict.fromkeys(("kernel", "dot"), seconds))
            for kept in weights
            for is_turned, seconds in ((False, 1e-5), (True, turned * 1e-5))
        ),
        0,
        "a test",
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    random = np.random.default_rng(0)
    weights = {
        node.name: random.normal(size=node.tensor.static_shape, scale=0.2).astype(np.float32)
        for node in sy.load(folder / "config.json").graph.parameters
    }
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def slow_when_turned(monkeypatch) -> None:
    monkeypatch.setattr(xla, "kept_table", lambda *of: table(turned=2.0, weights=("f32", "bf16", "int8")))


def compiled(checkpoint: Path, tmp_path: Path, dtype: str = "f32", **options) -> sy.Executable:
    return sy.compile(sy.load(checkpoint, dtype), cache_directory=tmp_path / "cache", **options)


def graph_of(dtype: str = "f32") -> sy.Graph:
    """Products with matrices [n, d] and [d, n], one of which is also looked up."""

    def model(token):
        x = sy.take(sy.parameter("both", (64, 64)), token)
        x = sy.einsum("d,dn->n", x, sy.parameter("both", (64, 64)))
        x = sy.einsum("d,dn->n", x, sy.parameter("turned", (64, 128)))
        small = sy.einsum("d,dn->n", x, sy.parameter("small", (128, 4)))
        return small, sy.parameter("straight", (64, 128)) @ x

    graph = sy.trace(model, token="i32[]")
    return graph if dtype == "f32" else keep_weights_as(graph, dtype)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_what_is_read_faster_so_is_kept_transposed(dtype):
    found = faster_transposed(graph_of(dtype), table(turned=2.0), rows=1, has_kernels=True)
    assert found == ("turned",)


@pytest.mark.parametrize(
    ("dtype", "measured"),
    [
        ("f32", table(turned=0.5)),
        ("f32", table(turned=1.04)),  # two measurements differ by as much
        ("f32", table(turned=2.0, weights=("bf16",))),  # nothing is known of f32
        ("f16", table(turned=2.0)),
    ],
)
def test_all_else_stays_as_files_have_it(dtype, measured):
    assert faster_transposed(graph_of(dtype), measured, rows=1, has_kernels=True) == ()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_model_says_the_same(checkpoint, tmp_path, slow_when_turned, dtype):
    transposed = compiled(checkpoint, tmp_path, dtype)
    plain = compiled(checkpoint, tmp_path, dtype, backend="numpy")
    assert set(transposed.options.transposed) == NAMES
    assert not plain.options.transposed
    placed = set(transposed.parameters)
    assert {name + TRANSPOSED for name in NAMES} <= placed
    assert not NAMES & placed
    assert "dims = [1, 0]" not in transposed.programs.lowered.chunk(1).text  # letters are exchanged instead
    np.testing.assert_allclose(transposed.score(PROMPT), plain.score(PROMPT), atol=2e-2, rtol=0)
    replies = [each.generate(PROMPT, max_new_tokens=16, ignore_eos=True) for each in (transposed, plain)]
    assert replies[0] == replies[1]


def test_integers_are_kept_in_rows_anyway(checkpoint, tmp_path, slow_when_turned):
    assert compiled(checkpoint, tmp_path, "int8").options.transposed == ()


def test_more_rows_read_the_same_weights(checkpoint, tmp_path, slow_when_turned):
    executable = compiled(checkpoint, tmp_path, batch=2)
    alone = executable.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
    assert executable.generate_batch([PROMPT, PROMPT[1:]], max_new_tokens=8, ignore_eos=True)[0] == alone
    best = executable.beam_search(PROMPT, beams=3, max_new_tokens=4)
    plain = compiled(checkpoint, tmp_path, backend="numpy").beam_search(PROMPT, beams=3, max_new_tokens=4)
    assert [each.tokens for each in best] == [each.tokens for each in plain]


def test_a_model_is_looked_into_and_changed_under_the_names_of_its_files(
    checkpoint, tmp_path, slow_when_turned
):
    """Patches may read weights, and another backend goes on with what was kept of a text."""
    name = "transformer.h.0.mlp.c_fc.weight"
    executables = [compiled(checkpoint, tmp_path, backend=backend) for backend in ("xla", "numpy")]
    assert executables[0].model.weights is not None
    assert executables[0].model.weights[name].shape == (64, 256)

    def change(x):
        return x + 0.1 * sy.sum(sy.parameter(name, (64, 256)), axis=1)

    replies = [
        each.patch("layers.0.attn.x", change).generate(PROMPT, max_new_tokens=8, ignore_eos=True)
        for each in executables
    ]
    assert replies[0] == replies[1]
    assert fingerprint(executables[0]) == fingerprint(executables[1])


def test_transposed_weights_come_from_a_file_at_the_second_start(
    checkpoint, tmp_path, slow_when_turned, monkeypatch
):
    monkeypatch.setattr(kept_weights, "LEAST", 1)
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    starts = []
    for _ in range(2):
        executable = compiled(folder, tmp_path)
        weights = executable.model.weights
        assert isinstance(weights, KeptWeights)
        starts.append((bool(weights._found), executable.parameters))
        for thread in threading.enumerate():
            if thread.name == "keep weights":
                thread.join()
    assert [is_found for is_found, _ in starts] == [False, True]
    fetch = executable.backend.fetch
    stored = sy.load(folder).weights
    for _, parameters in starts:
        for name in NAMES:
            np.testing.assert_array_equal(fetch(parameters[name + TRANSPOSED]), stored[name].T)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("from_file", [True, False])
def test_every_number_is_moved(checkpoint, dtype, from_file):
    stored = sy.load(checkpoint, dtype).weights
    weights = stored if from_file else {name: np.array(array) for name, array in stored.items()}
    transposed = TransposedWeights(weights, NAMES)
    assert set(transposed) == set(stored)
    for name in NAMES:
        assert name in transposed
        array = transposed[name + TRANSPOSED]
        assert array.ctypes.data % ALIGNMENT == 0
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, stored[name].T)
        np.testing.assert_array_equal(transposed[name], stored[name])
    assert "nothing" not in transposed


def test_nothing_is_read_to_know_a_name(checkpoint):
    class Unread(TransposedWeights):
        def make(self, name):
            raise AssertionError(name)

    weights = Unread(sy.load(checkpoint).weights, NAMES)
    assert all(name + TRANSPOSED in weights for name in NAMES)
