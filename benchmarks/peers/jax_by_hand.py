"""A good hand-written JAX program for Llama-like models, as one writes it without a compiler for it.

Unrolled over layers; queries, keys and values are one product, gate and up another; caches [B, H, S, D], one
for each layer, donated, never reallocated but when they are full: then they double, so a step reads at most
twice what is used. A sliding window has a ring of exactly its size. Queries of a group share a product. The
token is chosen in the step and fed back without leaving the device, so calls overlap with the host. Prompts
are one call, with blocks of queries that read no keys behind them.

The form of a product depends on the type of the weights and on the rows, as measured on CPUs with AVX-512:
XLA's product of one row with bf16 or int8 weights is 10 times slower than multiplying and reducing, and f32
weights serve several rows best as [in, out].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ..subjects import Subject
from . import Setting, Unavailable, jax_recurrent

Cache = list[tuple[jax.Array, jax.Array]]
SMALLEST_CACHE = 256
QUERY_BLOCK = 256  # queries of a prompt that share a product
LLAMAS = ("llama", "mistral")


class JaxByHand:
    """The jitted step and prefill, the weights as they read them, and the cache."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.name = f"JAX by hand, {setting.dtype}"
        self._program = Llama(subject.config, setting)
        self._capacity = min(setting.capacity, subject.window or setting.capacity)
        self._weights = self._program.arrange(subject.weights)
        leaves = jax.tree.leaves(self._weights)
        self.weight_bytes = sum(array.nbytes for array in leaves)
        self._prefill = jax.jit(self._program.prefill, static_argnums=2)
        self._step = jax.jit(self._program.step, donate_argnums=1)
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
        chosen = []
        for _ in range(count):
            slots = self._slots(self._seen + 1)
            if slots > self._cache[0][0].shape[2]:
                self._cache = self._grow(self._cache, slots)
            self._token, self._position, self._cache = self._step(
                self._weights, self._cache, self._token, self._position
            )
            self._seen += 1
            chosen.append(self._token)
        return np.stack([np.asarray(token) for token in chosen], axis=1)

    def _slots(self, positions: int) -> int:
        """The smallest cache that holds so many positions: it doubles up to the window or the capacity."""
        size = SMALLEST_CACHE
        while size < positions:
            size *= 2
        return min(size, self._capacity)


def grown(cache: Cache, slots: int) -> Cache:
    """The same caches with more room."""
    return [
        tuple(jnp.pad(part, ((0, 0), (0, 0), (0, slots - part.shape[2]), (0, 0))) for part in layer)  # type: ignore[misc]
        for layer in cache
    ]


