"""Steps in a loop on the device: one call for many tokens, with what is kept donated and written in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

TOKENS_PER_CALL = 64
Step = Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array, Any]]


def looped(step: Step) -> Callable[..., Any]:
    """``step`` (weights, kept, token i32[B], position) → (token, position, kept), ``count`` times:

    (weights, kept, token, position, count) → (chosen i32[64, B], token, position, kept).
    """

    def steps(weights: Any, kept: Any, token: jax.Array, position: jax.Array, count: jax.Array) -> Any:
        def body(i: jax.Array, carried: Any) -> Any:
            chosen, token, position, kept = carried
            token, position, kept = step(weights, kept, token, position)
            return chosen.at[i].set(token), token, position, kept

        chosen = jnp.zeros((TOKENS_PER_CALL, *token.shape), jnp.int32)
        return jax.lax.fori_loop(0, count, body, (chosen, token, position, kept))

    return jax.jit(steps, donate_argnums=1)
