"""A good hand-written Llama decode step in JAX, as the peer: what one writes without a compiler for it.

Unrolled over layers, one donated cache per layer laid out ``[H, S, D]``, grouped queries without repeated
keys, weights ``[out, in]``, the rotation table computed once per step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Weights = Mapping[str, Any]
Cache = list[tuple[jax.Array, jax.Array]]


def empty_cache(config: Mapping[str, Any], capacity: int) -> Cache:
    """Keys and values of each layer, f32 [H, S, D]."""
    size = config["hidden_size"] // config["num_attention_heads"]
    shape = (config["num_key_value_heads"], capacity, size)
    return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config["num_hidden_layers"])]


def make_step(config: Mapping[str, Any]) -> Callable[..., tuple[jax.Array, Cache]]:
    """The jitted step: (weights, cache, token i32[], position i32[]) → (logits f32 [V], cache)."""
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    frequencies = np.float32(config["rope_theta"]) ** (-np.arange(0, size, 2, dtype=np.float32) / size)

    def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x) + config["rms_norm_eps"]) * weight

    def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def step(
        weights: Weights, cache: Cache, token: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, Cache]:
        angle = position.astype(jnp.float32) * frequencies
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        x = weights["model.embed_tokens.weight"][token]
        seen = jnp.arange(cache[0][0].shape[1]) <= position
        updated = []
        for i, (keys, values) in enumerate(cache):
            w = {k.split(f"layers.{i}.")[1]: v for k, v in weights.items() if f"layers.{i}." in k}
            h = norm(x, w["input_layernorm.weight"])
            q = rotate((w["self_attn.q_proj.weight"] @ h).reshape(key_heads, -1, size), cos, sin)
            k = rotate((w["self_attn.k_proj.weight"] @ h).reshape(key_heads, size), cos, sin)
            v = (w["self_attn.v_proj.weight"] @ h).reshape(key_heads, size)
            keys, values = keys.at[:, position].set(k), values.at[:, position].set(v)
            scores = jnp.einsum("hsd,hgd->hgs", keys, q) * size**-0.5
            probabilities = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
            mixed = jnp.einsum("hgs,hsd->hgd", probabilities, values)
            x = x + w["self_attn.o_proj.weight"] @ mixed.reshape(-1)
            h = norm(x, w["post_attention_layernorm.weight"])
            gate = jax.nn.silu(w["mlp.gate_proj.weight"] @ h)
            x = x + w["mlp.down_proj.weight"] @ (gate * (w["mlp.up_proj.weight"] @ h))
            updated.append((keys, values))
        return weights["model.embed_tokens.weight"] @ norm(x, weights["model.norm.weight"]), updated

    return jax.jit(step, donate_argnums=(1,))
