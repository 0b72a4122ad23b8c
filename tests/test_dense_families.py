"""Relatives of Llama: fields that must change what is computed, layouts that agree, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import systolic as sy
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.ir.interpret import interpret
from systolic.models.families import build
from systolic.models.spec import Config

SMALL = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "rope_theta": 100.0,
}
MODELS = {
    "gemma": {},
    "gemma3_text": {"sliding_window": 2, "sliding_window_pattern": 2, "rope_local_base_freq": 5.0},
    "glm": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {},
    "cohere": {},
    "cohere2": {"sliding_window": 2, "sliding_window_pattern": 2},
    "smollm3": {"no_rope_layers": [1, 0]},
    "nemotron": {},
    "exaone4": {"sliding_window": 2, "sliding_window_pattern": 2},
    "ernie4_5": {},
    "seed_oss": {},
    "hunyuan_v1_dense": {},
    "helium": {},
    "arcee": {},
    "apertus": {"hidden_act": "relu", "rope_scaling": {"type": "linear", "factor": 2.0}},
    "ministral": {"sliding_window": 2},
    "ministral3": {"rope_scaling": {"type": "default", "llama_4_scaling_beta": 0.5}},
}


def config_of(name, **changes):
    return {"model_type": name, **SMALL, **MODELS[name], **changes}


def graph_of(values):
    return build(Config("config.json", values))[1]


def outputs(values, weights=None):
    """The logits of six tokens under a config, with weights that follow from their names."""
    graph = graph_of(values)
    weights = {n.name: weight_of(n.name, n.tensor.static_shape) for n in graph.parameters}
    return interpret(graph, {"token": np.arange(6, dtype=np.int32)}, weights)["logits"]


def weight_of(name, shape):
    return np.random.default_rng(list(name.encode())).normal(size=shape).astype(np.float32)


def differ(a, b):
    return not np.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma", {"hidden_act": "gelu_python"}),
        ("gemma", {"tie_word_embeddings": False}),
        ("gemma3_text", {"rope_local_base_freq": 50.0}),
        ("gemma3_text", {"rope_theta": 9.0}),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 9.0}}),
        ("gemma3_text", {"sliding_window_pattern": 1}),
        ("gemma3_text", {"final_logit_softcapping": 2.0}),
        ("gemma3_text", {"query_pre_attn_scalar": 2}),
        ("glm", {"partial_rotary_factor": 1.0}),
        ("glm", {"attention_bias": False}),
        ("olmo", {"clip_qkv": 0.3}),
        ("olmo", {"attention_bias": True}),
        ("olmo2", {"rms_norm_eps": 0.5}),
        ("olmo3", {"layer_types": None}),
        ("olmo3", {"sliding_window": 3}),
        ("granite", {"embedding_multiplier": 3.0}),
        ("granite", {"attention_multiplier": 0.2}),
        ("granite", {"residual_multiplier": 0.5}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.5}),
        ("cohere", {"use_qk_norm": True}),
        ("cohere", {"layer_norm_eps": 0.5}),
        ("cohere2", {"sliding_window_pattern": 1}),
        ("smollm3", {"no_rope_layers": [0, 1]}),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 1}),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 2}),
        ("nemotron", {"norm_eps": 0.5}),
        ("nemotron", {"hidden_act": "relu"}),
        ("nemotron", {"mlp_bias": True}),
        ("exaone4", {"sliding_window_pattern": 3}),
        ("exaone4", {"sliding_window": None}),
        ("ernie4_5", {"use_bias": True}),
        ("seed_oss", {"attention_bias": False}),
        ("seed_oss", {"attention_out_bias": True}),
        ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0}}),
        ("helium", {"mlp_bias": True}),
        ("arcee", {"hidden_act": "silu"}),
        ("apertus", {"hidden_act": "xielu"}),
        ("apertus", {"rope_scaling": None}),
        ("ministral", {"sliding_window": None}),
        (
            "ministral3",
            {"rope_scaling": {"type": "default", "llama_4_scaling_beta": 0.1}, "sliding_window": 1},
        ),
    ],
)
def test_every_field_changes_what_is_computed(name, changes):
    assert differ(outputs(config_of(name, **changes)), outputs(config_of(name)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma", {"hidden_act": "gelu"}),  # which means the approximation, the default
        ("gemma", {"hidden_activation": "relu"}),
        ("gemma3_text", {"attn_logit_softcapping": 2.0}),
        ("cohere2", {"use_parallel_block": True, "position_embedding_type": "rope_gptj"}),
        ("smollm3", {"max_window_layers": 1}),
        ("exaone4", {"sliding_window_pattern": "LG"}),
        ("hunyuan_v1_dense", {"use_qk_norm": True, "eod_token_id": 3}),
        ("seed_oss", {"residual_dropout": 0.5}),
    ],
)
def test_fields_that_say_the_same_or_nothing(name, changes):
    np.testing.assert_array_equal(outputs(config_of(name, **changes)), outputs(config_of(name)))


@pytest.mark.parametrize("name", ["gemma3_text", "olmo3"])
def test_settings_by_layer_type_are_what_older_files_say_beside_each_other(name):
    scaling = {"rope_type": "linear", "factor": 3.0}
    old = config_of(name, rope_scaling=scaling)
    sliding = {"gemma3_text": 5.0, "olmo3": 500000.0}[name]
    new = {key: value for key, value in old.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {
        "full_attention": {**scaling, "rope_theta": 100.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": sliding},
    }
    np.testing.assert_array_equal(outputs(new), outputs(old))
    new["rope_parameters"]["sliding_attention"]["rope_theta"] = 9.0
    assert differ(outputs(new), outputs(old))


def test_a_layer_without_positions_sees_a_set():
    values = config_of("smollm3", no_rope_layers=[0, 0])
    graph = graph_of(values)
    weights = {n.name: weight_of(n.name, n.tensor.static_shape) for n in graph.parameters}
    texts = ([3, 1, 2, 5], [2, 3, 1, 5])  # the last one, whose logits are compared, stays the last
    first, second = (
        interpret(graph, {"token": np.array(text, np.int32)}, weights)["logits"][-1] for text in texts
    )
    one_layer = graph_of({**values, "num_hidden_layers": 1})
    a, b = (interpret(one_layer, {"token": np.array(t, np.int32)}, weights)["logits"][-1] for t in texts)
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert differ(first, second)  # below, each position had seen others


@pytest.mark.parametrize("name", MODELS)
def test_what_is_kept_is_no_more_than_keys_and_values(name):
    """The library keeps K * D numbers for keys and as many for values, a window's worth where it slides."""
    graph, capacity = graph_of(config_of(name)), 16
    states = derive_chunk(graph, choose_states(graph), rows=1, chunk=1, capacity=capacity).states
    assert len(states) == 2 * SMALL["num_hidden_layers"]
    assert all(state.value.shape == (1, 4) for state in states)
    slides = {"gemma3_text": 1, "olmo3": 1, "cohere2": 1, "exaone4": 1, "ministral": 2}.get(name, 0)
    assert sum(state.kind == "ring" for state in states) == 2 * slides


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            config_of("gemma", use_bidirectional_attention=True),
            "use_bidirectional_attention is true, a field",
        ),
        (config_of("gemma", partial_rotary_factor=0.5), "partial_rotary_factor must be 1: this family turns"),
        (
            config_of("gemma3_text", rope_parameters={"rope_type": "linear", "factor": 2.0}),
            r"rope_parameters: factor must be inside full_attention or sliding_attention",
        ),
        (config_of("olmo2", clip_qkv=0.5), "clip_qkv is 0.5, a field"),
        (config_of("cohere", sliding_window=4), "sliding_window is 4, a field"),
        (config_of("smollm3", no_rope_layers=[1]), "no_rope_layers says nothing about layer 1"),
        (config_of("exaone4", sliding_window_pattern="LX"), "sliding_window_pattern must be a whole number"),
        (config_of("hunyuan_v1_dense", use_cla=True), "use_cla is true, a field"),
        (config_of("hunyuan_v1_dense", rope_scaling={"type": "dynamic"}), "factor is missing"),
        (config_of("apertus", hidden_act="xielus"), "activation 'xielus' is unknown"),
        (config_of("ministral3", rope_scaling={"type": "default"}), "llama_4_scaling_beta is missing"),
        (config_of("seed_oss", qk_norm=True), "qk_norm is true, a field"),
        ({"model_type": "gemma3"}, "text_config is missing"),
    ],
)
def test_a_wrong_field_is_named(values, message):
    with pytest.raises(sy.SystolicError, match=message):
        graph_of(values)


def test_a_config_of_gemma_3_with_images_may_leave_out_what_is_usual():
    values = {"text_config": {"model_type": "gemma3_text", "num_hidden_layers": 1}, "vision_config": {}}
    model, graph = build(Config("config.json", {"model_type": "gemma3", **values}))
    assert (model.vocab_size, model.hidden_size, model.key_heads, model.head_size) == (262208, 2304, 4, 256)
    assert "lm_head.weight" not in {node.name for node in graph.parameters}
