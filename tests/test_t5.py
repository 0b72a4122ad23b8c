"""The T5 families against their formulas, and what their files decide."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import systolic as sy
from systolic.ir.interpret import interpret
from systolic.models.families import build
from systolic.models.load import load
from systolic.models.positions import bucket_of_distances
from systolic.models.spec import Config, read_config

SMALL = {
    "model_type": "t5",
    "vocab_size": 13,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 7,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "layer_norm_epsilon": 0.02,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def relative_error(got, want):
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def test_the_older_layout_of_t5(shared):
    folder = shared / "oracle" / "t5"
    new, old = (build(read_config(folder / name))[1] for name in ("config.json", "config_v4.json"))
    assert str(new) == str(old)


def test_every_tensor_of_t5_is_a_parameter(shared):
    folder = shared / "oracle" / "t5"
    assert set(load_file(folder / "model.safetensors")) == set(load(folder).weights)


def bucket(distance, config, two_sided):
    """The bucket of key position - query position, one at a time."""
    count, farthest = config["relative_attention_num_buckets"], config["relative_attention_max_distance"]
    base = 0
    if two_sided:
        count //= 2
        base, distance = (count if distance > 0 else 0), abs(distance)
    else:
        distance = max(-distance, 0)
    if distance < count // 2:
        return base + distance
    steps = math.log(distance / (count // 2)) / math.log(farthest / (count // 2)) * (count - count // 2)
    return base + min(count // 2 + int(steps + 1e-9), count - 1)


def attend(x, memory, weights, name, table, config, two_sided):
    """Attention of x [T, M] over memory [S, M]; ``table`` names the layer whose distances are used."""
    heads, size = config["num_heads"], config["d_kv"]
    q, k, v = (
        (side @ weights[f"{name}.{part}.weight"].T).reshape(len(side), heads, size)
        for part, side in (("q", x), ("k", memory), ("v", memory))
    )
    scores = np.einsum("thd,shd->hts", q, k)
    if table:
        gains = weights[f"{table}.relative_attention_bias.weight"]
        for t in range(len(x)):
            for s in range(len(memory)):
                scores[:, t, s] += gains[bucket(s - t, config, two_sided)]
        if not two_sided:
            scores[:, np.triu(np.ones((len(x), len(x)), bool), 1)] = -np.inf
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities = scores / scores.sum(-1, keepdims=True)
    mixed = np.einsum("hts,shd->thd", probabilities, v).reshape(len(x), -1)
    return mixed @ weights[f"{name}.o.weight"].T


def formulas(config, weights, source, target, *, scale, head, tables):
    """The logits [T, V] of T5 in float64, one stack after the other."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}

    def norm(x, name):
        rms = np.sqrt((x * x).mean(-1, keepdims=True) + config["layer_norm_epsilon"])
        return x / rms * weights[f"{name}.weight"]

    def feed_forward(x, name):
        if "gated" not in config["feed_forward_proj"]:
            return np.maximum(x @ weights[f"{name}.wi.weight"].T, 0) @ weights[f"{name}.wo.weight"].T
        gate = x @ weights[f"{name}.wi_0.weight"].T
        gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        return (gate * (x @ weights[f"{name}.wi_1.weight"].T)) @ weights[f"{name}.wo.weight"].T

    def stack(tokens, kind, layers, memory=None):
        x = weights["shared.weight"][tokens]
        for i in range(layers):
            name = f"{kind}.block.{i}.layer"
            table = f"{kind}.block.{i if tables else 0}.layer.0.SelfAttention"
            y = norm(x, f"{name}.0.layer_norm")
            x = x + attend(y, y, weights, f"{name}.0.SelfAttention", table, config, memory is None)
            if memory is not None:
                y = norm(x, f"{name}.1.layer_norm")
                x = x + attend(y, memory, weights, f"{name}.1.EncDecAttention", None, config, True)
            name = f"{name}.{1 if memory is None else 2}"
            x = x + feed_forward(norm(x, f"{name}.layer_norm"), f"{name}.DenseReluDense")
        return norm(x, f"{kind}.final_layer_norm")

    memory = stack(source, "encoder", config["num_layers"])
    x = stack(target, "decoder", config["num_decoder_layers"], memory)
    return x * scale @ weights[f"{head}.weight"].T


