"""A roofline of a device that jax has, measured on the spot: a matmul in each element type, and a copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..compiler.cost.targets import Memory, Target
from ..ir.errors import SystolicError

# [element type: (of operands, of sums)]. f32 is computed in f32, not in fewer bits.
DTYPES = {
    "f32": (jnp.float32, jnp.float32),
    "bf16": (jnp.bfloat16, jnp.float32),
    "f16": (jnp.float16, jnp.float32),
    "i8": (jnp.int8, jnp.int32),
}
MATMUL_SIZE = 8192
COPY_BYTES = 1 << 30
REPEATS = 5


def measured_device(platform: str, matmul_size: int = MATMUL_SIZE, copy_bytes: int = COPY_BYTES) -> Target:
    """The target ``platform``: peak operations per second per element type and memory bandwidth of its first
    device. ``SystolicError`` where jax has no such device. What the device cannot multiply has no peak."""
    try:
        device = jax.devices(platform)[0]
    except RuntimeError as error:
        have = ", ".join(sorted({found.platform for found in jax.devices()}))
        raise SystolicError(
            f"jax {jax.__version__} has no {platform} on this machine (it has: {have}); "
            f"install jax with support for it, or calibrate one of these"
        ) from error
    peak = {name: _matmul_rate(device, matmul_size, *types) for name, types in DTYPES.items()}
    how = f"measured with jax {jax.__version__} on {device.device_kind}"
    total = (device.memory_stats() or {}).get("bytes_limit")
    return Target(
        name=platform,
        description=f"roofline of {device.device_kind}",
        arrays=None,
        memory=Memory(0, hbm_bytes=total, hbm_bytes_per_second=_copy_rate(device, copy_bytes)),
        peak={name: rate for name, rate in peak.items() if rate is not None},
        sources={
            "memory": f"{how}: adding to {copy_bytes >> 20} MiB, read and written bytes counted",
            "memory.hbm_bytes": "the limit that jax tells",
            "peak": f"{how}: {matmul_size} x {matmul_size} matmul",
        },
    )


def _fastest(action: Callable[[], Any]) -> float:
    """Seconds of the fastest of several runs, after one to compile."""
    jax.block_until_ready(action())
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(action())
        times.append(time.perf_counter() - start)
    return min(times)


def _matmul_rate(device: Any, size: int, dtype: Any, sums: Any) -> float | None:
    @jax.jit
    def product(x: Any, y: Any) -> Any:
        return lax.dot(x, y, precision=lax.Precision.HIGHEST, preferred_element_type=sums)

    square = jax.device_put(jnp.ones((size, size), dtype), device)
    try:
        return 2 * size**3 / _fastest(lambda: product(square, square))
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return None


def _copy_rate(device: Any, copy_bytes: int) -> float:
    add = jax.jit(lambda x: x + 1)
    values = jax.device_put(jnp.ones(copy_bytes // 4, jnp.float32), device)
    return 2 * copy_bytes / _fastest(lambda: add(values))
