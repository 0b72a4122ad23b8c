"""Products with weights in the form that XLA's CPU compiler runs fastest, as measured with AVX-512.

One vector of f32 and weights [out, in] are a plain product. bf16 weights and one vector are not: a product of
one bf16 row has no kernel of a library, and XLA joins a sum of widened products with what computes the
vector, anew for each result. The vector as the sum of two bf16 ones makes two rows, which have a kernel: 3
times as fast as the sum, and as exact. The same with integers of 8 bits: 1.5 times as fast. f32 weights serve
several rows best as [in, out].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

DTYPES = ("f32", "bf16", "int8")
OF_LAST = (((1,), (1,)), ((), ()))  # rows [n, in] times a matrix [out, in]


@dataclass(frozen=True)
class Products:
    """Of weights kept as ``dtype``, for steps of ``rows`` texts."""

    dtype: str
    rows: int

    @property
    def are_turned(self) -> bool:
        """Whether matrices are kept as [in, out], so that no row can be taken from them."""
        return self.dtype == "f32" and self.rows > 1

    def matrix(self, matrix: np.ndarray) -> Any:
        """[out, in] as products want it; integers with a scale for each row."""
        if self.dtype == "int8":
            scale = np.maximum(np.abs(matrix).max(axis=1), np.float32(1e-30)) / np.float32(127)
            return jnp.asarray(np.rint(matrix / scale[:, None]).astype(np.int8)), jnp.asarray(scale)
        if self.dtype == "bf16":
            return jnp.asarray(matrix.astype(ml_dtypes.bfloat16))
        return jnp.asarray(np.ascontiguousarray(matrix.T if self.are_turned else matrix))

    def apply(self, matrix: Any, x: jax.Array) -> jax.Array:
        """x [..., in] → [..., out]."""
        flat = x.reshape(-1, x.shape[-1])
        y = self._one(matrix, flat) if len(flat) == 1 else self._many(matrix, flat)
        return y.reshape(*x.shape[:-1], -1)

    def _one(self, matrix: Any, x: jax.Array) -> jax.Array:
        if self.dtype == "int8":
            integers, scale = matrix
            unit = jnp.max(jnp.abs(x)) / 127 + jnp.float32(1e-30)
            high = jnp.rint(x / unit)
            low = jnp.rint((x / unit - high) * 254)  # from -127 to 127: 1/254 of a unit each
            halves = jnp.concatenate([high, low]).astype(jnp.int8)
            y = jax.lax.dot_general(halves, integers, OF_LAST, preferred_element_type=jnp.int32)
            return (y[0] + y[1] * jnp.float32(1 / 254)) * (unit * scale)
        if self.dtype == "bf16":
            high = x.astype(jnp.bfloat16)
            low = (x - high.astype(jnp.float32)).astype(jnp.bfloat16)
            halves = jnp.concatenate([high, low])
            return jax.lax.dot_general(halves, matrix, OF_LAST, preferred_element_type=jnp.float32).sum(0)
        return x @ matrix if self.are_turned else matrix @ x[0]

    def _many(self, matrix: Any, x: jax.Array) -> jax.Array:
        if self.dtype == "int8":
            integers, scale = matrix
            return (x @ integers.astype(jnp.float32).T) * scale
        if self.dtype == "bf16":
            return jax.lax.dot_general(
                x.astype(jnp.bfloat16), matrix, OF_LAST, preferred_element_type=jnp.float32
            )
        return x @ (matrix if self.are_turned else matrix.T)

    def taken(self, table: Any, tokens: jax.Array) -> jax.Array:
        """Rows of a table [V, D], widened: f32[..., D]."""
        if isinstance(table, tuple):
            integers, scale = table
            return integers[tokens].astype(jnp.float32) * scale[tokens][..., None]
        return table[tokens].astype(jnp.float32)

    def embedding(self, table: np.ndarray, head: np.ndarray | None) -> dict[str, Any]:
        """``head`` (None: the table) for products, and the ``table`` where rows cannot be taken from that."""
        arranged = {"head": self.matrix(table if head is None else head)}
        if self.are_turned or head is not None:
            arranged["table"] = jnp.asarray(table)
        return arranged
