"""Graphs of OpenVINO's operators from the weights of a model: states, attention, rotation.

Caches are variables that its CPU plugin keeps with the attention that reads them; a window is hidden by the
mask, but has no ring.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from .sizes import Sized


class OpenVinoModel(Sized):
    """The graph of a model while it is made: (tokens [B, T], positions [T], beams [B]) → logits [B, V]."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, np.ndarray], dtype: str) -> None:
        self.config, self.weights = config, weights
        self._dtype = dtype
        self._assigns: list[Any] = []
        self.weight_bytes = 0

    def logits(self, tokens: Any, positions: Any, beams: Any) -> Any:
        """Of the last position."""
        raise NotImplementedError

    def model(self) -> ov.Model:
        tokens = ops.parameter([-1, -1], np.int32, "tokens")
        positions = ops.parameter([-1], np.int32, "positions")
        beams = ops.parameter([-1], np.int32, "beams")
        result = ops.result(self.logits(tokens, positions, beams))
        return ov.Model([result], self._assigns, [tokens, positions, beams], "model")

    def attended(self, prefix: str, q: Any, k: Any, v: Any, beams: Any) -> Any:
        """Queries [B, H, T, D] over all keys and values [B, H, T, D], which are kept: [B, T, H·D]."""
        keys = self._repeated(self._kept(f"{prefix}.key", k, beams))
        values = self._repeated(self._kept(f"{prefix}.value", v, beams))
        mixed = ops.scaled_dot_product_attention(q, keys, values, self._mask(q, keys), causal=False)
        return ops.reshape(ops.transpose(mixed, self.integers(0, 2, 1, 3)), self.integers(0, 0, -1), True)

    def _mask(self, q: Any, keys: Any) -> Any:
        """f32[T, S]: 0 where a query may see a key, and minus infinity behind it."""
        length = ops.gather(ops.shape_of(q, "i32"), self.integers(2), self.integers(0))
        slots = ops.gather(ops.shape_of(keys, "i32"), self.integers(2), self.integers(0))
        zero, one = self.integers(0), self.integers(1)
        query = ops.unsqueeze(ops.range(ops.subtract(slots, length), slots, one, "i32"), one)
        key = ops.unsqueeze(ops.range(zero, slots, one, "i32"), zero)
        nothing, hidden = np.float32(0), np.float32(np.finfo(np.float32).min)
        seen = ops.less_equal(key, query)
        if self.config.get("sliding_window"):
            window = self.integers(self.config["sliding_window"])
            seen = ops.logical_and(seen, ops.greater(ops.add(key, window), query))
        return ops.select(seen, ops.constant(nothing), ops.constant(hidden))

    def _kept(self, name: str, new: Any, beams: Any) -> Any:
        """A variable [B, H, S, D] with ``new`` behind it, as the plugin recognises a cache."""
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, self.key_heads, -1, self.head_size])
        info.data_type, info.variable_id = ov.Type.f32, name
        variable = Variable(info)
        rows = ops.gather(ops.shape_of(new, "i32"), self.integers(0), self.integers(0))
        shape = ops.concat(
            [
                ops.unsqueeze(rows, self.integers(0)),
                ops.constant(np.array([self.key_heads, 0, self.head_size], np.int32)),
            ],
            0,
        )
        empty = ops.broadcast(ops.constant(np.float32(0)), shape)
        past = ops.gather(ops.read_value(empty, variable), beams, self.integers(0))
        joined = ops.concat([past, new], 2)
        self._assigns.append(ops.assign(joined, variable))
        return joined

    def _repeated(self, kept: Any) -> Any:
        """Keys of a group beside each other for each of its queries: [B, H·G, S, D]."""
        group = self.heads // self.key_heads
        if group == 1:
            return kept
        wide = ops.unsqueeze(kept, self.integers(2))
        spread = ops.broadcast(
            wide, ops.constant(np.array([1, 1, group, 1, 1], np.int32)), broadcast_spec="BIDIRECTIONAL"
        )
        return ops.reshape(spread, self.integers(0, self.heads, -1, self.head_size), True)

    def split_heads(self, x: Any, heads: int) -> Any:
        apart = ops.reshape(x, self.integers(0, 0, heads, self.head_size), True)
        return ops.transpose(apart, self.integers(0, 2, 1, 3))

    def product(self, matrices: list[np.ndarray], x: Any) -> Any:
        """x [..., K] times [N, K]."""
        matrix = np.concatenate(matrices) if len(matrices) > 1 else matrices[0]
        return ops.matmul(x, self._stored(matrix), False, True)

    def _stored(self, matrix: np.ndarray) -> Any:
        """A matrix as it is kept, widened to f32."""
        if self._dtype == "int8":
            scale = np.maximum(np.abs(matrix).max(axis=1, keepdims=True), np.float32(1e-30)) / np.float32(127)
            integers = np.rint(matrix / scale).astype(np.int8)
            self.weight_bytes += integers.nbytes + scale.nbytes
            return ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(scale))
        self.weight_bytes += matrix.nbytes // (2 if self._dtype == "bf16" else 1)
        return self.constant(matrix)

    def constant(self, array: np.ndarray) -> Any:
        return ops.constant(array, shared_memory=True)

    def integers(self, *values: int) -> Any:
        return ops.constant(np.array(values[0] if len(values) == 1 else values, np.int32))


