"""Models that read a whole text: recorded outputs, and what they cannot be asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import systolic as sy
from systolic.ir.interpret import interpret
from systolic.models.blocks import at_position
from systolic.models.families import build
from systolic.models.load import load
from systolic.models.positions import count_of_text
from systolic.models.spec import Config, read_config
from systolic.runner.compilation import compile

OUTPUTS_OF_BERT = ["last_hidden", "pooled", "mlm_logits", "nsp_logits"]
BERT = {
    "model_type": "bert",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "architectures": ["BertForPreTraining"],
}

SMALL = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


@pytest.fixture(scope="module")
def bert(shared):
    return load(shared / "oracle" / "bert"), np.load(shared / "oracle" / "bert" / "oracle.npz")


def relative_error(got, want):
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def graph_of(values):
    return build(Config("config.json", values))[1]


@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_bert_yields_what_is_recorded(bert, backend):
    model, recorded = bert
    executable = compile(model, backend=backend)
    for i in range(3):
        ids, types = recorded[f"ids_{i}"].tolist(), recorded[f"token_type_ids_{i}"].tolist()
        for name in OUTPUTS_OF_BERT:
            got = executable.encode(ids, output=name, token_type_ids=types)
            assert relative_error(got, recorded[f"{name}_{i}"]) < 2e-5


def test_the_older_layout_of_bert(shared):
    folder = shared / "oracle" / "bert"
    new, old = (build(read_config(folder / file))[1] for file in ("config.json", "config_v4.json"))
    assert str(new) == str(old)


def test_bert_cannot_be_decoded(bert):
    executable = compile(bert[0], backend="numpy")
    with pytest.raises(sy.CausalityError, match=r"attn\.whole.*= whole(.|\n)*attn\.v\[:\]"):
        executable.generate([1, 2, 3])


def test_bert_without_token_types_takes_zeros(bert):
    model, recorded = bert
    executable, ids = compile(model, backend="numpy"), recorded["ids_1"].tolist()
    zeros = executable.encode(ids, token_type_ids=[0] * len(ids))
    np.testing.assert_array_equal(executable.encode(ids), zeros)
    assert not np.allclose(zeros, recorded["last_hidden_1"], atol=1e-2)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"output": "logits"}, "has no output 'logits'; it has last_hidden, pooled, mlm_logits, nsp_logits"),
        ({"token_types": [0, 0]}, "takes no token_types beside the token ids; it takes token_type_ids"),
        ({"token_type_ids": [0]}, "token_type_ids must be 2 numbers from 0 to 2, one per token"),
        ({"token_type_ids": [0, 3]}, "token_type_ids must be 2 numbers from 0 to 2, one per token"),
    ],
)
def test_what_bert_cannot_be_asked(bert, keywords, message):
    executable = compile(bert[0], backend="numpy")
    with pytest.raises(sy.SystolicError, match=message):
        executable.encode([1, 2], **keywords)


def test_bert_has_no_logits_to_score(bert):
    executable = compile(bert[0], backend="numpy")
    with pytest.raises(sy.SystolicError, match=r"bert also takes token_type_ids, which only encode\(\) can"):
        executable.score([1, 2])


@pytest.mark.parametrize(
    ("architectures", "names"),
    [
        (None, OUTPUTS_OF_BERT[:2]),
        (["BertModel"], OUTPUTS_OF_BERT[:2]),
        (["BertForMaskedLM"], ["last_hidden", "mlm_logits"]),
        (["BertForNextSentencePrediction"], ["last_hidden", "pooled", "nsp_logits"]),
        (["BertForPreTraining"], OUTPUTS_OF_BERT),
    ],
)
def test_the_heads_of_bert_follow_from_its_class(architectures, names):
    assert list(graph_of(BERT | {"architectures": architectures}).outputs) == names


def test_a_file_of_bert_may_hold_heads_that_its_class_does_not_use(shared, tmp_path):
    folder = shared / "oracle" / "bert"
    values = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    tensors = load_file(folder / "model.safetensors")
    copied = {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
    save_file({**tensors, **copied}, tmp_path / "model.safetensors")
    assert list(load(tmp_path).graph.outputs) == ["last_hidden", "mlm_logits"]


def test_older_files_of_bert_name_the_parts_of_norms_otherwise(shared, tmp_path):
    folder = shared / "oracle" / "bert"
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in load_file(folder / "model.safetensors").items()
    }
    assert any(name.endswith("LayerNorm.gamma") for name in older)
    save_file(older, tmp_path / "model.safetensors")
    new, old = load(folder).weights, load(tmp_path).weights
    assert all(np.array_equal(new[name], old[name]) for name in new)


def test_every_tensor_of_bert_is_a_parameter(shared, bert):
    stored = load_file(shared / "oracle" / "bert" / "model.safetensors")
    assert set(stored) == set(bert[0].weights)


def outputs(values):
    """What a config computes for six tokens with random weights: all outputs in one vector."""
    graph, random = graph_of(values), np.random.default_rng(5)
    weights = {n.name: random.normal(size=n.type.shape).astype(np.float32) for n in graph.parameters}
    inputs = {"token": np.arange(6, dtype=np.int32), "token_type_ids": np.arange(6, dtype=np.int32) // 3}
    return np.concatenate([value.ravel() for value in interpret(graph, inputs, weights).values()])


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"layer_norm_eps": 0.5}], ids=str)
def test_every_quirk_changes_what_is_computed(changes):
    assert not np.allclose(outputs(BERT | changes), outputs(BERT), atol=1e-4)


def test_an_untied_head_has_a_weight_of_its_own():
    untied = graph_of(BERT | {"tie_word_embeddings": False})
    assert "cls.predictions.decoder.weight" in {node.name for node in untied.parameters}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, r"config\.json: is_decoder is true, but Bert is built as an encoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not"),
        ({"architectures": ["BertForQuestionAnswering"]}, "'BertForQuestionAnswering' is unknown; known: Be"),
        ({"num_attention_heads": 3}, "hidden_size is not a multiple of num_attention_heads"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(sy.SystolicError, match=message):
        graph_of(BERT | changes)


MODERN = SMALL | {"model_type": "modernbert", "layer_types": ["full_attention"] * 2}
NOMIC = SMALL | {"model_type": "nomic_bert"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (MODERN | {"layer_types": ["chunked_attention"] * 2}, "'chunked_attention' is neither full_att"),
        (MODERN | {"layer_types": ["full_attention"]}, "layer_types says nothing about layer 1"),
        (MODERN | {"rope_parameters": {"rope_theta": 9.0}}, "rope_theta must be inside full_attention or"),
        (MODERN | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "must name its rope_type"),
        (MODERN | {"hidden_activation": "gleu"}, "activation 'gleu' is unknown"),
        (MODERN | {"sliding_window": 4}, "sliding_window is 4, a field that"),
        (NOMIC | {"activation_function": "geglu"}, "activation_function 'geglu' is not supported"),
        (NOMIC | {"prenorm": True}, "prenorm is true, a field that"),
        (SMALL | {"model_type": "mpnet", "relative_attention_num_buckets": 31}, "must be at least 32"),
        (SMALL | {"model_type": "roberta", "add_cross_attention": True}, "add_cross_attention is true"),
        (SMALL | {"model_type": "electra", "architectures": ["BertModel"]}, "known: ElectraModel, Electra"),
        (SMALL | {"model_type": "albert", "hidden_act": "gleu"}, "activation 'gleu' is unknown"),
        ({"model_type": "distilbert", "dim": 8, "n_heads": 3}, "hidden_size is not a multiple of"),
    ],
)
def test_a_wrong_field_of_another_encoder_is_named(values, message):
    with pytest.raises(sy.SystolicError, match=message):
        graph_of(values)


def test_padding_inside_a_text_has_no_place_of_its_own():
    def places(token):
        return {"row": count_of_text(token, 1)}

    graph = sy.trace(places)
    tokens = np.array([5, 1, 7, 1, 1, 9], np.int32)
    assert interpret(graph, {"token": tokens}, {})["row"].tolist() == [1, 0, 2, 0, 0, 3]


def test_older_files_of_nomic_bert_call_their_fields_otherwise():
    older = {
        "model_type": "nomic_bert",
        "vocab_size": 11,
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 2,
        "n_inner": 12,
        "n_positions": 32,
        "rotary_emb_base": 100,
        "rotary_emb_fraction": 1.0,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "swiglu",
    }
    newer = NOMIC | {"max_position_embeddings": 32, "rope_theta": 100.0, "layer_norm_eps": 1e-5}
    assert str(graph_of(older)) == str(graph_of(newer))


@pytest.mark.parametrize("t", [0, 2])
def test_one_position_of_a_text_is_the_same_from_everywhere(t):
    x = np.random.default_rng(9).normal(size=(5, 3)).astype(np.float32)
    graph = sy.trace(lambda x: at_position(x, t), x="f32[3]")
    np.testing.assert_allclose(interpret(graph, {"x": x}, {})["output"], x[t], rtol=1e-6)
