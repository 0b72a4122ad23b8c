"""What hand-written JAX models with attention share: caches, their ring, prompts in blocks of queries.

A cache is [B·H, S, D], as products want it: as [B, H, S, D] it is seen through a change of shape, which XLA
joins with the update; so it makes the update twice, and copies every cache four times in each step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Cache = list[tuple[jax.Array, jax.Array]]  # keys and values [B·H, S, D] of each layer
Attend = Callable[[int, jax.Array, jax.Array, jax.Array], tuple[jax.Array, tuple[jax.Array, jax.Array]]]
QUERY_BLOCK = 256  # queries of a prompt that share a product


class AttentionModel:
    """A model whose ``body`` (weights, tokens [B, T], positions [T], attend) yields the token behind the
    last position, i32[B], and what ``attend`` kept of each layer. That is given queries [B, H, G, T, D], keys
    and values [B, H, T, D], and yields what is mixed, [B, T, H·G·D]."""

    def __init__(self, window: int | None) -> None:
        self._window = window

    def body(self, weights: Any, tokens: jax.Array, positions: jax.Array, attend: Attend) -> Any:
        raise NotImplementedError

    def prefill(self, weights: Any, tokens: jax.Array, slots: int) -> tuple[jax.Array, Cache]:
        """Reads tokens [B, T] from the start into caches of ``slots``."""
        length = tokens.shape[1]

        def attend(_: int, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            q, k, v = q_of_heads(q), of_heads(k), of_heads(v)
            mixed = [self._block(q, k, v, start) for start in range(0, length, QUERY_BLOCK)]
            return joined_heads(jnp.concatenate(mixed, axis=2), len(tokens)), (
                in_slots(k, slots),
                in_slots(v, slots),
            )

        return self.body(weights, tokens, jnp.arange(length), attend)

    def _block(self, q: jax.Array, k: jax.Array, v: jax.Array, start: int) -> jax.Array:
        """Queries from ``start`` on over the keys that they may see."""
        end = min(start + QUERY_BLOCK, q.shape[2])
        first = 0 if self._window is None else max(0, start - self._window + 1)
        distance = np.arange(start, end)[:, None] - np.arange(first, end)
        seen = (distance >= 0) & (distance < (self._window or end))
        return attention(q[:, :, start:end], k[:, first:end], v[:, first:end], seen)

    def step(self, weights: Any, cache: Cache, token: jax.Array, position: jax.Array) -> Any:
        """(weights, cache, token i32[B], position i32[]) → (next token, next position, cache)."""
        slots = cache[0][0].shape[1]
        slot = position % slots  # a cache that is no ring is never full
        seen = (jnp.arange(slots) <= position)[None]

        def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=1)
            keys, values = write(cache[i][0], of_heads(k)), write(cache[i][1], of_heads(v))
            return joined_heads(attention(q_of_heads(q), keys, values, seen), len(token)), (keys, values)

        token, cache = self.body(weights, token[:, None], position[None], attend)
        return token, position + 1, cache


def of_heads(values: jax.Array) -> jax.Array:
    """[B, H, T, D] → [B·H, T, D]."""
    return values.reshape(-1, *values.shape[2:])


def q_of_heads(q: jax.Array) -> jax.Array:
    """[B, H, G, T, D] → [B·H, G, T, D]."""
    return q.reshape(-1, *q.shape[2:])


def attention(q: jax.Array, k: jax.Array, v: jax.Array, seen: Any) -> jax.Array:
    """Queries [B·H, G, T, D] over keys and values [B·H, S, D], where ``seen`` [T, S]."""
    heads, group, length, size = q.shape
    folded = q.reshape(heads, group * length, size)
    scores = jnp.einsum("hqd,hsd->hqs", folded, k).reshape(heads, group, length, -1)
    shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    mixed = jnp.einsum("hqs,hsd->hqd", shares.reshape(heads, group * length, -1), v)
    return mixed.reshape(heads, group, length, size)


def joined_heads(mixed: jax.Array, rows: int) -> jax.Array:
    """[B·H, G, T, D] → [B, T, H·G·D]."""
    *_, length, size = mixed.shape
    return mixed.reshape(rows, -1, length, size).transpose(0, 2, 1, 3).reshape(rows, length, -1)


def in_slots(values: jax.Array, slots: int) -> jax.Array:
    """[B·H, T, D] as a cache of ``slots``: position p lies in slot p modulo their number."""
    length = values.shape[1]
    if length <= slots:
        return jnp.pad(values, ((0, 0), (0, slots - length), (0, 0)))
    return jnp.roll(values[:, length - slots :], length % slots, axis=1)


def grown(cache: Cache, slots: int) -> Cache:
    """The same caches with more room."""
    return [
        tuple(jnp.pad(part, ((0, 0), (0, slots - part.shape[1]), (0, 0))) for part in layer)  # type: ignore[misc]
        for layer in cache
    ]
