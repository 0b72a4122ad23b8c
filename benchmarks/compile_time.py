"""How long it takes from a config to a decode program, before any backend.

    python -m benchmarks.compile_time [--layers 10 80 1000] [--rounds 1] [--json] [--out FILE]

Prints the seconds of tracing, passes with verification, choosing states, derivation and printing for a
Llama of each depth in ``--layers``; they should grow in proportion to it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import systolic as sy
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.compiler.pipeline import run_passes

from .contest import markdown, spread
from .subjects import llama_config


def measure(layers: int) -> dict[str, float]:
    """Seconds by step, and the number of nodes of the traced graph."""
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[step] = time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(llama_config(hidden=64, layers=layers, capacity=64)))
        traced = timed("trace", lambda: sy.load(path).graph)
    graph = timed("passes", lambda: run_passes(traced)[-1].graph)
    plan = timed("states", lambda: choose_states(graph))
    program = timed("derive", lambda: derive_chunk(graph, plan, rows=1, chunk=1, capacity=64))
    timed("print", lambda: str(program.graph))
    return {"nodes": len(traced), **seconds, "all": sum(seconds.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 80, 1000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    rows = [{"layers": layers, **measure(layers)} for _ in range(options.rounds) for layers in options.layers]
    text = json.dumps({"rows": rows}, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else table(rows))


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """Seconds by depth and step, over all rounds."""
    steps = [name for name in rows[0] if name not in ("layers", "nodes")]
    lines = []
    for layers in dict.fromkeys(row["layers"] for row in rows):
        same = [row for row in rows if row["layers"] == layers]
        seconds = [spread([row[step] for row in same]) for step in steps]
        lines.append([f"{layers:,}", f"{same[0]['nodes']:,}", *seconds])
    return markdown(["layers", "nodes", *(f"{step}, s" for step in steps)], lines)


if __name__ == "__main__":
    main()
