"""Transformer-XL as it was published, segment by segment with a memory of hidden states, against the
example that is written for one token."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

import systolic as sy
from systolic.ir.interpret import interpret

EXAMPLE = runpy.run_path(str(Path(sy.__file__).parent / "examples" / "transformer_xl.py"))
WIDTH, HEADS, SIZE = EXAMPLE["WIDTH"], EXAMPLE["HEADS"], EXAMPLE["SIZE"]
SEGMENT, MEMORY, LAYERS = EXAMPLE["SEGMENT"], EXAMPLE["MEMORY"], EXAMPLE["LAYERS"]
LENGTH = 3 * SEGMENT + 2  # the last segment is not full


@pytest.fixture(scope="module")
def graph():
    return sy.trace(EXAMPLE["transformer_xl"])


@pytest.fixture(scope="module")
def weights(graph):
    return EXAMPLE["random_weights"](graph)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(1).integers(0, EXAMPLE["VOCABULARY"], LENGTH).astype(np.int32)


def norm(x, weight):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight


def attend(hidden, memory, weights, name):
    """One position after the other: each reads the memory and what came before it in its segment."""
    seen = np.concatenate([memory, hidden])
    frequencies = 1e4 ** (-np.arange(0, WIDTH, 2) / WIDTH)
    rows = []
    for i in range(len(hidden)):
        q = (weights[f"{name}.q"] @ hidden[i]).reshape(HEADS, SIZE)
        count = len(memory) + i + 1
        scores, values = np.zeros((HEADS, count)), np.zeros((HEADS, count, SIZE))
        for j in range(count):
            k = (weights[f"{name}.k"] @ seen[j]).reshape(HEADS, SIZE)
            angles = (count - 1 - j) * frequencies
            place = np.concatenate([np.sin(angles), np.cos(angles)])
            for head in range(HEADS):
                content = (q[head] + weights[f"{name}.content"][head]) @ k[head]
                distance = (q[head] + weights[f"{name}.distance"][head]) @ weights[f"{name}.r"][head] @ place
                scores[head, j] = (content + distance) / np.sqrt(SIZE)
            values[:, j] = (weights[f"{name}.v"] @ seen[j]).reshape(HEADS, SIZE)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("hj,hjd->hd", shares, values).reshape(-1)
        rows.append(weights[f"{name}.o"] @ mixed)
    return np.stack(rows)


def by_segments(ids, weights):
    """The logits [T, V], in float64: after each segment the last MEMORY hidden states of each layer stay."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    memories = [np.zeros((0, WIDTH))] * LAYERS
    logits = []
    for start in range(0, len(ids), SEGMENT):
        x = weights["embedding"][ids[start : start + SEGMENT]] * np.sqrt(WIDTH)
        for i in range(LAYERS):
            memory = memories[i]
            memories[i] = np.concatenate([memory, x])[-MEMORY:]
            x = norm(x + attend(x, memory, weights, f"{i}.attention"), weights[f"{i}.norm1"])
            hidden = np.maximum(x @ weights[f"{i}.mlp.up"].T, 0)
            x = norm(x + hidden @ weights[f"{i}.mlp.down"].T, weights[f"{i}.norm2"])
        logits.append(x @ weights["head"].T)
    return np.concatenate(logits)


def test_one_token_at_a_time_is_segment_by_segment(graph, weights, ids):
    got = interpret(graph, {"token": ids}, weights)["logits"]
    want = by_segments(ids, weights)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_its_programs_give_the_same(graph, weights, ids, backend):
    program = sy.compile(graph, weights, backend=backend, capacity=32, chunk=16)
    want = by_segments(ids, weights)
    np.testing.assert_allclose(program.score(ids), want, rtol=0, atol=1e-4 * np.abs(want).max())
    (token,) = program.generate(ids.tolist(), max_new_tokens=1)
    assert token == want[-1].argmax()
    reply = program.generate(ids[:3].tolist(), max_new_tokens=24)
    text = [*ids[:3].tolist(), *reply]
    choices = by_segments(np.array(text), weights).argmax(-1)
    assert choices[2:-1].tolist() == reply


def test_what_is_remembered_does_not_grow(graph, weights):
    program = sy.compile(graph, weights, backend="numpy", capacity=32, chunk=1)
    states = program.states
    assert {state.kind for state in states} == {"ring"}
    assert {state.value.shape for state in states} == {(HEADS, SIZE)}
    assert len(states) == 2 * LAYERS
    assert all(EXAMPLE["WINDOW"] in state.type.static_shape for state in states)
