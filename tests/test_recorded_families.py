"""Every folder of tests/recorded: a config as hub files have it, and what transformers computed for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from seeded_weights import seeded_tensor

from systolic.models.load import load
from systolic.runner.executable import compile

RECORDED = Path(__file__).parent / "recorded"
CASES = sorted(folder.name for folder in RECORDED.iterdir())


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """The checkpoint of a case, loaded, and what was recorded of it."""
    recorded, folder = RECORDED / request.param, tmp_path_factory.mktemp(request.param)
    outputs = np.load(recorded / "outputs.npz")
    shapes = json.loads((recorded / "tensors.json").read_text())
    shutil.copy(recorded / "config.json", folder)
    seed = int(outputs["seed"])
    save_file({n: seeded_tensor(n, tuple(s), seed) for n, s in shapes.items()}, folder / "model.safetensors")
    return load(folder), outputs


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_a_model_says_what_was_recorded(case, backend):
    model, recorded = case
    executable = compile(model, backend=backend, capacity=64, chunk=8)
    want = recorded["logits"]
    if backend == "numpy":  # the same program as on xla, which takes long to compile
        got = executable.score(recorded["ids"].tolist())[-len(want) :]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    reply = executable.generate(recorded["ids"].tolist(), max_new_tokens=16, ignore_eos=True)
    assert reply == recorded["greedy"].tolist()
