"""Writes GPT-2 as an ONNX graph of ONNX Runtime's fused operators, as ``onnx_graph`` writes Llamas."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from .onnx_graph import CONTRIB, OnnxModel


class OnnxGpt2(OnnxModel):
    """Norms are added to what they follow by one operator, biases to the activation by another."""

    def model(self) -> onnx.ModelProto:
        table = self.weights["transformer.wte.weight"]
        self.arrays |= {"embedding": table, "places": self.weights["transformer.wpe.weight"]}
        self.arrays["last"] = np.array(-1, np.int64)
        x = self.node("Gather", ["embedding", "tokens"])
        x = self.node("Add", [x, self.node("Gather", ["places", "positions"])])
        delta = None
        for i in range(self.layers):
            name = f"h.{i}"
            normed, x = self._norm(f"{name}.ln_1", x, delta)
            mixed = self.attention(i, self._linear(f"{name}.attn.c_attn", normed))
            attended = self._linear(f"{name}.attn.c_proj", mixed)
            normed, x = self._norm(f"{name}.ln_2", x, attended)
            up = self._product(f"{name}.mlp.c_fc", normed)
            opened = self.node("FastGelu", [up, self._vector(f"{name}.mlp.c_fc.bias")], domain=CONTRIB)
            delta = self._linear(f"{name}.mlp.c_proj", opened)
        x, _ = self._norm("ln_f", x, delta)
        self.product("head", table, self.node("Gather", [x, "last"], axis=1))
        self.nodes[-1].output[0] = "logits"
        return self.finished()

    def _linear(self, name: str, x: str) -> str:
        return self.node("Add", [self._product(name, x), self._vector(f"{name}.bias")])

    def _product(self, name: str, x: str) -> str:
        return self.product(name, np.ascontiguousarray(self.weights[f"transformer.{name}.weight"].T), x)

    def _vector(self, name: str) -> str:
        self.arrays[name] = self.weights[f"transformer.{name}"]
        return name

    def _norm(self, name: str, x: str, delta: str | None) -> tuple[str, str]:
        """(x + delta normalised, x + delta)."""
        parts = [self._vector(f"{name}.weight"), self._vector(f"{name}.bias")]
        epsilon = float(self.config["layer_norm_epsilon"])
        if delta is None:
            return self.node("LayerNormalization", [x, *parts], axis=-1, epsilon=epsilon), x
        outputs = [f"{name}.normed", "", "", f"{name}.sum"]
        self.nodes.append(
            helper.make_node(
                "SkipLayerNormalization", [x, delta, *parts], outputs, domain=CONTRIB, epsilon=epsilon
            )
        )
        return outputs[0], outputs[3]