class Llama:
    """The functions to be jitted."""

    def __init__(self, config: Mapping[str, Any], setting: Setting) -> None:
        self._layers = config["num_hidden_layers"]
        self._heads, self._key_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self._size = config.get("head_dim") or config["hidden_size"] // self._heads
        self._epsilon = config["rms_norm_eps"]
        self._window = config.get("sliding_window")
        self._dtype, self._rows = setting.dtype, setting.rows
        power = -np.arange(0, self._size, 2, dtype=np.float32) / self._size
        self._frequencies = np.float32(config["rope_theta"]) ** power

    # ---- weights ----

    def arrange(self, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Merged projections in the type and layout that products want; norms stay f32."""

        def merged(prefix: str, *names: str) -> Any:
            parts = [weights[f"{prefix}.{name}_proj.weight"] for name in names]
            return self._matrix(np.concatenate(parts) if len(parts) > 1 else parts[0])

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
        table = weights["model.embed_tokens.weight"]
        head = self._matrix(weights.get("lm_head.weight", table))
        arranged = {"layers": layers, "norm": jnp.asarray(weights["model.norm.weight"]), "head": head}
        # The table is read by row, so it can be shared with a head that is not kept as its transpose.
        is_turned = self._dtype == "f32" and self._rows > 1
        return (
            {**arranged, "table": jnp.asarray(table)}
            if is_turned or "lm_head.weight" in weights
            else arranged
        )

    def _matrix(self, matrix: np.ndarray) -> Any:
        """[out, in] as products want it."""
        if self._dtype == "int8":
            scale = np.maximum(np.abs(matrix).max(axis=1), np.float32(1e-30)) / np.float32(127)
            integers = np.rint(matrix / scale[:, None]).astype(np.int8)
            return jnp.asarray(integers), jnp.asarray(scale)
        if self._dtype == "bf16":
            return jnp.asarray(matrix.astype(ml_dtypes.bfloat16))
        return jnp.asarray(matrix if self._rows == 1 else np.ascontiguousarray(matrix.T))

    def _product(self, matrix: Any, x: jax.Array) -> jax.Array:
        """x [..., in] → [..., out]."""
        flat = x.reshape(-1, x.shape[-1])
        y = self._one(matrix, flat[0])[None] if len(flat) == 1 else self._many(matrix, flat)
        return y.reshape(*x.shape[:-1], -1)

    def _one(self, matrix: Any, x: jax.Array) -> jax.Array:
        if self._dtype == "int8":
            integers, scale = matrix
            return jnp.sum(integers.astype(jnp.float32) * x, axis=-1) * scale
        if self._dtype == "bf16":
            return jnp.sum(matrix.astype(jnp.float32) * x, axis=-1)
        return matrix @ x if self._rows == 1 else x @ matrix

    def _many(self, matrix: Any, x: jax.Array) -> jax.Array:
        if self._dtype == "int8":
            integers, scale = matrix
            return (x @ integers.astype(jnp.float32).T) * scale
        if self._dtype == "bf16":
            dimensions = (((1,), (1,)), ((), ()))
            return jax.lax.dot_general(
                x.astype(jnp.bfloat16), matrix, dimensions, preferred_element_type=jnp.float32
            )
        return x @ (matrix.T if self._rows == 1 else matrix)

    # ---- the model ----

    def _norm(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self._epsilon) * weight

    def _rotations(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        angle = positions.astype(jnp.float32)[..., None] * self._frequencies
        return jnp.cos(angle), jnp.sin(angle)

    def _body(self, weights: Any, tokens: jax.Array, positions: jax.Array, attend: Callable[..., Any]) -> Any:
        """Tokens [B, T] at positions [T] → (token i32[B] behind the last, what ``attend`` kept per layer)."""
        x = self._embedded(weights, tokens)
        rotations, kept = self._rotations(positions), []
        for i, w in enumerate(weights["layers"]):
            q, k, v = self._projected(w, self._norm(x, w["attention_norm"]), rotations)
            mixed, cache = attend(i, q, k, v)
            kept.append(cache)
            x = x + self._product(w["out"], mixed)
            gate, up = jnp.split(self._product(w["gate_up"], self._norm(x, w["mlp_norm"])), 2, axis=-1)
            x = x + self._product(w["down"], jax.nn.silu(gate) * up)
        logits = self._product(weights["head"], self._norm(x[:, -1], weights["norm"]))
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), kept

    def _embedded(self, weights: Any, tokens: jax.Array) -> jax.Array:
        table = weights.get("table", weights["head"])
        if isinstance(table, tuple):
            integers, scale = table
            return integers[tokens].astype(jnp.float32) * scale[tokens][..., None]
        return table[tokens].astype(jnp.float32)

    def _projected(
        self, w: Any, h: jax.Array, rotations: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, ...]:
        """Queries [B, H, G, T, D], keys and values [B, H, T, D]; the first two rotated."""
        rows, length = h.shape[:2]
        joined = self._product(w["qkv"], h).reshape(rows, length, -1, self._size).transpose(0, 2, 1, 3)
        heads, key_heads = self._heads, self._key_heads
        turned = rotate(joined[:, : heads + key_heads], *rotations)
        q = turned[:, :heads].reshape(rows, key_heads, -1, length, self._size) * np.float32(self._size**-0.5)
        return q, turned[:, heads:], joined[:, heads + key_heads :]

    def prefill(self, weights: Any, tokens: jax.Array, slots: int) -> tuple[jax.Array, Cache]:
        """Reads tokens [B, T] from the start into caches of ``slots``."""
        length = tokens.shape[1]

        def attend(_: int, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            mixed = [self._block(q, k, v, start) for start in range(0, length, QUERY_BLOCK)]
            return joined_heads(jnp.concatenate(mixed, axis=3)), (in_slots(k, slots), in_slots(v, slots))

        return self._body(weights, tokens, jnp.arange(length), attend)

    def _block(self, q: jax.Array, k: jax.Array, v: jax.Array, start: int) -> jax.Array:
        """Queries from ``start`` on over the keys that they may see."""
        end = min(start + QUERY_BLOCK, q.shape[3])
        first = 0 if self._window is None else max(0, start - self._window + 1)
        distance = np.arange(start, end)[:, None] - np.arange(first, end)
        seen = (distance >= 0) & (distance < (self._window or end))
        return attention(q[:, :, :, start:end], k[:, :, first:end], v[:, :, first:end], seen)

    def step(self, weights: Any, cache: Cache, token: jax.Array, position: jax.Array) -> Any:
        """(weights, cache, token i32[B], position i32[]) → (next token, next position, cache)."""
        slots = cache[0][0].shape[2]
        slot = position % slots  # a cache that is no ring is never full
        seen = (jnp.arange(slots) <= position)[None]

        def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=2)
            keys, values = write(cache[i][0], k), write(cache[i][1], v)
            return joined_heads(attention(q, keys, values, seen)), (keys, values)

        token, cache = self._body(weights, token[:, None], position[None], attend)
        return token, position + 1, cache


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the two halves of the last axis."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, seen: Any) -> jax.Array:
    """Queries [B, H, G, T, D] over keys and values [B, H, S, D], where ``seen`` [T, S]."""
    rows, heads, group, length, size = q.shape
    folded = q.reshape(rows, heads, group * length, size)
    scores = jnp.einsum("bhqd,bhsd->bhqs", folded, k).reshape(rows, heads, group, length, -1)
    shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    mixed = jnp.einsum("bhqs,bhsd->bhqd", shares.reshape(rows, heads, group * length, -1), v)
    return mixed.reshape(rows, heads, group, length, size)


def joined_heads(mixed: jax.Array) -> jax.Array:
    """[B, H, G, T, D] → [B, T, H·G·D]."""
    rows, heads, group, length, size = mixed.shape
    return mixed.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads * group * size)


def in_slots(values: jax.Array, slots: int) -> jax.Array:
    """[B, H, T, D] as a cache of ``slots``: position p lies in slot p modulo their number."""
    length = values.shape[2]
    if length <= slots:
        return jnp.pad(values, ((0, 0), (0, 0), (0, slots - length), (0, 0)))
    return jnp.roll(values[:, :, length - slots :], length % slots, axis=2)


def prepare(subject: Subject, setting: Setting) -> JaxByHand | jax_recurrent.JaxRecurrent:
    if subject.config["model_type"] in jax_recurrent.PROGRAMS:
        return jax_recurrent.prepare(subject, setting)
    if subject.config["model_type"] not in LLAMAS:
        raise Unavailable(f"it is written for Llama-like models, not for {subject.config['model_type']}")
    if setting.dtype not in ("f32", "bf16", "int8"):
        raise Unavailable(f"it has no form of weights kept as {setting.dtype}")
    return JaxByHand(subject, setting)
