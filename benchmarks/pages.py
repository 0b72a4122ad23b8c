"""How fast memory is read by the size of its pages: what weights in large pages gain on this machine.

    python -m benchmarks.pages [--rounds 12] [--megabytes 512] [--json] [--out FILE]

Two buffers, one that asks the system for large pages and one that declines them, are read by turns as dot
products on all cores; ratios are those of turns side by side. Linux only.
"""

from __future__ import annotations

import argparse
import json
import mmap
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .contest import markdown, spread
from .machine import THREADS

ADVICE = {"large": mmap.MADV_HUGEPAGE, "4 KiB": mmap.MADV_NOHUGEPAGE}
READS = 4  # of the whole buffer in a turn; the fastest counts


def buffer(size: int, advice: int) -> np.ndarray:
    """f32 ones in pages as advised."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    array = np.frombuffer(memory, np.float32)
    array[:] = 1
    return array


def measure(size: int, rounds: int) -> dict[str, list[float]]:
    """Bytes per second by the kind of pages, one number for each round."""
    parts = {name: np.array_split(buffer(size, advice), THREADS) for name, advice in ADVICE.items()}
    rates: dict[str, list[float]] = {name: [] for name in parts}
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(rounds):
            for name, given in parts.items():
                seconds = []
                for _ in range(READS):
                    start = time.perf_counter()
                    list(pool.map(lambda part: float(np.dot(part, part)), given))
                    seconds.append(time.perf_counter() - start)
                rates[name].append(size / min(seconds))
    return rates


def table(rates: Mapping[str, Sequence[float]]) -> str:
    """GB/s, and large pages as a multiple."""
    large = np.array(rates["large"])
    rows = [[name, spread(np.array(r) / 1e9, 1), spread(large / np.array(r))] for name, r in rates.items()]
    return markdown(["pages", "GB/s", "large ones are … times as fast"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    rates = measure(options.megabytes << 20, options.rounds)
    text = json.dumps({"bytes_per_second": rates}, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else table(rates))


if __name__ == "__main__":
    main()
