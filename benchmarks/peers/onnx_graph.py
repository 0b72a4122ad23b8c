"""Writes Llama-like models as ONNX graphs in the form that ONNX Runtime runs fastest: its fused operators.

Queries, keys and values are one product, rotation and attention are one ``GroupQueryAttention`` over caches
that are written in place (a window is hidden by it, but has no ring), norms are its
``SimplifiedLayerNormalization``. Weights are not in the graph: they are given by name, as NumPy arrays.
``onnx_gpt2`` writes GPT-2 in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from .sizes import Sized

BLOCK = 32  # weights that share a scale
CONTRIB = "com.microsoft"
FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32


@dataclass
class OnnxModel(Sized):
    """The graph while it is written; ``bits`` is 8 or 4 for integers with scales, None for f32."""

    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    capacity: int
    bits: int | None
    nodes: list[Any] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        """The whole graph."""
        raise NotImplementedError

    def attention(self, i: int, qkv: str) -> str:
        """Of the joined queries, keys and values of layer ``i``; these are written into its caches."""
        kept = [f"past_key.{i}", f"past_value.{i}", "past_lengths", "total_length"]
        outputs = [f"mixed.{i}", f"key.{i}", f"value.{i}"]
        is_rotated = "cos" in self.arrays
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [qkv, "", "", *kept, *(["cos", "sin"] if is_rotated else [])],
                outputs,
                domain=CONTRIB,
                num_heads=self.heads,
                kv_num_heads=self.key_heads,
                do_rotary=int(is_rotated),
                local_window_size=self.config.get("sliding_window") or -1,
            )
        )
        return outputs[0]

    def product(self, name: str, matrix: np.ndarray, x: str) -> str:
        """x [..., K] times a matrix [N, K]."""
        if self.bits is None:
            self.arrays[name] = np.ascontiguousarray(matrix.T)
            return self.node("MatMul", [x, name])
        rows, width = matrix.shape
        self.arrays[name], self.arrays[f"{name}.scales"] = quantised(matrix, self.bits)
        sizes = {"K": width, "N": rows, "bits": self.bits, "block_size": BLOCK}
        return self.node(
            "MatMulNBits", [x, name, f"{name}.scales"], domain=CONTRIB, accuracy_level=4, **sizes
        )

    def node(self, op: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        """One more node with one output, whose name is returned."""
        output = f"{op}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attributes))
        return output

    def finished(self) -> onnx.ModelProto:
        """(tokens [B, T], their positions if asked for, lengths of the past and of all, caches) →
        (logits [B, V], caches)."""
        cache = ("B", self.key_heads, self.capacity, self.head_size)
        kept = [f"{part}.{i}" for i in range(self.layers) for part in ("key", "value")]
        asked = {name for node in self.nodes for name in node.input}
        positions = [helper.make_tensor_value_info("positions", INT64, ("T",))]
        inputs = [
            helper.make_tensor_value_info("tokens", INT64, ("B", "T")),
            *(positions if "positions" in asked else []),
            helper.make_tensor_value_info("past_lengths", INT32, ("B",)),
            helper.make_tensor_value_info("total_length", INT32, ()),
            *(helper.make_tensor_value_info(f"past_{name}", FLOAT, cache) for name in kept),
        ]
        outputs = [
            helper.make_tensor_value_info("logits", FLOAT, ("B", self.config["vocab_size"])),
            *(helper.make_tensor_value_info(name, FLOAT, cache) for name in kept),
        ]
        weights = [_external(name, array) for name, array in self.arrays.items()]
        graph = helper.make_graph(self.nodes, "model", inputs, outputs, weights)
        versions = [helper.make_opsetid("", 17), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=versions, ir_version=9)


class OnnxLlama(OnnxModel):
    """Llama, and Mistral with its window."""

    def model(self) -> onnx.ModelProto:
        self._rotations()
        self.arrays["embedding"] = self.weights["model.embed_tokens.weight"]
        self.arrays["last"] = np.array(-1, np.int64)
        x = self.node("Gather", ["embedding", "tokens"])
        delta = None
        for i in range(self.layers):
            x, delta = self._layer(i, x, delta)
        x, _ = self._norm("model.norm.weight", x, delta)
        last = self.node("Gather", [x, "last"], axis=1)
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        logits = self.product("head", head, last)
        self.nodes[-1].output[0] = "logits"
        assert logits
        return self.finished()

    def _layer(self, i: int, x: str, delta: str | None) -> tuple[str, str]:
        """(residual stream, what is to be added to it) behind layer ``i``."""
        prefix = f"model.layers.{i}."
        normed, x = self._norm(prefix + "input_layernorm.weight", x, delta)
        qkv = self._joined(prefix + "self_attn", ("q", "k", "v"), normed)
        mixed = self.attention(i, qkv)
        attended = self._joined(prefix + "self_attn", ("o",), mixed)
        normed, x = self._norm(prefix + "post_attention_layernorm.weight", x, attended)
        gate = self._joined(prefix + "mlp", ("gate",), normed)
        up = self._joined(prefix + "mlp", ("up",), normed)
        opened = self.node("QuickGelu", [gate], domain=CONTRIB, alpha=1.0)
        return x, self._joined(prefix + "mlp", ("down",), self.node("Mul", [opened, up]))

    def _norm(self, name: str, x: str, delta: str | None) -> tuple[str, str]:
        """(x + delta normalised, x + delta)."""
        self.arrays[name] = self.weights[name]
        epsilon = float(self.config["rms_norm_eps"])
        if delta is None:
            return self.node("SimplifiedLayerNormalization", [x, name], axis=-1, epsilon=epsilon), x
        outputs = [f"{name}.normed", "", "", f"{name}.sum"]
        self.nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization", [x, delta, name], outputs, domain=CONTRIB, epsilon=epsilon
            )
        )
        return outputs[0], outputs[3]

    def _joined(self, prefix: str, names: tuple[str, ...], x: str) -> str:
        matrices = [self.weights[f"{prefix}.{name}_proj.weight"] for name in names]
        return self.product(f"{prefix}.{''.join(names)}", np.concatenate(matrices), x)

    def _rotations(self) -> None:
        """cos and sin [capacity, D / 2]."""
        power = -np.arange(0, self.head_size, 2, dtype=np.float32) / self.head_size
        frequencies = np.float32(self.config["rope_theta"]) ** power
        angle = np.arange(self.capacity, dtype=np.float32)[:, None] * frequencies
        self.arrays |= {"cos": np.cos(angle), "sin": np.sin(angle)}


def _external(name: str, array: np.ndarray) -> TensorProto:
    """An initializer whose values are given to the session."""
    tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.external_data.add(key="location", value="given to the session")
    return tensor


def quantised(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """f32[N, K] as u8[N, K/32, 32·bits/8] around the middle of the type, and scales f32[N, K/32]."""
    rows, width = matrix.shape
    blocks = matrix.reshape(rows, width // BLOCK, BLOCK)
    most, middle = 2 ** (bits - 1) - 1, 2 ** (bits - 1)
    scales = np.maximum(np.abs(blocks).max(axis=-1), np.float32(1e-30)) / np.float32(most)
    raised = (np.rint(blocks / scales[..., None]) + middle).astype(np.uint8)
    return (raised if bits == 8 else raised[..., ::2] | raised[..., 1::2] << 4), scales
