"""Models against recorded logits, and configurations that must not be misread."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import systolic as sy
from systolic.ir.interpret import interpret
from systolic.models.families import build
from systolic.models.load import load
from systolic.models.spec import Config, Size, read_config

LLAMA = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 11, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
ORACLE = ["gpt2", "llama_gqa_llama3", "mistral_sliding"]


def logits_of(model, ids, weights=None):
    inputs = {"token": np.asarray(ids, np.int32)}
    return interpret(model.graph, inputs, model.weights if weights is None else weights)["logits"]


def relative_error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


def built(values):
    return build(Config("config.json", values))


def random_weights(graph):
    random = np.random.default_rng(5)
    return {n.name: random.normal(size=n.type.shape).astype(np.float32) for n in graph.parameters}


def outputs(values, weights=None):
    """The logits of four tokens under a config, with random weights."""
    graph = built(values)[1]
    tokens = {"token": np.arange(4, dtype=np.int32)}
    return interpret(graph, tokens, weights or random_weights(graph))["logits"]


# ---- recorded logits ----


@pytest.mark.parametrize("name", ORACLE)
def test_logits_are_those_of_the_oracle(shared, name):
    model, recorded = load(shared / "oracle" / name), np.load(shared / "oracle" / name / "oracle.npz")
    for i in range(3):
        assert relative_error(logits_of(model, recorded[f"ids_{i}"]), recorded[f"logits_{i}"]) < 1e-4


@pytest.mark.parametrize("name", ORACLE)
def test_the_older_layout_builds_the_same_graph(shared, name):
    directory = shared / "oracle" / name
    new, old = (load(directory / file).graph for file in ("config.json", "config_v4.json"))
    assert [(n.name, n.type) for n in new] == [(n.name, n.type) for n in old]
    constants = [[n.params["value"] for n in g if n.op.name == "constant"] for g in (new, old)]
    assert all(np.array_equal(a, b) for a, b in zip(*constants, strict=True))


def test_logits_of_a_trained_model(shared):
    directory = shared / "real" / "stories260K"
    model, recorded = load(directory), np.load(directory / "reference_logits.npz")
    case = json.loads((directory / "reference.json").read_text())["cases"][0]
    ids = (case["prompt_ids"] + case["new_ids"])[:48]
    assert relative_error(logits_of(model, ids), recorded["logits_0"][:48]) < 1e-4


def test_weights_kept_as_bf16_give_nearly_the_same_logits(shared):
    directory = shared / "real" / "stories260K"
    ids = [1, 403, 407, 261, 378]
    error = relative_error(logits_of(load(directory, dtype="bf16"), ids), logits_of(load(directory), ids))
    assert 0 < error < 0.05


# ---- what a configuration can ask for ----


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (LLAMA, {"num_key_value_heads": 1}),
        (LLAMA, {"head_dim": 6}),
        (LLAMA, {"attention_bias": True}),
        (LLAMA, {"mlp_bias": True}),
        (LLAMA, {"tie_word_embeddings": True}),
        (LLAMA, {"hidden_act": "gelu"}),
        (LLAMA, {"rms_norm_eps": 0.5}),
        (LLAMA, {"rope_theta": 2.0}),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 3.0}}),
        (LLAMA | {"model_type": "mistral", "num_key_value_heads": 2}, {"sliding_window": 2}),
        (GPT2, {"n_inner": 5}),
        (GPT2, {"scale_attn_weights": False}),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}),
        (GPT2, {"activation_function": "relu"}),
        (GPT2, {"layer_norm_epsilon": 0.5}),
        (GPT2, {"tie_word_embeddings": False}),
    ],
    ids=lambda value: "-".join(value) if len(value) == 1 else "",
)
def test_every_quirk_changes_the_logits(base, changes):
    assert not np.allclose(outputs(base | changes), outputs(base), atol=1e-3)


def test_biases_are_added():
    values = LLAMA | {"attention_bias": True, "mlp_bias": True}
    weights = random_weights(built(values)[1])
    biases = [name for name in weights if name.endswith(".bias")]
    assert len(biases) == 7 * LLAMA["num_hidden_layers"]
    for name in biases:
        weights[name] = np.zeros_like(weights[name])
    np.testing.assert_allclose(outputs(values, weights), outputs(LLAMA, weights), rtol=1e-5)


def test_gpt2_divides_the_scores_by_the_layer():
    weights = random_weights(built(GPT2)[1])
    divided = dict(weights)
    for i in range(GPT2["n_layer"]):  # the same by hand: smaller queries, the first third of c_attn
        for part in ("weight", "bias"):
            name = f"transformer.h.{i}.attn.c_attn.{part}"
            factors = np.repeat([1 / (i + 1), 1, 1], GPT2["n_embd"]).astype(np.float32)
            divided[name] = weights[name] * factors
    got = outputs(GPT2 | {"scale_attn_by_inverse_layer_idx": True}, weights)
    np.testing.assert_allclose(got, outputs(GPT2, divided), rtol=1e-4, atol=1e-5)


def test_a_window_of_null_sees_everything():
    mistral = LLAMA | {"model_type": "mistral", "num_key_value_heads": 2}
    np.testing.assert_array_equal(outputs(mistral | {"sliding_window": None}), outputs(LLAMA))
    assert "past4096" in {str(dim) for node in built(mistral)[1] for dim in node.type.shape}


def test_fields_that_change_nothing_are_accepted():
    harmless = {
        "architectures": ["GPT2LMHeadModel"],
        "n_ctx": 16,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "resid_pdrop": 0.1,
        "reorder_and_upcast_attn": True,
        "add_cross_attention": False,
        "pretraining_tp": 2,
        "some_future_option": None,
        "another_option": [],
    }
    np.testing.assert_array_equal(outputs(GPT2 | harmless), outputs(GPT2))


@pytest.mark.slow
def test_a_thousand_layers_are_built():
    _, graph = built(LLAMA | {"num_hidden_layers": 1000})
    assert len(graph.parameters) == 9 * 1000 + 3


def test_scopes_name_the_layers():
    names = set(built(LLAMA)[1].by_name)
    for label in ("q", "k", "v", "scores", "probs", "mixed"):
        assert f"layers.1.attn.{label}" in names
    assert "layers.1.mlp.x" in names


# ---- configurations that are wrong ----


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (without(LLAMA, "hidden_size"), r"config\.json: hidden_size is missing"),
        (without(LLAMA, "model_type"), r"config\.json: model_type is missing; it must be a text"),
        (LLAMA | {"model_type": "lama"}, r"model_type 'lama' is unknown; known: .*gemma2, .*glm4"),
        (LLAMA | {"model_type": 3}, r"model_type must be a text, not 3"),
        (LLAMA | {"hidden_size": "64"}, r'config\.json: hidden_size must be a whole number, not "64"'),
        (LLAMA | {"hidden_size": 64.5}, r"hidden_size must be a whole number, not 64\.5"),
        (LLAMA | {"hidden_size": True}, r"hidden_size must be a whole number, not true"),
        (LLAMA | {"hidden_size": None}, r"hidden_size must be a whole number, not null"),
        (LLAMA | {"hidden_size": 0}, r"hidden_size must be at least 1, not 0"),
        (LLAMA | {"rms_norm_eps": "1e-5"}, r'rms_norm_eps must be a number, not "1e-5"'),
        (LLAMA | {"attention_bias": 1}, r"attention_bias must be true or false, not 1"),
        (LLAMA | {"hidden_act": "gleu"}, r"config\.json: activation 'gleu' is unknown; known: silu"),
        (LLAMA | {"rope_scaling": 2.0}, r"rope_scaling must be an object, not 2\.0"),
        (LLAMA | {"rope_scaling": {"type": "spiral"}}, r"config\.json: rope_scaling: rope_type 'spiral'"),
        (LLAMA | {"hidden_size": 9}, r"config\.json: hidden_size is not a multiple of num_attention_heads"),
        (LLAMA | {"num_key_value_heads": 3}, r"config\.json: num_attention_heads is not a multiple"),
        (LLAMA | {"qk_norm": True}, r"config\.json: qk_norm is true, a field that this model's builder"),
        (LLAMA | {"sliding_window": 8}, r"config\.json: sliding_window is 8, a field"),
        (LLAMA | {"quantization_config": {"bits": 4}}, r"quantization_config is \{\"bits\": 4\}"),
        (GPT2 | {"add_cross_attention": True}, r"add_cross_attention is true"),
        (GPT2 | {"n_embd": 9}, r"n_embd is not a multiple of n_head"),
    ],
)
def test_a_wrong_field_is_named(values, message):
    with pytest.raises(sy.SystolicError, match=message):
        built(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json: is not valid JSON"),
        ("", r"config\.json: is not valid JSON"),
        ("\xff\xfe", r"config\.json: is not valid JSON"),
        ("[1, 2]", r"config\.json: must hold a JSON object, not \[1, 2\]"),
    ],
)
def test_a_file_that_holds_no_object(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(sy.SystolicError, match=message):
        load(path)


def test_infinity_in_both_spellings(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": {"__float__": "Infinity"}, "b": [-Infinity, 1], "c": null}')
    config = read_config(path)
    assert config.number("a") == math.inf
    assert config.numbers("b") == (-math.inf, 1.0)


def test_fields_are_read_by_their_declared_types():
    @dataclass(frozen=True, kw_only=True)
    class Fields:
        count: Size
        offset: int = 0
        limit: Size | None = 4
        names: str = "none"

    assert Config("c", {"count": 2, "limit": None}).read(Fields) == Fields(count=2, limit=None)
    assert Config("c", {"count": 2, "offset": -1}).read(Fields) == Fields(count=2, offset=-1, limit=4)


# ---- loading ----


def write(directory, files):
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


def test_a_bare_config_has_no_weights(tmp_path):
    model = load(write(tmp_path, {"config.json": LLAMA | {"eos_token_id": [2, 3]}}) / "config.json")
    assert model.weights is None
    assert (model.vocabulary_size, model.context_length) == (11, 2048)
    assert (model.bos_id, model.eos_ids, model.tokenizer_path) == (None, (2, 3), None)
    assert list(model.graph.outputs) == ["logits"]


def test_the_context_of_gpt2_is_its_table_of_positions(tmp_path):
    assert load(write(tmp_path, {"config.json": GPT2}) / "config.json").context_length == 16


def checkpoint(directory, **files):
    """A checkpoint with random weights and the given JSON files."""
    write(directory, {"config.json": LLAMA | {"bos_token_id": 5, "eos_token_id": 6}})
    save_file(random_weights(built(LLAMA)[1]), directory / "model.safetensors")
    return write(directory, {f"{name}.json": content for name, content in files.items()})


def template(*tokens):
    processor = {
        "type": "TemplateProcessing",
        "single": [*({"SpecialToken": {"id": name}} for name in tokens), {"Sequence": {"id": "A"}}],
        "special_tokens": {name: {"ids": [5 if name == "<s>" else 7]} for name in tokens},
    }
    return {"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, processor]}}


def test_special_tokens_come_from_the_generation_config_first(tmp_path):
    model = load(checkpoint(tmp_path, generation_config={"eos_token_id": [8, 9]}))
    assert (model.bos_id, model.eos_ids) == (5, (8, 9))


@pytest.mark.parametrize(
    ("files", "add_bos"),
    [
        ({}, False),
        ({"tokenizer": template("<s>")}, True),
        ({"tokenizer": template("<x>")}, False),
        ({"tokenizer": template()}, False),
        ({"tokenizer": {"post_processor": None}}, False),
        ({"tokenizer": template("<s>"), "tokenizer_config": {"add_bos_token": False}}, False),
        ({"tokenizer": template("<s>"), "tokenizer_config": {"add_bos_token": None}}, True),
        ({"tokenizer": template(), "tokenizer_config": {"add_bos_token": True}}, True),
    ],
)
def test_whether_a_text_begins_with_bos(tmp_path, files, add_bos):
    model = load(checkpoint(tmp_path, **files))
    assert model.add_bos is add_bos
    assert model.tokenizer_path == (tmp_path / "tokenizer.json" if "tokenizer" in files else None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"generation_config": {"eos_token_id": "</s>"}},
            r"generation_config\.json: eos_token_id must be a tok",
        ),
        ({"tokenizer": {"post_processor": [1]}}, r"tokenizer\.json: post_processor is not in a known form"),
        (
            {"tokenizer_config": {"add_bos_token": "yes"}},
            r"tokenizer_config\.json: add_bos_token must be true",
        ),
    ],
)
def test_files_beside_the_config_are_checked_too(tmp_path, files, message):
    with pytest.raises(sy.SystolicError, match=message):
        load(checkpoint(tmp_path, **files))


def test_a_path_that_is_no_model(tmp_path):
    with pytest.raises(sy.SystolicError, match=r"nowhere: is no model; expected a directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(sy.SystolicError, match=r"config\.json: cannot be read"):
        load(tmp_path)


def test_a_dtype_that_weights_cannot_have(tmp_path):
    with pytest.raises(sy.SystolicError, match="cannot be kept as 'int4'; known: f32, bf16, f16"):
        load(tmp_path, dtype="int4")


# ---- the example ----


def test_the_example_from_scratch_runs(capsys):
    runpy.run_path(str(Path(sy.__file__).parent / "examples" / "llama.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "is causal" in printed
    assert len(json.loads(printed.splitlines()[-1])) == 8
