"""Whisper: sound as a source, in pairs of frames, and text behind it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file
from seeded_weights import seeded_tensor

import systolic as sy
from systolic.ir.interpret import interpret
from systolic.models.families import build
from systolic.models.load import load
from systolic.models.spec import Config
from systolic.runner.compilation import compile

MEL, PAIRS = 6, 9
CONFIG = {
    "model_type": "whisper",
    "vocab_size": 23,
    "num_mel_bins": MEL,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 20,
    "max_source_positions": PAIRS,
    "max_target_positions": 20,
    "decoder_start_token_id": 3,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    graph = build(Config("config.json", CONFIG))[1]
    tensors = {n.name: seeded_tensor(n.name, n.tensor.static_shape, 1) for n in graph.parameters}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return load(folder)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(2).normal(size=(MEL, 2 * PAIRS)).astype(np.float32)


def convolution(x, weight, bias, stride):
    """A convolution of width 3 over x [d, T] with a zero at both ends, every ``stride``-th value."""
    padded = np.pad(x, ((0, 0), (1, 1)))
    at = range(0, x.shape[1], stride)
    return np.stack([np.einsum("dk,ndk->n", padded[:, t : t + 3], weight) + bias for t in at], axis=1)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def test_pairs_of_frames_are_two_convolutions_of_which_one_strides(model, frames):
    family = build(Config("config.json", CONFIG))[0]

    def hear(source):
        return {"heard": family.hear(source)}

    graph = sy.trace(hear, source=f"f32[{MEL},2]")
    weights = {node.name: model.weights[node.name] for node in graph.parameters}
    pairs = np.moveaxis(frames.reshape(MEL, PAIRS, 2), 1, 0)
    got = interpret(graph, {"source": pairs}, weights)["heard"]
    name = "model.encoder.conv"
    first = gelu(convolution(frames, weights[f"{name}1.weight"], weights[f"{name}1.bias"], 1))
    second = gelu(convolution(first, weights[f"{name}2.weight"], weights[f"{name}2.bias"], 2))
    np.testing.assert_allclose(got, second.T, atol=1e-5)


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_both_forms_of_sound_and_its_encoder_states_say_the_same(model, frames, backend):
    executable = compile(model, backend=backend)
    reply = executable.generate(frames, max_new_tokens=6, ignore_eos=True)
    assert len(set(reply)) > 1
    pairs = np.moveaxis(frames.reshape(MEL, PAIRS, 2), 1, 0)
    assert executable.generate(pairs, max_new_tokens=6, ignore_eos=True) == reply
    states = executable.encode(frames)
    assert states.shape == (PAIRS, 16)
    assert executable.generate(encoder_states=states, max_new_tokens=6, ignore_eos=True) == reply
    assert executable.generate(frames, prefix=reply[:2], max_new_tokens=4, ignore_eos=True) == reply[2:]
    logits = executable.score(frames, target=[3, *reply])
    assert logits[:-1].argmax(-1).tolist() == reply


def test_rows_of_sound_are_what_each_is_alone(model, frames):
    alone = compile(model, backend="numpy")
    both = compile(model, backend="numpy", batch=2)
    expected = [alone.generate(source, max_new_tokens=5, ignore_eos=True) for source in (frames, -frames)]
    assert expected[0] != expected[1]
    assert both.generate_batch([frames, -frames], max_new_tokens=5, ignore_eos=True) == expected
    with both.scheduler() as scheduler:
        requests = [
            scheduler.submit(source, max_new_tokens=5, ignore_eos=True) for source in (frames, -frames)
        ]
        assert [request.result() for request in requests] == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((MEL, 3)), r"must be numbers \[S, 6, 2\] or \[6, 2 \* S\], not \[6, 3\]"),
        (np.zeros((MEL - 1, 4)), r"not \[5, 4\]"),
        (np.zeros((MEL, 2 * PAIRS + 2)), f"has {PAIRS + 1} tokens, more than the capacity of {PAIRS}"),
        ([], r"not \[0\]"),
    ],
)
def test_sound_that_does_not_fit(model, source, message):
    with pytest.raises(sy.SystolicError, match=message):
        compile(model, backend="numpy").generate(source)


def test_what_whisper_keeps(model):
    states = compile(model, backend="numpy").states
    sizes = {(state.kind, state.type.static_shape) for state in states}
    assert sizes == {("append", (1, 4, 20, 4)), ("constant", (1, 4, PAIRS, 4))}
