"""Weights as integers: what is lost, what is kept as it is, and that both backends read the same."""

from __future__ import annotations

import numpy as np
import pytest

import systolic as sy
from systolic.models.compact import keep_compact
from systolic.models.load import COMPACT, load
from systolic.models.quantised import SCALES, SCHEMES, VALUES, Scheme


@pytest.mark.parametrize("kind", list(SCHEMES))
def test_a_weight_is_at_most_half_a_step_away(kind):
    weights = np.random.default_rng(0).normal(size=(40, 128)).astype(np.float32)
    graph = sy.trace(lambda x: sy.parameter("w", (40, 128)) @ x, x="f32[128]")
    found, kept = keep_compact(graph, {"w": weights}, COMPACT[kind])
    executable = sy.compile(found, kept, backend="numpy", capacity=128)
    columns = np.eye(128, dtype=np.float32)
    program = executable.programs.score(128)
    inputs = {"x": columns[None], "offset": np.zeros(1, np.int32), "length": np.array([128], np.int32)}
    read = program.run({n: kept[n] for n in kept}, inputs, {})[0]["output"][0].T
    scales = kept["w" + SCALES].astype(np.float32)
    steps = np.repeat(scales, 128 // scales.shape[1], axis=1)
    assert (np.abs(read - weights) <= 0.5001 * steps).all()
    assert kept["w" + VALUES].nbytes == 40 * 128 * SCHEMES[kind].bits // 8


def test_zeros_and_the_largest_weight_are_exact():
    integers, scales = Scheme(8).quantise(np.array([[0, 0, 0, 0], [1, -2, 0.5, 2]], np.float32))
    assert (integers[0] == 0).all()
    np.testing.assert_allclose(integers[1, 0] * scales[1], [1, -2, 0.5, 2], atol=0.008)
    assert integers[1, 0, 1] * scales[1, 0] == -2


@pytest.mark.parametrize("kind", [kind for kind, scheme in SCHEMES.items() if scheme.group])
def test_scales_of_groups_have_sixteen_bits_and_reach_the_largest_weight(kind):
    magnitudes = np.array([1e-42, 1e-30, 1.0, 2.0, 1e30, 3.4e38], np.float32)[:, None]
    weights = magnitudes * np.random.default_rng(0).uniform(-1, 1, (6, 128)).astype(np.float32)
    scheme = SCHEMES[kind]
    _, scales = scheme.quantise(weights)
    assert scales.dtype.name == "bfloat16"
    largest = np.abs(weights).reshape(6, -1, scheme.group).max(axis=2)
    most = 2 ** (scheme.bits - 1) - 1
    wide = scales.astype(np.float64)
    assert (wide * most >= largest * (1 - 1e-6)).all()
    assert (wide * most <= largest * (1 + 2**-7) + most * 1e-40).all()
    _, only = scheme.quantise(np.ones((1, scheme.group), np.float32))
    assert only.dtype == np.float32  # of a row


def test_what_is_no_matrix_or_fits_no_group_stays():
    def model(x):
        table = sy.take(sy.parameter("table", (50, 100)), sy.position())
        return (sy.parameter("odd", (100, 100)) @ (x + table)) * sy.parameter("scale", (100,))

    graph = sy.trace(model, x="f32[100]")
    names = {node.name for node in keep_compact(graph, None, COMPACT["int8-32"])[0].parameters}
    assert names == {"table", "odd", "scale"}
    names = {node.name for node in keep_compact(graph, None, COMPACT["int8"])[0].parameters}
    assert names == {"table", "odd" + VALUES, "odd" + SCALES, "scale"}


@pytest.mark.parametrize(
    ("name", "kind"), [("gpt2", "int8"), ("llama_gqa_llama3", "int8-32"), ("qwen2", "int4-32")]
)
def test_models_say_the_same_on_both_backends(shared, name, kind):
    model = load(shared / "oracle" / name, dtype=kind)
    recorded = np.load(shared / "oracle" / name / "oracle.npz")
    ids = recorded["ids_1"].tolist()
    replies = [
        sy.compile(model, backend=backend, capacity=48, chunk=16).generate(
            ids, max_new_tokens=12, ignore_eos=True
        )
        for backend in ("numpy", "xla")
    ]
    assert replies[0] == replies[1]
    got = sy.compile(model, backend="numpy", capacity=48).score(ids)
    lost = np.abs(got - recorded["logits_1"]).max() / np.abs(recorded["logits_1"]).max()
    assert lost < (0.05 if kind.startswith("int8") else 0.6)


def test_perplexity_hardly_changes_with_eight_bits(shared):
    folder = shared / "real" / "stories260K"
    ids = load(folder)
    text = sy.compile(ids, backend="numpy").generate([1], max_new_tokens=200, ignore_eos=True)
    likely = {
        kind: -sy.compile(load(folder, dtype=kind), backend="numpy").log_likelihoods([1, *text]).mean()
        for kind in ("f32", "int8", "int4-32")
    }
    assert likely["int8"] < likely["f32"] + 0.01
    assert likely["int4-32"] < likely["f32"] + 0.3


def test_an_unknown_kind_lists_the_known():
    with pytest.raises(sy.SystolicError, match=r"known: .*int8, int8-32, int4-32, int4-64"):
        load("shakespeare", dtype="int3")
