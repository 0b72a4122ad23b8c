"""A roofline of this machine's CPU, measured on the spot: NumPy's matmul and a copy of memory."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import numpy as np

from .targets import Memory, Target

MATMUL_SIZE = 1024
COPY_BYTES = 256 * 2**20
REPEATS = 5


def measured_cpu() -> Target:
    """The target ``cpu``: peak f32 and f64 operations per second and memory bandwidth of this machine."""
    peak = {name: _matmul_rate(dtype) for name, dtype in (("f32", np.float32), ("f64", np.float64))}
    source = f"measured with NumPy {np.__version__} on {platform.processor() or platform.machine()}"
    return Target(
        name="cpu",
        description="roofline of this machine's CPU",
        arrays=None,
        memory=Memory(on_chip_bytes=0, hbm_bytes_per_second=_copy_rate()),
        peak=peak,
        sources={
            "memory": f"{source}: copying {COPY_BYTES >> 20} MiB, read and written bytes counted",
            "peak": f"{source}: {MATMUL_SIZE} x {MATMUL_SIZE} matmul",
        },
    )


def _fastest(action: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs, after one to warm up."""
    action()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def _matmul_rate(dtype: type[np.floating]) -> float:
    square: np.ndarray = np.ones((MATMUL_SIZE, MATMUL_SIZE), dtype)
    result = np.empty_like(square)
    return 2 * MATMUL_SIZE**3 / _fastest(lambda: np.matmul(square, square, out=result))


def _copy_rate() -> float:
    source = np.ones(COPY_BYTES // 8)
    copy = np.empty_like(source)
    return 2 * COPY_BYTES / _fastest(lambda: np.copyto(copy, source))
