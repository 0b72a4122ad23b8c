"""Cells, convolutions and their parts against formulas written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import systolic as sy
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.ir.interpret import interpret
from systolic.models import blocks
from systolic.models.families import build
from systolic.models.spec import Config, read_config

LSTM = {"model_type": "lstm_lm", "vocab_size": 11, "embedding_size": 5, "hidden_size": 6}
GRU = LSTM | {"model_type": "gru_lm"}
RANDOM = np.random.default_rng(9)


def run(function, x, **parameters):
    graph = sy.trace(lambda x: function(x), x=f"f32[{x.shape[1]}]")
    return next(iter(interpret(graph, {"x": x}, parameters).values()))


def vectors(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_softplus_neither_overflows_nor_vanishes():
    x = np.array([[-80.0, -3.0, 0.0, 3.0, 200.0]], np.float32)
    np.testing.assert_allclose(run(blocks.softplus, x), np.logaddexp(0, x.astype(float)), rtol=1e-6)


def test_causal_convolution_meets_values_so_far_apart():
    x, weight, shift = vectors(9, 2), vectors(4, 2, 3), vectors(4)
    parameters = {"c.weight": weight, "c.bias": shift}
    got = run(lambda x: blocks.causal_convolution(x, "c", 4, kernel=3, dilation=2), x, **parameters)
    padded = np.concatenate([np.zeros((4, 2)), x])
    want = [sum(weight[:, :, j] @ padded[t + 2 * j] for j in range(3)) + shift for t in range(9)]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_depthwise_convolution_keeps_elements_apart(bias):
    x, weight, shift = vectors(7, 3), vectors(3, 1, 4), vectors(3)
    parameters = {"c.weight": weight, "c.bias": shift}
    got = run(lambda x: blocks.depthwise_convolution(x, "c", 4, bias=bias), x, **parameters)
    padded = np.concatenate([np.zeros((3, 3)), x])
    want = [(weight[:, 0].T * padded[t : t + 4]).sum(0) + (shift if bias else 0) for t in range(7)]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def cell_model(values):
    graph = build(Config("config.json", values))[1]
    return graph, {node.name: vectors(*node.type.shape) for node in graph.parameters}


def logits(graph, weights):
    return interpret(graph, {"token": np.arange(6, dtype=np.int32)}, weights)["logits"]


def head(h, weights):
    return np.stack(h) @ weights["head.weight"].T + weights["head.bias"]


def test_gru_resets_what_the_new_value_sees_of_the_past():
    graph, weights = cell_model(GRU)
    w_x, w_h, b_x, b_h = (weights[f"gru.{n}_l0"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h, steps = np.zeros(6), []
    for token in range(6):
        (r, z, n), (r_h, z_h, n_h) = (
            np.split(w @ v + b, 3)
            for w, v, b in ((w_x, weights["embedding.weight"][token], b_x), (w_h, h, b_h))
        )
        keep = sigmoid(z + z_h)
        h = (1 - keep) * np.tanh(n + sigmoid(r + r_h) * n_h) + keep * h
        steps.append(h)
    np.testing.assert_allclose(logits(graph, weights), head(steps, weights), rtol=1e-4, atol=1e-5)


def test_lstm_projects_its_output():
    graph, weights = cell_model(LSTM | {"proj_size": 3})
    w_x, w_h, b_x, b_h = (weights[f"lstm.{n}_l0"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h, c, steps = np.zeros(3), np.zeros(6), []
    for token in range(6):
        i, f, g, o = np.split(w_x @ weights["embedding.weight"][token] + b_x + w_h @ h + b_h, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = weights["lstm.weight_hr_l0"] @ (sigmoid(o) * np.tanh(c))
        steps.append(h)
    np.testing.assert_allclose(logits(graph, weights), head(steps, weights), rtol=1e-4, atol=1e-5)


RECORDED = Path(__file__).parent / "recorded"
LINEAR = (
    "bamba", "falcon_h1", "falcon_mamba", "jamba", "lfm2", "mamba2", "minimax", "nemotron_h",
    "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
)  # fmt: skip


@pytest.mark.parametrize("case", LINEAR)
def test_what_is_linear_in_its_past_is_not_read_step_by_step(case):
    graph = build(read_config(RECORDED / case / "config.json"))[1]
    program = derive_chunk(graph, choose_states(graph), rows=1, chunk=32, capacity=32, last=False)
    lengths = {node.params["length"] for node in program.graph if node.op.name == "loop"}
    # The delta rule and selective scans go from block to block.
    blocks = {"qwen3_next": 8} | dict.fromkeys(("falcon_mamba", "jamba", "zamba"), 16)
    assert lengths == ({32 // blocks[case]} if case in blocks else set())


XLSTM = {"model_type": "xlstm", "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_heads": 2}
XLSTM |= {"ffn_round_up_to_multiple_of": 4, "use_bias": True}
FUSED = {"qkv_opreact": ("q", "k", "v", "ogate_preact"), "ifgate_preact": ("igate_preact", "fgate_preact")}
FUSED |= {"proj_up_gate_z": ("proj_up_gate", "proj_up")}


def test_fused_weights_of_xlstm_are_the_single_ones_below_each_other():
    graph, weights = cell_model(XLSTM)
    fused, _ = cell_model(XLSTM | {"weight_mode": "fused"})
    joined = {}
    for node in fused.parameters:
        layer, part, kind = node.name.rsplit(".", 2) if node.name.count(".") > 2 else (None, None, None)
        parts = [f"{layer}.{single}.{kind}" for single in FUSED.get(part, ())] or [node.name]
        joined[node.name] = np.concatenate([weights[name] for name in parts])
    np.testing.assert_allclose(logits(fused, joined), logits(graph, weights), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (XLSTM | {"inference_state_dtype": "bfloat16"}, "states are float32, not bfloat16"),
        (XLSTM | {"weight_mode": "mixed"}, "weight_mode must be single or fused"),
        (XLSTM | {"embedding_dim": 4}, "embedding_dim is not hidden_size"),
        ({"model_type": "mamba2", "num_heads": 3}, r"num_heads \* head_dim is not expand \* hidden_size"),
        ({"model_type": "mamba2", "n_groups": 3}, "128 heads cannot be in 3 groups"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M?"}, "a layer is one of .* not '\\?'"),
        ({"model_type": "zamba2", "layers_block_type": ["attention"]}, "linear_attention or hybrid"),
        ({"model_type": "minimax", "layer_types": ["conv"]}, "neither full_attention nor linear_attention"),
        ({"model_type": "jamba", "attn_layer_offset": 8}, "attn_layer_offset is not below"),
        ({"model_type": "recurrent_gemma", "block_types": ["mamba"]}, "recurrent and attention"),
    ],
)
def test_what_a_config_asks_for_in_vain_is_named(values, message):
    with pytest.raises(sy.SystolicError, match=message):
        build(Config("config.json", values))
