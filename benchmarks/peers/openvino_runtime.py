"""OpenVINO on a graph written from the same weights, with its operators: states, attention, rotation.

Caches are variables that its CPU plugin keeps with the attention that reads them. With bf16 it multiplies in
bf16, with f32 everything is f32; int8 weights have a scale for each row, as ours have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from ..subjects import Subject
from . import Setting, Unavailable

PRECISIONS = {"f32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVino:
    """A compiled model and the request that holds its caches."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.name = f"OpenVINO, {setting.dtype}"
        llama = OpenVinoLlama(subject.config, subject.weights, setting.dtype)
        options = {
            "INFERENCE_NUM_THREADS": setting.threads,
            "INFERENCE_PRECISION_HINT": PRECISIONS[setting.dtype],
            "KV_CACHE_PRECISION": "f32" if setting.dtype == "f32" else "f16",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if setting.dtype == "int8":
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 32
        compiled = ov.Core().compile_model(llama.model(), "CPU", options)
        self.weight_bytes = llama.weight_bytes
        self._request = compiled.create_infer_request()
        self._newest = np.zeros(0, np.int32)
        self._seen = 0

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        self._request.reset_state()
        self._seen = 0
        return self._read(prompts)

    def decode(self, count: int) -> np.ndarray:
        return np.stack([self._read(self._newest[:, None]) for _ in range(count)], axis=1)

    def _read(self, tokens: np.ndarray) -> np.ndarray:
        rows, length = tokens.shape
        positions = np.arange(self._seen, self._seen + length, dtype=np.int32)
        self._seen += length
        rows_in_order = np.arange(rows, dtype=np.int32)
        results = self._request.infer([tokens, positions, rows_in_order])
        self._newest = results[0].argmax(axis=-1).astype(np.int32)
        return self._newest


class OpenVinoLlama:
    """The graph of a Llama: (tokens [B, T], positions [T], beams [B]) → logits [B, V]."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, np.ndarray], dtype: str) -> None:
        self._config, self._weights, self._dtype = config, weights, dtype
        self._heads, self._key_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self._size = config.get("head_dim") or config["hidden_size"] // self._heads
        self._assigns: list[Any] = []
        self.weight_bytes = 0

    def model(self) -> ov.Model:
        tokens = ops.parameter([-1, -1], np.int32, "tokens")
        positions = ops.parameter([-1], np.int32, "positions")
        beams = ops.parameter([-1], np.int32, "beams")
        embedding = self._weights["model.embed_tokens.weight"]
        x = ops.gather(self._constant(embedding), tokens, self._integers(0))
        rotations = self._rotations(positions)
        for i in range(self._config["num_hidden_layers"]):
            x = self._layer(f"model.layers.{i}", x, rotations, beams)
        x = self._norm("model.norm.weight", x)
        last = ops.gather(x, self._integers(-1), self._integers(1))
        logits = self._product([self._weights.get("lm_head.weight", embedding)], last)
        parameters = [tokens, positions, beams]
        return ov.Model([ops.result(logits)], self._assigns, parameters, "llama")

    def _layer(self, prefix: str, x: Any, rotations: tuple[Any, Any], beams: Any) -> Any:
        def product(part: str, names: str, x: Any) -> Any:
            return self._product(
                [self._weights[f"{prefix}.{part}.{n}_proj.weight"] for n in names.split()], x
            )

        normed = self._norm(f"{prefix}.input_layernorm.weight", x)
        q, k, v = (
            self._split_heads(product("self_attn", name, normed), heads)
            for name, heads in (("q", self._heads), ("k", self._key_heads), ("v", self._key_heads))
        )
        q, k = self._rotated(q, rotations), self._rotated(k, rotations)
        keys = self._repeated(self._kept(f"{prefix}.key", k, beams))
        values = self._repeated(self._kept(f"{prefix}.value", v, beams))
        mixed = ops.scaled_dot_product_attention(q, keys, values, self._mask(q, keys), causal=False)
        joined = ops.reshape(ops.transpose(mixed, self._integers(0, 2, 1, 3)), self._integers(0, 0, -1), True)
        x = ops.add(x, product("self_attn", "o", joined))
        normed = self._norm(f"{prefix}.post_attention_layernorm.weight", x)
        opened = ops.multiply(ops.swish(product("mlp", "gate", normed)), product("mlp", "up", normed))
        return ops.add(x, product("mlp", "down", opened))

    def _mask(self, q: Any, keys: Any) -> Any:
        """f32[T, S]: 0 where a query may see a key, and minus infinity behind it."""
        length = ops.gather(ops.shape_of(q, "i32"), self._integers(2), self._integers(0))
        slots = ops.gather(ops.shape_of(keys, "i32"), self._integers(2), self._integers(0))
        zero, one = self._integers(0), self._integers(1)
        query = ops.unsqueeze(ops.range(ops.subtract(slots, length), slots, one, "i32"), one)
        key = ops.unsqueeze(ops.range(zero, slots, one, "i32"), zero)
        nothing, hidden = np.float32(0), np.float32(np.finfo(np.float32).min)
        return ops.select(ops.less_equal(key, query), ops.constant(nothing), ops.constant(hidden))

    def _kept(self, name: str, new: Any, beams: Any) -> Any:
        """A variable [B, H, S, D] with ``new`` behind it, as the plugin recognises a cache."""
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, self._key_heads, -1, self._size])
        info.data_type, info.variable_id = ov.Type.f32, name
        variable = Variable(info)
        rows = ops.gather(ops.shape_of(new, "i32"), self._integers(0), self._integers(0))
        shape = ops.concat(
            [
                ops.unsqueeze(rows, self._integers(0)),
                ops.constant(np.array([self._key_heads, 0, self._size], np.int32)),
            ],
            0,
        )
        empty = ops.broadcast(ops.constant(np.float32(0)), shape)
        past = ops.gather(ops.read_value(empty, variable), beams, self._integers(0))
        joined = ops.concat([past, new], 2)
        self._assigns.append(ops.assign(joined, variable))
        return joined

    def _repeated(self, kept: Any) -> Any:
        """Keys of a group beside each other for each of its queries: [B, H·G, S, D]."""
        group = self._heads // self._key_heads
        if group == 1:
            return kept
        wide = ops.unsqueeze(kept, self._integers(2))
        spread = ops.broadcast(
            wide, ops.constant(np.array([1, 1, group, 1, 1], np.int32)), broadcast_spec="BIDIRECTIONAL"
        )
        return ops.reshape(spread, self._integers(0, self._heads, -1, self._size), True)

    def _split_heads(self, x: Any, heads: int) -> Any:
        apart = ops.reshape(x, self._integers(0, 0, heads, self._size), True)
        return ops.transpose(apart, self._integers(0, 2, 1, 3))

    def _rotations(self, positions: Any) -> tuple[Any, Any]:
        """cos and sin [1, 1, T, D], each half the same."""
        power = -np.arange(0, self._size, 2, dtype=np.float32) / self._size
        frequencies = np.tile(np.float32(self._config["rope_theta"]) ** power, 2)[None]
        column = ops.unsqueeze(ops.convert(positions, "f32"), self._integers(1))
        angle = ops.unsqueeze(ops.multiply(column, ops.constant(frequencies)), self._integers(0, 1))
        return ops.cos(angle), ops.sin(angle)

    def _rotated(self, x: Any, rotations: tuple[Any, Any]) -> Any:
        cos, sin = rotations
        first, second = ops.split(x, self._integers(3), 2).outputs()
        turned = ops.concat([ops.negative(second), first], 3)
        return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))

    def _norm(self, name: str, x: Any) -> Any:
        square = ops.reduce_mean(ops.power(x, ops.constant(np.float32(2))), self._integers(-1), True)
        scale = ops.sqrt(ops.add(square, ops.constant(np.float32(self._config["rms_norm_eps"]))))
        normed = ops.multiply(x, ops.divide(ops.constant(np.float32(1)), scale))
        return ops.multiply(normed, ops.constant(self._weights[name]))

    def _product(self, matrices: list[np.ndarray], x: Any) -> Any:
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
        return self._constant(matrix)

    def _constant(self, array: np.ndarray) -> Any:
        return ops.constant(array, shared_memory=True)

    def _integers(self, *values: int) -> Any:
        return ops.constant(np.array(values[0] if len(values) == 1 else values, np.int32))


def prepare(subject: Subject, setting: Setting) -> OpenVino:
    if subject.config["model_type"] != "llama":
        reason = (
            "its caches have no ring for a window" if subject.window else "a graph is written for Llamas only"
        )
        raise Unavailable(reason)
    if setting.dtype not in PRECISIONS:
        raise Unavailable(f"a graph is written for {', '.join(PRECISIONS)}, not for {setting.dtype}")
    return OpenVino(subject, setting)
