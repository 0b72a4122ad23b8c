"""This machine: what it is, and its limits as measured, what it reads per second and multiplies per second.

    python -m benchmarks.machine [--device gpu] [--out FILE]

A device is ``cpu``, or ``gpu``: the first that jax has.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from systolic.backends.processor import this_processor

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
READ_BYTES = {"cpu": 1 << 28, "gpu": 1 << 31}  # read at once: more than caches hold
ROW = 4096  # numbers in one of the rows that are read side by side
MATRIX = {"cpu": 2048, "gpu": 8192}  # a side of the matrices whose product is timed
DEVICES = tuple(READ_BYTES)
PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}  # what jax calls them


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option of where programs run, for ``choose``."""
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where programs run (default: cpu)")


def choose(device: str) -> None:
    """Makes a device the one that jax, and so we, run on; SystemExit if there is none. To be called first."""
    os.environ["JAX_PLATFORMS"] = ",".join(dict.fromkeys([PLATFORMS[device], "cpu"]))
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    try:
        is_there = jax.devices()[0].platform == device
    except RuntimeError:
        is_there = False
    if not is_there:
        raise SystemExit(f"--device {device}: jax finds none (for a GPU, pip install 'jax[cuda13]')")


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
def _reader(device: str) -> Callable[[], Any]:
    """Reads so many bytes once: on a CPU a part on each core, by turns as one dot product, which is one
    stream, and as those of rows with a vector, of which some are read side by side. Which is faster is the
    machine's."""
    count = READ_BYTES[device] // 4
    if device != "cpu":
        vector, total = jnp.ones(count, jnp.float32), jax.jit(jnp.sum)
        return lambda: total(vector).block_until_ready()
    parts = np.array_split(np.ones(count, np.float32), THREADS)
    beside, pool = np.ones(ROW, np.float32), ThreadPoolExecutor(THREADS)
    ways = cycle(
        [lambda part: part @ part, lambda part: part[: len(part) // ROW * ROW].reshape(-1, ROW) @ beside]
    )

    def read() -> None:
        list(pool.map(next(ways), parts))

    return read


def read_bandwidth(seconds: float = 0.5, device: str = "cpu") -> float:
    """Bytes per second that products of f32 on all cores read from memory, at best; sums on a GPU."""
    return READ_BYTES[device] / best_seconds(_reader(device), seconds)


def matmul_peak(dtype: str, seconds: float = 1.0, device: str = "cpu") -> tuple[float, str]:
    """Operations per second of the fastest library at a square product of ``dtype``, and its name."""
    side = MATRIX[device]
    found = {"XLA": _jax_product(dtype, side)}
    if device == "cpu" and find_spec("torch"):
        found["oneDNN"] = _torch_product(dtype, side)
    rates = {name: 2 * side**3 / best_seconds(work, seconds) for name, work in found.items()}
    name = max(rates, key=lambda name: rates[name])
    return rates[name], name


def _jax_product(dtype: str, side: int) -> Callable[[], Any]:
    matrix = jnp.ones((side, side), {"f32": jnp.float32, "bf16": jnp.bfloat16}[dtype])
    product = jax.jit(lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ()))))
    return lambda: product(matrix, matrix).block_until_ready()


def _torch_product(dtype: str, side: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(THREADS)
    matrix = torch.ones(side, side, dtype={"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
    return lambda: matrix @ matrix.T


def describe(device: str = "cpu") -> dict[str, Any]:
    """The processor, its kind, its cores and memory; a device beside it if that is meant, whose name is the
    kind then."""
    processor, memory = this_processor(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = {"kind": processor.kind, "processor": processor.name, "threads": THREADS, "memory": memory}
    if device == "cpu":
        return found
    name = jax.devices()[0].device_kind
    return {**found, "kind": _in_file_names(name), "device": name}


def name_of(here: Mapping[str, Any]) -> str:
    """What a machine that was described is called: as its device, or else as its processor."""
    return str(here.get("device", here["processor"]))


def folder_of(here: Mapping[str, Any]) -> str:
    """Where results of a machine that was described are."""
    return _in_file_names(name_of(here))


def _in_file_names(name: str) -> str:
    """Small letters, digits, and a hyphen for all between them."""
    return "-".join(re.findall("[a-z0-9]+", name.lower()))


def resident_bytes(device: str = "cpu") -> int:
    """What this process holds in memory now, without the files that it maps; of a GPU's, what jax holds."""
    if device != "cpu":
        return int((jax.devices()[0].memory_stats() or {})["bytes_in_use"])
    fields = Path("/proc/self/status").read_text().splitlines()
    (anonymous,) = (line.split()[1] for line in fields if line.startswith("RssAnon"))
    return 1024 * int(anonymous)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_device(parser)
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    choose(options.device)
    text = json.dumps(describe(options.device), indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
