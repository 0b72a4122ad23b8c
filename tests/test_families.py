"""Every family against recorded outputs, what it keeps from step to step, and fields it must not misread."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import systolic as sy
from systolic.compiler.derive import choose_states, derive_chunk, derive_score
from systolic.ir.evaluate import evaluate
from systolic.ir.interpret import interpret
from systolic.models import families
from systolic.models.families import build
from systolic.models.load import load
from systolic.models.spec import Config, read_config
from systolic.runner.compilation import compile

ATTENTION = ["deepseek_v3", "glm4", "gemma2", "mistral_sliding", "mixtral", "qwen2", "qwen3"]
RECURRENT = ["lstm_lm", "mamba", "wavenet_lm"]
DECODERS = ATTENTION + RECURRENT

SMALL = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}
QWEN2 = {"model_type": "qwen2", **SMALL}
QWEN3 = {"model_type": "qwen3", **SMALL}
GEMMA2 = {"model_type": "gemma2", **SMALL, "sliding_window": 2, "query_pre_attn_scalar": 4}
GLM4 = {"model_type": "glm4", **SMALL}
MAMBA = {"model_type": "mamba", "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 3}
LSTM = {"model_type": "lstm_lm", "vocab_size": 11, "embedding_size": 5, "hidden_size": 6, "num_layers": 2}
GRU = LSTM | {"model_type": "gru_lm"}
WAVENET = {
    "model_type": "wavenet_lm",
    "vocab_size": 11,
    "channels": 5,
    "gate_channels": 4,
    "skip_channels": 3,
    "dilations": [1, 2],
}


def relative_error(got, want):
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def oracle(shared, name):
    folder = shared / "oracle" / name
    return load(folder), np.load(folder / "oracle.npz")


def graph_of(values):
    return build(Config("config.json", values))[1]


def random_weights(graph):
    random = np.random.default_rng(5)
    return {n.name: random.normal(size=n.tensor.static_shape).astype(np.float32) for n in graph.parameters}


def outputs(values, weights=None):
    """The logits of six tokens under a config, with random weights."""
    graph = graph_of(values)
    inputs = {"token": np.arange(6, dtype=np.int32)}
    return interpret(graph, inputs, weights or random_weights(graph))["logits"]


# ---- recorded logits and texts ----


@pytest.mark.parametrize("name", DECODERS)
def test_one_pass_gives_the_recorded_logits(shared, name):
    model, recorded = oracle(shared, name)
    for i in range(3):
        ids = recorded[f"ids_{i}"]
        program = derive_score(model.graph, rows=1, length=len(ids))
        values = {"token": ids[None].astype(np.int32), "offset": np.zeros(1, np.int32)}
        values["length"] = np.array([len(ids)], np.int32)
        got = evaluate(program.graph, {**model.weights, **values})["logits"][0]
        assert relative_error(got, recorded[f"logits_{i}"]) < 2e-5


@pytest.mark.parametrize("backend", ["numpy", "xla"])
@pytest.mark.parametrize("name", DECODERS)
def test_prompts_read_in_chunks_go_on_as_recorded(shared, name, backend):
    model, recorded = oracle(shared, name)
    executable = compile(model, backend=backend, capacity=64, chunk=16)
    for i in range(3):
        reply = executable.generate(recorded[f"ids_{i}"].tolist(), max_new_tokens=24, ignore_eos=True)
        assert reply == recorded[f"greedy_{i}"].tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_the_older_layout_builds_the_same_graph(shared, name):
    folder = shared / "oracle" / name
    if not (folder / "config_v4.json").exists():
        pytest.skip("recorded in one layout only")
    new, old = (build(read_config(folder / file))[1] for file in ("config.json", "config_v4.json"))
    assert [(n.name, n.type) for n in new] == [(n.name, n.type) for n in old]
    constants = [[n.params["value"] for n in g if n.op.name == "constant"] for g in (new, old)]
    assert all(np.array_equal(a, b) for a, b in zip(*constants, strict=True))


def test_what_an_lstm_carries_is_what_torch_returns(shared):
    model, recorded = oracle(shared, "lstm_lm")
    ids = recorded["ids_1"]
    program = derive_chunk(model.graph, choose_states(model.graph), rows=1, chunk=len(ids), capacity=64)
    states = {f"state.{s.name}": np.zeros(s.type.static_shape, np.float32) for s in program.states}
    values = {"token": ids[None].astype(np.int32), "offset": np.zeros(1, np.int32)}
    values["length"] = np.array([len(ids)], np.int32)
    after = evaluate(program.graph, {**model.weights, **states, **values})
    carried = [after[name][0] for name in states]  # layer by layer: the output, then the cell
    np.testing.assert_allclose(carried[0::2], recorded["state_h_1"], atol=1e-5)
    np.testing.assert_allclose(carried[1::2], recorded["state_c_1"], atol=1e-5)


# ---- what is kept from step to step ----


def states_of(graph, reserve=16):
    return derive_chunk(graph, choose_states(graph), rows=1, chunk=1, capacity=64, reserve=reserve).states


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("deepseek_v3", ["append"] * 6),
        ("glm4", ["append"] * 6),
        ("gemma2", ["ring", "ring", "append", "append"] * 2),
        ("mistral_sliding", ["ring"] * 6),
        ("qwen2", ["append"] * 6),
        ("qwen3", ["append"] * 6),
        ("lstm_lm", ["carry"] * 4),
        ("wavenet_lm", ["tail"] * 6),
        ("mamba", ["tail"] * 3 + ["carry"] * 3),
    ],
)
def test_the_kinds_of_states(shared, name, kinds):
    assert [state.kind for state in states_of(oracle(shared, name)[0].graph)] == kinds


def test_wavenet_keeps_as_many_values_as_its_dilations(shared):
    model, _ = oracle(shared, "wavenet_lm")
    dilations, channels = model.config.integers("dilations"), model.config.integer("channels")
    assert sum(state.bytes for state in states_of(model.graph)) == 4 * channels * sum(dilations)


def test_mamba_keeps_one_state_and_the_values_under_its_kernel(shared):
    model, _ = oracle(shared, "mamba")
    width, kernel, size = 120, 3, 6
    shapes = {state.kind: state.value.shape for state in states_of(model.graph)}
    assert shapes == {"tail": (width,), "carry": (width, size)}
    assert sum(state.bytes for state in states_of(model.graph)) == 3 * 4 * width * (kernel - 1 + size)


def test_a_gru_carries_only_its_output():
    assert [(s.kind, s.value.shape) for s in states_of(graph_of(GRU))] == [("carry", (6,))] * 2


def test_grouped_keys_are_kept_once_per_group(shared):
    model, _ = oracle(shared, "qwen3")
    assert {state.value.shape for state in states_of(model.graph)} == {(2, 24)}


def test_the_windows_of_qwen_begin_at_a_layer():
    windowed = QWEN2 | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    kinds = [state.kind for state in states_of(graph_of(windowed), reserve=1)]
    assert kinds == ["append", "append", "ring", "ring"]


# ---- every tensor has a use ----


@pytest.mark.parametrize("name", DECODERS)
def test_every_tensor_of_a_file_is_a_parameter(shared, name):
    stored = set(load_file(shared / "oracle" / name / "model.safetensors"))
    unused = {"residual.5.weight", "residual.5.bias"} if name == "wavenet_lm" else set()
    weights = oracle(shared, name)[0].weights
    used = {n.replace("*", str(i)) for n in weights for i in range(len(weights[n]) if "*" in n else 1)}
    assert stored - used == unused


def test_a_tensor_without_a_use_is_an_error(shared, tmp_path):
    folder = shared / "oracle" / "wavenet_lm"
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    extra = {"skip.6.bias": np.zeros(40, np.float32)}
    save_file({**load_file(folder / "model.safetensors"), **extra}, tmp_path / "model.safetensors")
    with pytest.raises(sy.SystolicError, match=r"the model has no use for the tensor skip\.6\.bias \[40\]"):
        load(tmp_path)


# ---- what a configuration can ask for ----


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (QWEN2, {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}),
        (QWEN2, {"use_sliding_window": True, "sliding_window": 2, "layer_types": ["sliding_attention"] * 2}),
        (QWEN2, {"tie_word_embeddings": True}),
        (QWEN3, {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}),
        (QWEN3, {"attention_bias": True}),
        (QWEN3, {"rms_norm_eps": 0.5}),
        (GEMMA2, {"sliding_window": 3}),
        (GEMMA2, {"layer_types": ["full_attention", "sliding_attention"]}),
        (GEMMA2, {"attn_logit_softcapping": 2.0}),
        (GEMMA2, {"attn_logit_softcapping": None}),
        (GEMMA2, {"final_logit_softcapping": 2.0}),
        (GEMMA2, {"final_logit_softcapping": None}),
        (GEMMA2, {"query_pre_attn_scalar": 16}),
        (GEMMA2, {"hidden_activation": "relu"}),
        (GEMMA2, {"attention_bias": True}),
        (GEMMA2, {"tie_word_embeddings": False}),
        (GLM4, {"attention_bias": False}),
        (GLM4, {"partial_rotary_factor": 1.0}),
        (GLM4, {"hidden_act": "relu"}),
        (MAMBA, {"use_bias": False}),
        (MAMBA, {"use_conv_bias": False}),
        (MAMBA, {"conv_kernel": 2}),
        (MAMBA, {"expand": 3}),
        (MAMBA, {"time_step_rank": 2}),
        (MAMBA, {"state_size": 2}),
        (MAMBA, {"hidden_act": "relu"}),
        (MAMBA, {"tie_word_embeddings": False}),
        (LSTM, {"proj_size": 3}),
        (WAVENET, {"dilations": [2, 1]}),
        (WAVENET, {"kernel_size": 3}),
    ],
)
def test_every_quirk_changes_what_is_computed(base, changes):
    assert not np.allclose(outputs(base | changes), outputs(base), atol=1e-4)


def test_a_window_that_is_switched_off_is_not_used():
    off = {"use_sliding_window": False, "sliding_window": 2, "max_window_layers": 0}
    np.testing.assert_array_equal(outputs(QWEN2 | off), outputs(QWEN2))


def test_gemma_reads_only_one_of_its_activations():
    np.testing.assert_array_equal(outputs(GEMMA2 | {"hidden_act": "relu"}), outputs(GEMMA2))


def test_how_training_began_changes_nothing():
    fields = {"time_step_min": 0.1, "rescale_prenorm_residual": True, "intermediate_size": 16}
    np.testing.assert_array_equal(outputs(MAMBA | fields), outputs(MAMBA))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (QWEN2 | {"attention_bias": True}, "attention_bias is true, a field"),
        (QWEN2 | {"layer_types": ["sliding_attention"] * 2}, "layer 0 slides, although use_sliding_window"),
        (
            QWEN2 | {"layer_types": ["full_attention"]},
            r"config\.json: layer_types says nothing about layer 1",
        ),
        (QWEN2 | {"layer_types": ["chunked_attention"] * 2}, "'chunked_attention' is neither full_attention"),
        (QWEN2 | {"layer_types": "full_attention"}, "layer_types must be a list of texts"),
        (GEMMA2 | {"sliding_window": None, "layer_types": ["sliding_attention"] * 2}, "no sliding_window"),
        (GEMMA2 | {"use_bidirectional_attention": True}, "use_bidirectional_attention is true, a field"),
        (GEMMA2 | {"hidden_activation": "gleu"}, "activation 'gleu' is unknown"),
        (GLM4 | {"mlp_bias": True}, "mlp_bias is true, a field"),
        (MAMBA | {"intermediate_size": 12}, r"config\.json: intermediate_size is not expand \* hidden_size"),
        (MAMBA | {"n_groups": 2}, "n_groups is 2, a field"),
        (LSTM | {"bidirectional": True}, "bidirectional is true, a field"),
        (
            WAVENET | {"dilations": []},
            r"config\.json: dilations must be a list of whole numbers of at least 1",
        ),
        (WAVENET | {"dilations": [1, 0]}, "dilations must be a list of whole numbers of at least 1"),
        (WAVENET | {"dilations": [1.5]}, "dilations must be a list of whole numbers"),
    ],
)
def test_a_wrong_field_is_named(values, message):
    with pytest.raises(sy.SystolicError, match=message):
        graph_of(values)


def test_the_table_names_the_families_of_every_module():
    folder = Path(families.__file__).parent
    assert sorted(families.MODULES) == sorted(file.stem for file in folder.glob("[!_]*.py"))
    for module, names in families.MODULES.items():
        assert set(import_module(f"systolic.models.families.{module}").FAMILIES) == set(names)
