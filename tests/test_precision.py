"""What fewer bits round: matrices and tables of tokens, and nothing else, of every family."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import systolic as sy
from systolic.ir.types import DTYPES
from systolic.models.compact import keep_compact
from systolic.models.load import COMPACT, load
from systolic.models.precision import keep_weights_as, roundable

RECORDED = Path(__file__).parent / "recorded"
# What transformers 5 keeps in f32 whatever a model is loaded as (``_keep_in_fp32_modules`` and ``…_strict``).
KEPT_BY_TRANSFORMERS = {
    "deepseek_v2": ("mlp.gate.weight",),
    "deepseek_v3": ("e_score_correction_bias", "mlp.gate.weight"),
    "ernie4_5_moe": ("e_score_correction_bias", "mlp.gate.weight"),
    "glm4_moe": ("e_score_correction_bias", "mlp.gate.weight"),
    "gpt_oss": ("post_attention_layernorm.weight", "input_layernorm.weight", "model.norm.weight"),
    "nemotron_h": ("e_score_correction_bias", "mixer.gate.weight"),
    "rwkv": ("time_decay", "time_first"),
}
# And what llama.cpp's converter does, of the parameters that are no vectors.
KEPT_BY_LLAMA_CPP = {
    "bert_untied": ("position_embeddings.weight",),
    "gpt2": ("wpe.weight",),
    "jamba": ("conv1d.weight", "A_log", "router.weight"),
    "lfm2": ("conv.conv.weight",),
    "mamba2": ("conv1d.weight",),
    "mixtral_window": ("block_sparse_moe.gate.weight",),
    "qwen2_moe": ("mlp.gate.weight", "shared_expert_gate.weight"),
}
# Families of which transformers' logits in f32 are recorded, and that have more than biases beside matrices.
ORACLES = (
    *("deepseek_v3", "gemma2", "glm4", "gpt2", "llama_gqa_llama3"),
    *("mamba", "mistral_sliding", "mixtral", "qwen2", "qwen3"),
)


def kept_as(name: str, dtype: str) -> dict[str, str]:
    """The parameters of a recorded family and what they are kept as."""
    graph = load(RECORDED / name / "config.json", dtype=dtype).graph
    return {node.name: node.tensor.dtype for node in graph.parameters}


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize(
    ("name", "endings"),
    [*KEPT_BY_TRANSFORMERS.items(), *KEPT_BY_LLAMA_CPP.items()],
    ids=lambda value: str(value),
)
def test_what_others_keep_in_f32_is_kept_in_f32(name, endings, dtype):
    kept = kept_as(name, dtype)
    for ending in endings:
        found = {of for parameter, of in kept.items() if parameter.endswith(ending)}
        assert found == {"f32"}, ending


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RECORDED.glob("*/config.json")))
def test_most_numbers_of_every_family_are_rounded_and_no_vector_is(name):
    graph = load(RECORDED / name / "config.json").graph
    rounded = roundable(graph)
    assert all(node.tensor.size > max(node.tensor.static_shape) for node in rounded)
    usual = re.compile(
        r"(proj|fc\d|dense|lm_head|embed_tokens|word_embeddings|shared|wte|head|query_key_value)\.weight$"
    )
    assert {node for node in graph.parameters if usual.search(node.name)} <= set(rounded)


def test_a_depthwise_kernel_is_no_matrix_and_a_position_chooses_no_row_of_a_table():
    def model(token):
        x = sy.take(sy.parameter("table", (50, 8)), token) + sy.take(
            sy.parameter("places", (9, 8)), sy.position()
        )
        taps = sy.stack([x, sy.delay(x)], axis=-1)
        mixed = sy.einsum("ck,ck->c", taps, sy.parameter("kernel", (8, 2)))
        split = sy.parameter("split", (8, 12)).reshape(2, 4, 12)
        fade = sy.exp(sy.parameter("decay", (3, 4))).reshape(12)
        return sy.einsum("abn,ab->n", split, mixed.reshape(2, 4)) * fade

    assert {node.name for node in roundable(sy.trace(model))} == {"table", "split"}


def test_a_matrix_that_chooses_stays_as_it_is():
    def model(x):
        scores = sy.softmax(sy.parameter("router", (64, 64)) @ x) + sy.parameter("correction", (64,))
        shares, chosen = sy.top_k(scores, 2)
        experts = sy.take(sy.parameter("experts", (64, 64, 64)), chosen)
        results = sy.einsum("knd,d->kn", experts, sy.parameter("shared", (64, 64)) @ x)
        return sy.einsum("k,kn->n", shares, results)

    graph = sy.trace(model, x="f32[64]")
    assert {node.name for node in roundable(graph)} == {"experts", "shared"}
    for form in COMPACT.values():
        floats = graph if form.dtype == "f32" else keep_weights_as(graph, form.dtype)
        parts = {node.name: node.tensor.dtype for node in keep_compact(floats, None, form)[0].parameters}
        assert parts["router"] == parts["correction"] == "f32"
        assert "shared" not in parts


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("name", ORACLES)
def test_logits_are_nearer_to_those_of_transformers_than_with_all_rounded(shared, name, dtype):
    folder = shared / "oracle" / name
    recorded = np.load(folder / "oracle.npz")
    ids, model = recorded["ids_1"].tolist(), load(folder)
    assert model.weights is not None
    rounded = {
        parameter: np.asarray(array).astype(DTYPES[dtype]).astype(np.float32)
        for parameter, array in model.weights.items()
    }

    def error(model: sy.Model) -> float:
        logits = sy.compile(model, backend="numpy", capacity=48).score(ids)
        return float(np.sqrt(np.mean((logits - recorded["logits_1"]) ** 2)))

    assert 0 < error(load(folder, dtype=dtype)) < 0.92 * error(replace(model, weights=rounded))