@pytest.mark.parametrize(
    ("changes", "scale", "head", "tables"),
    [
        ({}, 12**-0.5, "shared", False),
        ({"scale_decoder_outputs": False}, 1.0, "shared", False),
        (GATED, 1.0, "lm_head", False),
        ({**GATED, "scale_decoder_outputs": True}, 12**-0.5, "lm_head", False),
        ({**GATED, "model_type": "mt5"}, 1.0, "lm_head", False),
        ({**GATED, "model_type": "mt5", "tie_word_embeddings": True}, 1.0, "shared", False),
        ({**GATED, "model_type": "umt5", "num_decoder_layers": 2}, 12**-0.5, "lm_head", True),
    ],
    ids=["v1.0", "unscaled", "v1.1", "scaled", "mt5", "mt5 tied", "umt5"],
)
def test_variants_against_the_formulas(changes, scale, head, tables):
    config, random = SMALL | changes, np.random.default_rng(3)
    graph = build(Config("config.json", config))[1]
    weights = {n.name: random.normal(size=n.tensor.static_shape).astype(np.float32) for n in graph.parameters}
    source, target = (random.integers(0, 13, count).astype(np.int32) for count in (14, 12))
    got = interpret(graph, {"source": source, "target": target}, weights)["logits"]
    want = formulas(config, weights, source, target, scale=scale, head=head, tables=tables)
    assert relative_error(got, want) < 2e-4


@pytest.mark.parametrize(("count", "farthest"), [(16, 128), (32, 128), (6, 20), (12, 20), (5, 11)])
def test_buckets_of_distances(count, farthest):
    config = {"relative_attention_num_buckets": count, "relative_attention_max_distance": farthest}
    expected = [bucket(-distance, config, False) for distance in range(farthest + 1)]
    assert bucket_of_distances(count, farthest).tolist() == expected
    assert expected[-1] == count - 1


def saved(path, config, changes=None, without=()):
    """A checkpoint of ``config`` with random tensors, where ``changes`` alters what config.json says."""
    graph, random = build(Config("config.json", config))[1], np.random.default_rng(4)
    tensors = {n.name: random.normal(size=n.tensor.static_shape).astype(np.float32) for n in graph.parameters}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config | (changes or {})))
    save_file(
        {name: array for name, array in tensors.items() if name not in without}, path / "model.safetensors"
    )
    return load(path)


def has_scale(graph):
    return any(
        node.op.name == "constant" and np.all(node.params["value"] == np.float32(12**-0.5)) for node in graph
    )


def test_a_head_in_the_file_wins_over_the_config(tmp_path):
    newer = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    untied = saved(tmp_path / "newer", SMALL | GATED, newer)
    assert "lm_head.weight" in untied.weights
    assert not has_scale(untied.graph)
    older = saved(tmp_path / "older", SMALL | {"tie_word_embeddings": False}, {"tie_word_embeddings": True})
    assert "lm_head.weight" in older.weights
    assert has_scale(older.graph)
    absent = saved(tmp_path / "absent", SMALL | GATED, without=["lm_head.weight"])
    assert "lm_head.weight" not in absent.weights
    assert not has_scale(absent.graph)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense_act_fn": "silu"}, r"config\.json: dense_act_fn contradicts feed_forward_proj 'relu'"),
        ({"is_gated_act": True}, "is_gated_act contradicts feed_forward_proj 'relu'"),
        ({"feed_forward_proj": "gated-gleu"}, "activation 'gleu' is unknown"),
        ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets must be at least 4"),
        ({"relative_attention_max_distance": 4}, "relative_attention_max_distance is not beyond half"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is false"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"encoder_layers": 2}, "encoder_layers is 2, a field that"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(sy.SystolicError, match=message):
        build(Config("config.json", SMALL | changes))
