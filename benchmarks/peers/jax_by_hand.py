"""A good hand-written JAX program for Llama-like models, as one writes it without a compiler for it.

Unrolled over layers; queries, keys and values are one product, gate and up another; caches [B·H, S, D], one
for each layer, donated, never reallocated but when they are full: then they double, so a step reads at most
twice what is used. A sliding window has a ring of exactly its size. Queries of a group share a product.
Tokens are chosen and fed back on the device, up to 64 in one call. Prompts are one call, with blocks of
queries that read no keys behind them. Products have the form that is the fastest for their weights
(``jax_products``). GPT-2 and recurrent models are programs beside it, run alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..subjects import Subject
from . import Contestant, Setting, Unavailable, jax_recurrent
from .jax_attention import Attend, AttentionModel, Cache, grown
from .jax_gpt2 import Gpt2
from .jax_products import DTYPES, Products
from .jax_steps import TOKENS_PER_CALL, looped

SMALLEST_CACHE = 256


class JaxByHand:
    """The jitted steps and prefill, the weights as they read them, and the cache."""

    def __init__(self, subject: Subject, setting: Setting, program: Llama | Gpt2) -> None:
        self.name = f"JAX by hand, {setting.dtype}"
        self._capacity = min(setting.capacity, subject.window or setting.capacity)
        self._has_ring = subject.window is not None
        self._weights = program.arrange(subject.weights)
        self.weight_bytes = program.step_bytes(self._weights)
        self._prefill = jax.jit(program.prefill, static_argnums=2)
        self._steps = looped(program.step)
        self._grow = jax.jit(grown, static_argnums=1)
        self._cache: Cache = []
        self._token = self._position = jnp.int32(0)
        self._seen = 0

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        self._seen = prompts.shape[1]
        slots = self._slots(self._seen + 1)
        self._token, self._cache = self._prefill(self._weights, jnp.asarray(prompts), slots)
        self._position = jnp.int32(self._seen)
        return np.asarray(self._token)

    def decode(self, count: int) -> np.ndarray:
        parts = []
        while count > 0:
            size = min(count, TOKENS_PER_CALL, self._room())
            chosen, self._token, self._position, self._cache = self._steps(
                self._weights, self._cache, self._token, self._position, size
            )
            parts.append(chosen[:size].T)
            self._seen += size
            count -= size
        return np.concatenate([np.asarray(part) for part in parts], axis=1)

    def _room(self) -> int:
        """How many positions fit into the cache, which grows if there are none."""
        slots = self._slots(self._seen + 1)
        if slots > self._cache[0][0].shape[1]:
            self._cache = self._grow(self._cache, slots)
        if self._has_ring and slots == self._capacity:
            return TOKENS_PER_CALL
        assert self._seen < slots, f"the text is longer than its room of {slots}"
        return slots - self._seen

    def _slots(self, positions: int) -> int:
        """The smallest cache that holds so many positions: it doubles up to the window or the capacity."""
        size = SMALLEST_CACHE
        while size < positions:
            size *= 2
        return min(size, self._capacity)


class Llama(AttentionModel):
    """The functions to be jitted."""

    def __init__(self, config: Mapping[str, Any], products: Products) -> None:
        super().__init__(config.get("sliding_window"))
        self._products = products
        self._layers = config["num_hidden_layers"]
        self._heads, self._key_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self._size = config.get("head_dim") or config["hidden_size"] // self._heads
        self._epsilon = config["rms_norm_eps"]
        power = -np.arange(0, self._size, 2, dtype=np.float32) / self._size
        self._frequencies = np.float32(config["rope_theta"]) ** power

    def arrange(self, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Merged projections in the type and layout that products want; norms stay f32."""

        def merged(prefix: str, *names: str) -> Any:
            parts = [weights[f"{prefix}.{name}_proj.weight"] for name in names]
            return self._products.matrix(np.concatenate(parts) if len(parts) > 1 else parts[0])

        layers = []
        for i in range(self._layers):
            layer = f"model.layers.{i}"
            layers.append(
                {
                    "qkv": merged(f"{layer}.self_attn", "q", "k", "v"),
                    "out": merged(f"{layer}.self_attn", "o"),
                    "gate_up": merged(f"{layer}.mlp", "gate", "up"),
                    "down": merged(f"{layer}.mlp", "down"),
                    "attention_norm": jnp.asarray(weights[f"{layer}.input_layernorm.weight"]),
                    "mlp_norm": jnp.asarray(weights[f"{layer}.post_attention_layernorm.weight"]),
                }
            )
        table, head = weights["model.embed_tokens.weight"], weights.get("lm_head.weight")
        norm = jnp.asarray(weights["model.norm.weight"])
        return {"layers": layers, "norm": norm, **self._products.embedding(table, head)}

    def step_bytes(self, weights: Mapping[str, Any]) -> int:
        """What a step reads: all but the table of which it takes a row."""
        read = {name: part for name, part in weights.items() if name != "table"}
        return sum(array.nbytes for array in jax.tree.leaves(read))

    # ---- the model ----

    def body(self, weights: Any, tokens: jax.Array, positions: jax.Array, attend: Attend) -> Any:
        product = self._products.apply
        x = self._products.taken(weights.get("table", weights["head"]), tokens)
        rotations, kept = self._rotations(positions), []
        for i, w in enumerate(weights["layers"]):
            q, k, v = self._projected(w, self._norm(x, w["attention_norm"]), rotations)
            mixed, cache = attend(i, q, k, v)
            kept.append(cache)
            x = x + product(w["out"], mixed)
            gate, up = jnp.split(product(w["gate_up"], self._norm(x, w["mlp_norm"])), 2, axis=-1)
            x = x + product(w["down"], jax.nn.silu(gate) * up)
        logits = product(weights["head"], self._norm(x[:, -1], weights["norm"]))
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), kept

    def _norm(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self._epsilon) * weight

    def _rotations(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        angle = positions.astype(jnp.float32)[..., None] * self._frequencies
        return jnp.cos(angle), jnp.sin(angle)

    def _projected(
        self, w: Any, h: jax.Array, rotations: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, ...]:
        """Queries [B, H, G, T, D], keys and values [B, H, T, D]; the first two rotated."""
        rows, length = h.shape[:2]
        joined = self._products.apply(w["qkv"], h).reshape(rows, length, -1, self._size)
        joined = joined.transpose(0, 2, 1, 3)
        heads, key_heads = self._heads, self._key_heads
        turned = rotate(joined[:, : heads + key_heads], *rotations)
        q = turned[:, :heads].reshape(rows, key_heads, -1, length, self._size) * np.float32(self._size**-0.5)
        return q, turned[:, heads:], joined[:, heads + key_heads :]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the two halves of the last axis."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


PROGRAMS = {"llama": Llama, "mistral": Llama, "gpt2": Gpt2}


def prepare(subject: Subject, setting: Setting) -> Contestant:
    kind = subject.config["model_type"]
    if kind not in (*PROGRAMS, *jax_recurrent.PROGRAMS):
        known = ", ".join((*PROGRAMS, *jax_recurrent.PROGRAMS))
        raise Unavailable(f"programs are written for {known}, not for {kind}")
    if setting.dtype not in DTYPES:
        raise Unavailable(f"it has no form of weights kept as {setting.dtype}")
    products = Products(setting.dtype, setting.rows)
    if kind in jax_recurrent.PROGRAMS:
        return jax_recurrent.prepare(subject, setting, products)
    return JaxByHand(subject, setting, PROGRAMS[kind](subject.config, products))
