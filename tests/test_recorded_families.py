"""Every folder of tests/recorded: a config as hub files have it, and what transformers computed for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from seeded_weights import seeded_tensor

import systolic as sy
from systolic.models.load import load
from systolic.runner.compilation import compile

RECORDED = Path(__file__).parent / "recorded"
CASES = {file.parent.name: np.load(file).files for file in sorted(RECORDED.glob("*/outputs.npz"))}
ENCODERS = [name for name, recorded in CASES.items() if "last_hidden" in recorded]
PAIRS = [name for name, recorded in CASES.items() if "source" in recorded]  # an encoder and a decoder
DECODERS = [name for name in CASES if name not in ENCODERS + PAIRS]


def test_every_case_is_recorded():
    assert {file.parent.name for file in RECORDED.glob("*/config.json")} == set(CASES)


@pytest.fixture(scope="module", params=DECODERS)
def case(request, tmp_path_factory):
    return checkpoint(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, tmp_path_factory):
    return checkpoint(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request, tmp_path_factory):
    return checkpoint(request.param, tmp_path_factory)


def checkpoint(name, tmp_path_factory):
    """The checkpoint of a case, loaded, and what was recorded of it."""
    recorded, folder = RECORDED / name, tmp_path_factory.mktemp(name)
    outputs = np.load(recorded / "outputs.npz")
    shapes = json.loads((recorded / "tensors.json").read_text())
    for file in recorded.glob("*config.json"):
        shutil.copy(file, folder)
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


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_an_encoder_yields_what_was_recorded(encoder, backend):
    model, recorded = encoder
    executable = compile(model, backend=backend, capacity=32)
    types = {"token_type_ids": recorded["token_type_ids"].tolist()} if "token_type_ids" in recorded else {}
    assert set(model.graph.outputs) == set(recorded.files) - {"ids", "seed", "token_type_ids"}
    for name in model.graph.outputs:
        got, want = executable.encode(recorded["ids"].tolist(), output=name, **types), recorded[name]
        got = got[-len(want) :] if len(got) == len(recorded["ids"]) else got
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_no_encoder_can_be_decoded(encoder):
    with pytest.raises(sy.CausalityError, match=r"= whole"):
        compile(encoder[0], backend="numpy", capacity=32).generate([4, 5])


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_an_encoder_decoder_says_what_was_recorded(pair, backend):
    model, recorded = pair
    executable, source = compile(model, backend=backend, capacity=32), recorded["source"]
    if backend == "numpy":  # the same programs as on xla, which take long to compile
        logits = executable.score(source, target=recorded["target"])
        for got, want in ((executable.encode(source), recorded["encoded"]), (logits, recorded["logits"])):
            np.testing.assert_allclose(got[-len(want) :], want, rtol=0, atol=1e-4 * np.abs(want).max())
    reply = executable.generate(source, max_new_tokens=16, ignore_eos=True)
    assert reply == recorded["greedy"].tolist()
    if "configured" in recorded:
        assert executable.generate(source, max_new_tokens=16) == recorded["configured"].tolist()
