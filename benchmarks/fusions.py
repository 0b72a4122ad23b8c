"""What fusing the small operations between products gains: programs of ours with and without.

    python -m benchmarks.fusions [--models llama-0.5b gpt2] [--dtypes f32 bf16 int8] [--positions 1 4 16]
                                 [--rounds 20] [--json] [--out FILE]

Both programs of a row run by turns on the same random weights: how long a call with fusions takes as a part
of the one without, and how many kernels either starts.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.xla import XlaBackend, XlaProgram
from systolic.compiler.program import Program

from .peers.ours import with_weights_as
from .rolling import program_of, run_ratios
from .subjects import CONFIGS, load_subject


@dataclass(frozen=True)
class Row:
    """``kernels`` in a program, those of layers that are a loop counted once, with and without fusions;
    ``ratios`` of the time of calls, with by without, in order."""

    model: str
    dtype: str
    positions: int
    kernels: tuple[int, int]
    milliseconds_without: float
    ratios: tuple[float, ...]

    def __str__(self) -> str:
        low, middle, high = np.percentile(self.ratios, (25, 50, 75))
        head = f"{self.model} {self.dtype}, {self.positions:3d} positions"
        started = f"{self.kernels[0]} kernels instead of {self.kernels[1]}"
        times = f"{middle:.3f} ({low:.3f} to {high:.3f}) of {self.milliseconds_without:.2f} ms"
        return f"{head}: {started}; a call takes {times}"


def prepared(backend: XlaBackend, program: Program, *, fuses: bool) -> XlaProgram:
    kernels = backend.kernels
    assert kernels is not None, "there are no kernels of ours without a C++ compiler"
    kernels = kernels if fuses else replace(kernels, largest_fused=0)
    text = emit_stablehlo(program, kernels, backend.forms, roll=backend.roll)
    return XlaProgram(program, text, backend.compile(text), backend)


def count_kernels(text: str) -> int:
    """How many kernels optimised HLO starts, those in the body of a loop once."""
    return len(re.findall(r"= [^=]* (?:fusion|custom-call|dot|scatter|copy)\(", text))


def measure(name: str, dtype: str, positions: Sequence[int], rounds: int) -> list[Row]:
    model, rows = with_weights_as(load_subject(name), dtype), []
    with tempfile.TemporaryDirectory() as cache:
        backend = XlaBackend("cpu", Path(cache))
        for count in positions:
            program = program_of(model, count)
            forms = [prepared(backend, program, fuses=fuses) for fuses in (False, True)]
            without, fused = (count_kernels(form.optimized_text) for form in forms)
            measured = run_ratios(backend, forms, model.weights or {}, rounds)
            rows.append(Row(name, dtype, count, (fused, without), *measured))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["llama-0.5b"], choices=CONFIGS)
    parser.add_argument("--dtypes", nargs="+", default=["f32"], choices=["f32", "bf16", "int8"])
    parser.add_argument("--positions", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        for dtype in options.dtypes:
            rows += measure(name, dtype, options.positions, options.rounds)
            if not options.json:
                print(*rows[-len(options.positions) :], sep="\n", flush=True)
    text = json.dumps([asdict(row) for row in rows], indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(text)


if __name__ == "__main__":
    main()
