"""The frame of GPT's descendants: names of fields, what cannot be built, and what is kept of ALiBi."""

from __future__ import annotations

import numpy as np
import pytest

import systolic as sy
from systolic.compiler.derive import choose_states
from systolic.ir.interpret import interpret
from systolic.models.alibi import falling_with_distance, slopes
from systolic.models.families import build
from systolic.models.spec import Config

SMALL = {"vocab_size": 11, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
BLOOM = {"model_type": "bloom", "vocab_size": 11, "n_embed": 12, "n_layer": 2, "num_attention_heads": 3}
FALCON = {"model_type": "falcon", **SMALL}
GPT_NEO = {
    "model_type": "gpt_neo",
    "vocab_size": 11,
    "hidden_size": 12,
    "num_layers": 2,
    "num_heads": 3,
    "attention_types": [[["global", "local"], 1]],
}
GPTJ = {"model_type": "gptj", "vocab_size": 11, "n_embd": 12, "n_layer": 1, "n_head": 3, "rotary_dim": 4}
MPT = {"model_type": "mpt", "vocab_size": 11, "d_model": 12, "n_layers": 1, "n_heads": 3}
OPT = {"model_type": "opt", **SMALL, "ffn_dim": 8}
XGLM = {"model_type": "xglm", "vocab_size": 11, "d_model": 12, "num_layers": 1, "attention_heads": 3}


def graph_of(values):
    return build(Config("config.json", values))[1]


def outputs(values):
    """The logits of six tokens, with random weights."""
    graph, random = graph_of(values), np.random.default_rng(5)
    weights = {n.name: random.normal(size=n.tensor.static_shape).astype("f") for n in graph.parameters}
    return interpret(graph, {"token": np.arange(6, dtype=np.int32)}, weights)["logits"]


def kept(graph):
    """The streams that are kept, by the last part of their names."""
    return sorted(node.name.rpartition(".")[2] for node in choose_states(graph).histories)


# ---- fields ----


def test_a_field_goes_by_several_names():
    other = {"model_type": "bloom", **SMALL}
    np.testing.assert_array_equal(outputs(other), outputs(BLOOM))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({k: v for k, v in GPTJ.items() if k != "n_embd"}, r"config\.json: n_embd is missing"),
        (GPTJ | {"n_embd": "12"}, r'n_embd must be a whole number, not "12"'),
        (GPTJ | {"n_embd": 13}, r"config\.json: n_embd is not a multiple of n_head"),
        (GPTJ | {"rotary_dim": 6}, r"rotary_dim is more than the 4 elements of a head"),
        (GPTJ | {"model_type": "codegen"}, r"n_head is not a multiple of 4"),
        (BLOOM | {"hidden_size": 24}, r"config\.json: hidden_size contradicts n_embed"),
        (BLOOM | {"hidden_act": "relu"}, r"hidden_act is always gelu_new in this family"),
        (OPT | {"layer_norm_eps": 0.1}, r"layer_norm_eps is always 1e-05 in this family"),
        (MPT | {"expansion_ratio": 2}, r"expansion_ratio is always 4 in this family"),
        (MPT | {"logit_scale": 2.0}, r"logit_scale is 2\.0, a field"),
        (MPT | {"attn_config": {"alibi": False}}, r"attn_config: alibi must be True"),
        (MPT | {"attn_config": {"qk_ln": True}}, r"attn_config: qk_ln is true, a field"),
        (MPT | {"attn_config": {"attn_type": "multiquery_attention"}}, r"attn_type must be 'multihead"),
        (GPT_NEO | {"num_layers": 3}, r"attention_types must describe 3 layers \(num_layers\)"),
        (GPT_NEO | {"attention_types": [[["far"], 2]]}, r"'far' is neither global nor local"),
        (GPT_NEO | {"attention_types": ["global"]}, r"attention_types must be a list of \[kinds, count\]"),
        (GPT_NEO | {"attention_layers": ["local"] * 2}, r"attention_layers contradicts attention_types"),
        (FALCON | {"num_ln_in_parallel_attn": 2}, r"num_ln_in_parallel_attn cannot be 2"),
        (FALCON | {"new_decoder_architecture": True, "parallel_attn": False}, r"parallel_attn must be true"),
        (
            FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
            r"is not a multiple of num_kv_heads",
        ),
        (FALCON | {"partial_rotary_factor": 0.5}, r"partial_rotary_factor must be 1"),
    ],
)
def test_a_wrong_field_is_named(values, message):
    with pytest.raises(sy.SystolicError, match=message):
        graph_of(values)


# ---- ALiBi ----


def test_slopes_are_those_of_the_paper():
    np.testing.assert_allclose(slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(slopes(16), 2.0 ** (-np.arange(1, 17) / 2), rtol=1e-6)
    assert list(slopes(3)) == [2**-4, 2**-8, 2**-2]  # those of two heads, then the first new one of four


@pytest.mark.parametrize("values", [BLOOM, MPT, FALCON | {"alibi": True}], ids=lambda v: v["model_type"])
def test_positions_are_counted_and_not_kept(values):
    layers = len(kept(graph_of(values))) // 2
    assert kept(graph_of(values)) == ["k"] * layers + ["v"] * layers


def test_the_cost_grows_with_the_distance():
    graph = sy.trace(lambda token: {"gains": sy.sum(falling_with_distance(3), axis=-1)})
    gains = interpret(graph, {"token": np.zeros(5, np.int32)}, {})["gains"][..., 0]
    distances = np.array([0, 1, 3, 6, 10])  # 0 + 1 + ... + t
    np.testing.assert_allclose(gains, -distances[:, None] * slopes(3), rtol=1e-6)


def test_a_falcon_whose_queries_share_a_key_keeps_one():
    shapes = {n.tensor.shape for n in choose_states(graph_of(FALCON)).histories}
    assert shapes == {(1, 4)}


# ---- positions ----


def test_the_row_of_padding_is_zero_where_it_is_that_of_a_position():
    assert not np.allclose(outputs(XGLM | {"pad_token_id": 4}), outputs(XGLM), atol=1e-4)
    np.testing.assert_array_equal(outputs(XGLM | {"pad_token_id": 1}), outputs(XGLM))


def test_a_local_layer_keeps_a_window():
    plan = choose_states(graph_of(GPT_NEO | {"window_size": 2}))
    assert sorted(map(str, plan.histories.values())) == ["2", "2", "None", "None"]
