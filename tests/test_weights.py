"""Checkpoints: every tensor is accounted for, and what does not fit is named."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import systolic as sy
from systolic.models.load import load
from systolic.models.weights import read_checkpoint, read_file

CONFIG = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture
def tensors(tmp_path):
    """Random weights of the model that CONFIG describes, by their names in a checkpoint."""
    graph = load(write_config(tmp_path / "bare")).graph
    random = np.random.default_rng(3)
    return {n.name: random.normal(size=n.type.shape).astype(np.float32) for n in graph.parameters}


def write_config(directory, **changes):
    directory.mkdir(exist_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps(CONFIG | changes))
    return path


@pytest.fixture
def write(tmp_path):
    """Writes a checkpoint of one file and returns its directory."""

    def write_checkpoint(tensors, **changes):
        directory = write_config(tmp_path / "checkpoint", **changes).parent
        save_file(tensors, directory / "model.safetensors")
        return directory

    return write_checkpoint


def write_shards(directory, tensors):
    """Splits the tensors over two files with an index."""
    write_config(directory)
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, directory / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def assert_equal(weights, tensors):
    assert set(weights) == set(tensors)
    assert len(weights) == len(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(weights[name], value)


# ---- what fits ----


def test_weights_are_the_tensors_and_are_mapped_not_copied(write, tensors):
    weights = load(write(tensors)).weights
    assert_equal(weights, tensors)
    array = weights["model.norm.weight"]
    assert array.dtype == np.float32
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_shards_are_one_checkpoint(tmp_path, tensors):
    assert_equal(load(write_shards(tmp_path / "sharded", tensors)).weights, tensors)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_floats_are_read_as_f32(write, tensors, dtype):
    stored = {name: value.astype(dtype) for name, value in tensors.items()}
    weights = load(write(stored)).weights
    assert_equal(weights, {name: value.astype(np.float32) for name, value in stored.items()})
    assert all(weights[name].dtype == np.float32 for name in weights)


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("bf16", ml_dtypes.bfloat16), ("f16", np.float16)])
def test_weights_can_be_kept_in_sixteen_bits(write, tensors, dtype, numpy_dtype):
    model = load(write(tensors), dtype=dtype)
    kept = {name: value.astype(numpy_dtype) if value.ndim == 2 else value for name, value in tensors.items()}
    assert_equal(model.weights, kept)
    assert all(
        node.type.dtype == ("f32" if node.type.rank == 1 else dtype) for node in model.graph.parameters
    )
    assert model.graph.outputs["logits"].type.dtype == "f32"


def test_names_may_lack_the_prefix(write, tensors):
    assert_equal(load(write({n.removeprefix("model."): v for n, v in tensors.items()})).weights, tensors)


def test_computed_buffers_and_a_copy_of_the_tied_head_are_accepted(write, tensors):
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
        "lm_head.weight": tensors["model.embed_tokens.weight"].copy(),
    }
    assert_equal(load(write(tensors | extra)).weights, tensors)


def test_tensors_may_lie_at_odd_addresses(tmp_path):
    value = np.arange(3, dtype=np.float32)
    header = json.dumps(
        {
            "flag": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "x": {"dtype": "F32", "shape": [3], "data_offsets": [1, 13]},
        }
    ).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\1" + value.tobytes())
    array = read_file(path)["x"].array(np.dtype(np.float32))
    np.testing.assert_array_equal(array, value)
    assert array.flags.aligned


MIXTURE = {
    "model_type": "mixtral",
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


@pytest.fixture
def expert_tensors(tmp_path):
    """Random weights of a small mixture of experts, each expert's matrices apart."""
    graph = load(write_config(tmp_path / "bare mixture", **MIXTURE)).graph
    random = np.random.default_rng(4)
    stacked = {n.name: random.normal(size=n.type.shape).astype(np.float32) for n in graph.parameters}
    assert any("*" in name for name in stacked)
    return {
        name.replace("*", str(i)): part
        for name, value in stacked.items()
        for i, part in enumerate(value if "*" in name else [value])
    }


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_tensors_of_experts_are_put_together_when_they_are_asked_for(write, expert_tensors, dtype):
    weights = load(write(expert_tensors, **MIXTURE), dtype=dtype).weights
    name = "model.layers.1.block_sparse_moe.experts.{}.w2.weight"
    up = weights[name.format("*")]
    assert up.shape == (3, 8, 12)
    for i in range(3):
        np.testing.assert_array_equal(up[i], expert_tensors[name.format(i)].astype(up.dtype))
    assert up is not weights[name.format("*")]  # whoever asks owns the only copy