class OpenVinoLlama(OpenVinoModel):
    """Llama, and Mistral with its window."""

    def logits(self, tokens: Any, positions: Any, beams: Any) -> Any:
        embedding = self.weights["model.embed_tokens.weight"]
        x = ops.gather(self.constant(embedding), tokens, self.integers(0))
        rotations = self._rotations(positions)
        for i in range(self.config["num_hidden_layers"]):
            x = self._layer(f"model.layers.{i}", x, rotations, beams)
        x = self._norm("model.norm.weight", x)
        last = ops.gather(x, self.integers(-1), self.integers(1))
        return self.product([self.weights.get("lm_head.weight", embedding)], last)

    def _layer(self, prefix: str, x: Any, rotations: tuple[Any, Any], beams: Any) -> Any:
        def product(part: str, names: str, x: Any) -> Any:
            return self.product([self.weights[f"{prefix}.{part}.{n}_proj.weight"] for n in names.split()], x)

        normed = self._norm(f"{prefix}.input_layernorm.weight", x)
        q, k, v = (
            self.split_heads(product("self_attn", name, normed), heads)
            for name, heads in (("q", self.heads), ("k", self.key_heads), ("v", self.key_heads))
        )
        q, k = self._rotated(q, rotations), self._rotated(k, rotations)
        joined = self.attended(prefix, q, k, v, beams)
        x = ops.add(x, product("self_attn", "o", joined))
        normed = self._norm(f"{prefix}.post_attention_layernorm.weight", x)
        opened = ops.multiply(ops.swish(product("mlp", "gate", normed)), product("mlp", "up", normed))
        return ops.add(x, product("mlp", "down", opened))

    def _rotations(self, positions: Any) -> tuple[Any, Any]:
        """cos and sin [1, 1, T, D], each half the same."""
        power = -np.arange(0, self.head_size, 2, dtype=np.float32) / self.head_size
        frequencies = np.tile(np.float32(self.config["rope_theta"]) ** power, 2)[None]
        column = ops.unsqueeze(ops.convert(positions, "f32"), self.integers(1))
        angle = ops.unsqueeze(ops.multiply(column, ops.constant(frequencies)), self.integers(0, 1))
        return ops.cos(angle), ops.sin(angle)

    def _rotated(self, x: Any, rotations: tuple[Any, Any]) -> Any:
        cos, sin = rotations
        first, second = ops.split(x, self.integers(3), 2).outputs()
        turned = ops.concat([ops.negative(second), first], 3)
        return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))

    def _norm(self, name: str, x: Any) -> Any:
        square = ops.reduce_mean(ops.power(x, ops.constant(np.float32(2))), self.integers(-1), True)
        scale = ops.sqrt(ops.add(square, ops.constant(np.float32(self.config["rms_norm_eps"]))))
        normed = ops.multiply(x, ops.divide(ops.constant(np.float32(1)), scale))
        return ops.multiply(normed, ops.constant(self.weights[name]))


class OpenVinoGpt2(OpenVinoModel):
    """GPT-2: its matrices are kept as [in, out] by checkpoints."""

    def logits(self, tokens: Any, positions: Any, beams: Any) -> Any:
        table, places = (self.weights[f"transformer.{name}.weight"] for name in ("wte", "wpe"))
        x = ops.gather(self.constant(table), tokens, self.integers(0))
        x = ops.add(x, ops.gather(self.constant(places), positions, self.integers(0)))
        for i in range(self.config["n_layer"]):
            name = f"transformer.h.{i}"
            joined = self._linear(f"{name}.attn.c_attn", self._norm(f"{name}.ln_1", x))
            parts = ops.split(joined, self.integers(2), 3).outputs()
            q, k, v = (self.split_heads(part, self.heads) for part in parts)
            x = ops.add(x, self._linear(f"{name}.attn.c_proj", self.attended(name, q, k, v, beams)))
            up = self._linear(f"{name}.mlp.c_fc", self._norm(f"{name}.ln_2", x))
            x = ops.add(x, self._linear(f"{name}.mlp.c_proj", ops.gelu(up, "TANH")))
        last = ops.gather(self._norm("transformer.ln_f", x), self.integers(-1), self.integers(1))
        return self.product([table], last)

    def _linear(self, name: str, x: Any) -> Any:
        matrix = np.ascontiguousarray(self.weights[f"{name}.weight"].T)
        return ops.add(self.product([matrix], x), self.constant(self.weights[f"{name}.bias"]))

    def _norm(self, name: str, x: Any) -> Any:
        epsilon = float(self.config["layer_norm_epsilon"])
        normed = ops.mvn(x, self.integers([-1]), True, epsilon, "INSIDE_SQRT")
        scaled = ops.multiply(normed, self.constant(self.weights[f"{name}.weight"]))
        return ops.add(scaled, self.constant(self.weights[f"{name}.bias"]))
