"""The limits of this machine, as measured: what it reads per second, what it multiplies per second."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
READ_BYTES = 1 << 28  # read at once: more than caches hold
MATRIX = 2048  # a side of the matrices whose product is timed


def best_seconds(work: Callable[[], Any], seconds: float) -> float:
    """The shortest of the calls that fit into ``seconds``, the first left out."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


@cache
def _reader() -> tuple[Callable[[], Any], int]:
    """Reads 256 MiB once, a part on each core, as dot products; and how many bytes that is."""
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), THREADS)
    pool = ThreadPoolExecutor(THREADS)
    return lambda: list(pool.map(lambda part: float(np.dot(part, part)), parts)), READ_BYTES


def read_bandwidth(seconds: float = 0.5) -> float:
    """Bytes per second that dot products of f32 on all cores read from memory, at best."""
    read, size = _reader()
    return size / best_seconds(read, seconds)


def matmul_peak(dtype: str, seconds: float = 1.0) -> tuple[float, str]:
    """Operations per second of the fastest library at a square product of ``dtype``, and its name."""
    found = {"XLA": _jax_product(dtype)}
    if find_spec("torch"):
        found["oneDNN"] = _torch_product(dtype)
    rates = {name: 2 * MATRIX**3 / best_seconds(work, seconds) for name, work in found.items()}
    name = max(rates, key=lambda name: rates[name])
    return rates[name], name


def _jax_product(dtype: str) -> Callable[[], Any]:
    matrix = jnp.ones((MATRIX, MATRIX), {"f32": jnp.float32, "bf16": jnp.bfloat16}[dtype])
    product = jax.jit(lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ()))))
    return lambda: product(matrix, matrix).block_until_ready()


def _torch_product(dtype: str) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(THREADS)
    matrix = torch.ones(MATRIX, MATRIX, dtype={"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
    return lambda: matrix @ matrix.T


def describe() -> dict[str, Any]:
    """The processor, its cores and memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"processor": names[0] if names else platform.processor(), "threads": THREADS, "memory": memory}


def resident_bytes() -> int:
    """What this process holds in memory now, without the files that it maps."""
    fields = Path("/proc/self/status").read_text().splitlines()
    (anonymous,) = (line.split()[1] for line in fields if line.startswith("RssAnon"))
    return 1024 * int(anonymous)