def test_a_missing_expert_is_named(write, expert_tensors):
    del expert_tensors["model.layers.0.block_sparse_moe.experts.1.w3.weight"]
    message = r"lacks the tensor model\.layers\.0\.block_sparse_moe\.experts\.1\.w3\.weight \[12, 8\]"
    with pytest.raises(sy.SystolicError, match=message):
        load(write(expert_tensors, **MIXTURE))


def test_an_expert_too_many_is_named(write, expert_tensors):
    expert = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"
    extra = {expert.format(3): expert_tensors[expert.format(2)]}
    with pytest.raises(sy.SystolicError, match=r"no use for the tensor .*experts\.3\.w1\.weight \[12, 8\]"):
        load(write(expert_tensors | extra, **MIXTURE))


# ---- what does not fit ----


def test_a_missing_tensor_is_named(write, tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(
        sy.SystolicError, match=r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight \[12, 8\]"
    ):
        load(write(tensors))


def test_an_unexpected_tensor_is_named(write, tensors):
    extra = {"model.layers.0.self_attn.q_proj.bias": np.ones(8, np.float32)}
    with pytest.raises(
        sy.SystolicError, match=r"model\.safetensors: .* model\.layers\.0\.self_attn\.q_proj\.bias \[8\]"
    ):
        load(write(tensors | extra))


def test_a_misshapen_tensor_is_named_with_both_shapes(write, tensors):
    tensors["model.norm.weight"] = np.ones(9, np.float32)
    message = r"model\.safetensors: tensor model\.norm\.weight has shape \[9\], but the config asks for \[8\]"
    with pytest.raises(sy.SystolicError, match=message):
        load(write(tensors))


def test_a_tensor_of_integers_is_refused(write, tensors):
    tensors["model.norm.weight"] = np.ones(8, np.int8)
    with pytest.raises(sy.SystolicError, match=r"model\.norm\.weight is stored as I8, not F64, F32"):
        load(write(tensors))


def test_a_head_that_contradicts_the_tie_is_refused(write, tensors):
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    with pytest.raises(sy.SystolicError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load(write(tensors | head))


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_file_is_named(write, tensors, kept):
    file = write(tensors) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(sy.SystolicError, match=r"model\.safetensors: is truncated or corrupt"):
        load(file.parent)


def test_a_file_of_something_else_is_named(write, tensors):
    file = write(tensors) / "model.safetensors"
    file.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(sy.SystolicError, match=r"model\.safetensors: is truncated or corrupt"):
        load(file.parent)


def test_a_directory_in_place_of_a_file_is_named(tmp_path):
    directory = write_config(tmp_path / "checkpoint").parent
    (directory / "model.safetensors").mkdir()
    with pytest.raises(sy.SystolicError, match=r"model\.safetensors: cannot be read"):
        load(directory)


def test_a_missing_shard_is_named(tmp_path, tensors):
    directory = write_shards(tmp_path / "sharded", tensors)
    (directory / "model-2.safetensors").unlink()
    with pytest.raises(
        sy.SystolicError, match=r"model-2\.safetensors: is missing, although .*index\.json names it"
    ):
        load(directory)


def test_a_tensor_that_only_the_index_has_is_named(tmp_path, tensors):
    directory = write_shards(tmp_path / "sharded", tensors)
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-1.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(sy.SystolicError, match=r"model-1\.safetensors: lacks the tensor ghost"):
        load(directory)


def test_an_index_cannot_name_files_elsewhere(tmp_path, tensors):
    directory = write_shards(tmp_path / "sharded", tensors)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(sy.SystolicError, match=r"'\.\./model\.safetensors', which is not a file beside it"):
        read_checkpoint(directory)


def test_a_directory_without_safetensors_says_what_it_needs(tmp_path):
    directory = write_config(tmp_path / "checkpoint").parent
    (directory / "pytorch_model.bin").touch()
    with pytest.raises(
        sy.SystolicError, match=r"neither model\.safetensors nor .*pytorch_model\.bin must be converted"
    ):
        load(directory)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(sy.SystolicError, match=r"none\.safetensors: cannot be read"):
        read_file(tmp_path / "none.safetensors")
