"""GPT-2 as one writes it in JAX by hand; it is run like ``jax_by_hand``'s Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .jax_attention import Attend, AttentionModel
from .jax_products import Products

LINEAR = {"qkv": "attn.c_attn", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}


class Gpt2(AttentionModel):
    """The functions to be jitted."""

    def __init__(self, config: Mapping[str, Any], products: Products) -> None:
        super().__init__(None)
        self._products = products
        self._layers, self._heads = config["n_layer"], config["n_head"]
        self._size = config["n_embd"] // self._heads
        self._epsilon = config["layer_norm_epsilon"]

    def arrange(self, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Matrices, kept as [in, out] by checkpoints, as products want them; the rest stays f32."""

        def vectors(name: str) -> tuple[jax.Array, jax.Array]:
            return tuple(jnp.asarray(weights[f"transformer.{name}.{part}"]) for part in ("weight", "bias"))  # type: ignore[return-value]

        layers = []
        for i in range(self._layers):
            layer: dict[str, Any] = {name: vectors(f"h.{i}.{name}") for name in ("ln_1", "ln_2")}
            for short, name in LINEAR.items():
                matrix = self._products.matrix(weights[f"transformer.h.{i}.{name}.weight"].T)
                layer[short] = matrix, jnp.asarray(weights[f"transformer.h.{i}.{name}.bias"])
            layers.append(layer)
        places = jnp.asarray(weights["transformer.wpe.weight"])
        embedding = self._products.embedding(weights["transformer.wte.weight"], None)
        return {"layers": layers, "norm": vectors("ln_f"), "places": places, **embedding}

    def step_bytes(self, weights: Mapping[str, Any]) -> int:
        """What a step reads: all but the tables of which it takes a row."""
        read = {name: part for name, part in weights.items() if name not in ("table", "places")}
        return sum(array.nbytes for array in jax.tree.leaves(read))

    def body(self, weights: Any, tokens: jax.Array, positions: jax.Array, attend: Attend) -> Any:
        x = self._products.taken(weights.get("table", weights["head"]), tokens) + weights["places"][positions]
        kept = []
        for i, w in enumerate(weights["layers"]):
            mixed, cache = attend(i, *self._projected(w, self._norm(x, w["ln_1"])))
            kept.append(cache)
            x = x + self._linear(w["out"], mixed)
            opened = jax.nn.gelu(self._linear(w["up"], self._norm(x, w["ln_2"])), approximate=True)
            x = x + self._linear(w["down"], opened)
        logits = self._products.apply(weights["head"], self._norm(x[:, -1], weights["norm"]))
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), kept

    def _linear(self, w: Any, x: jax.Array) -> jax.Array:
        matrix, bias = w
        return self._products.apply(matrix, x) + bias

    def _norm(self, x: jax.Array, w: tuple[jax.Array, jax.Array]) -> jax.Array:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self._epsilon)
        return centred * scale * w[0] + w[1]

    def _projected(self, w: Any, h: jax.Array) -> tuple[jax.Array, ...]:
        """Queries [B, H, 1, T, D], keys and values [B, H, T, D]."""
        rows, length = h.shape[:2]
        joined = self._linear(w["qkv"], h).reshape(rows, length, 3, self._heads, self._size)
        q, k, v = joined.transpose(2, 0, 3, 1, 4)
        return q[:, :, None] * np.float32(self._size**-0.5), k, v
