"""What one loop body for all layers gains and costs: programs of ours rolled and unrolled, on this machine.

    python -m benchmarks.rolling [--models llama] [--hidden 768] [--depths 8 18 32 80] [--positions 1 128]
                                 [--run-depths 8 18] [--rounds 40] [--dtype f32] [--json] [--out FILE]

For each depth and number of positions: seconds of processor time that XLA compiles both forms, then, for
``--run-depths``, how long a call of the rolled program takes as a multiple of the unrolled one before it, by
turns on the same random weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import systolic as sy
from systolic.backends.stablehlo import emit_stablehlo
from systolic.backends.xla import XlaBackend, XlaProgram
from systolic.compiler.pipeline import run_passes
from systolic.compiler.program import Program
from systolic.runner.options import options_for
from systolic.runner.program_source import DerivedPrograms

from .contest import markdown
from .peers.ours import with_weights_as
from .subjects import Subject, llama_config, mamba_config, random_weights

FORMS = ("never", "always")  # rolled
WINDOW = {"model_type": "mistral", "sliding_window": 512}
EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
CONFIGS = {
    "llama": lambda hidden, layers: llama_config(hidden, layers, 1024),
    "mistral": lambda hidden, layers: llama_config(hidden, layers, 1024, **WINDOW),
    "mixtral": lambda hidden, layers: llama_config(hidden, layers, 1024, **EXPERTS),
    "mamba": lambda hidden, layers: mamba_config(hidden, layers, 32000),
}


@dataclass(frozen=True)
class Row:
    """Seconds that XLA compiles each form; ``ratios`` of the time of calls, rolled by unrolled, in order."""

    model: str
    layers: int
    positions: int
    unrolled_seconds: float
    rolled_seconds: float
    unrolled_milliseconds: float | None = None
    ratios: tuple[float, ...] = ()

    @property
    def cells(self) -> list[str]:
        """A row of the table."""
        seconds = [f"{self.unrolled_seconds:.2f} s", f"{self.rolled_seconds:.2f} s"]
        return [self.model, str(self.layers), str(self.positions), *seconds, self._call]

    @property
    def _call(self) -> str:
        """The median and the quartiles; calls are short, so their range says nothing."""
        if not self.ratios:
            return ""
        low, middle, high = np.percentile(self.ratios, (25, 50, 75))
        return f"{middle:.3f} ({low:.3f} to {high:.3f})"


HEADING = ["model", "layers", "positions", "unrolled", "rolled", "a rolled call takes"]


def subject(name: str, hidden: int, layers: int, *, has_weights: bool) -> Subject:
    config = CONFIGS[name](hidden, layers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        model = sy.load(path)
    return Subject(name, config, model, random_weights(model.graph) if has_weights else {})


def program_of(model: sy.Model, positions: int) -> Program:
    options = options_for(model, capacity=1024, chunk=max(positions, 16))
    return DerivedPrograms(run_passes(model.graph, options.passes)[-1].graph, options).chunk(positions)


def prepared(backend: XlaBackend, program: Program, roll: str) -> tuple[XlaProgram, float]:
    """The program, and the processor seconds that XLA took, which others who compute do not change."""
    text = emit_stablehlo(program, backend.kernels, backend.forms, roll=roll)
    started = time.process_time()
    found = backend.compile(text)
    return XlaProgram(program, text, found, backend), time.process_time() - started


def run_ratios(
    backend: XlaBackend, forms: Sequence[XlaProgram], weights: Mapping[str, np.ndarray], rounds: int
) -> tuple[float, tuple[float, ...]]:
    """Milliseconds of an unrolled call, and what part of it the rolled one behind it takes, by round."""
    program = forms[0].program
    placed = {node.name: backend.place(weights[node.name]) for node in program.graph.parameters}
    inputs = {"offset": np.full(1, 64, np.int32), "length": np.full(1, program.chunk, np.int32)}
    inputs |= {"token": np.arange(program.chunk, dtype=np.int32)[None]}
    zeros = {s.name: (s.type.static_shape, s.type.dtype) for s in program.states}
    states = [{name: backend.zeros(*type_) for name, type_ in zeros.items()} for _ in forms]
    seconds: list[list[float]] = [[] for _ in forms]
    for _ in range(rounds + 3):
        for i, form in enumerate(forms):
            started = time.perf_counter()
            results, states[i] = form.run(placed, inputs, states[i])
            backend.fetch(results["logits"])
            seconds[i].append(time.perf_counter() - started)
    unrolled, rolled = (np.array(took[3:]) for took in seconds)  # the first ones warm up
    return 1e3 * float(np.median(unrolled)), tuple((rolled / unrolled).tolist())


def measure(options: argparse.Namespace, name: str, layers: int) -> list[Row]:
    runs, rows = layers in options.run_depths, []
    plain = subject(name, options.hidden, layers, has_weights=runs)
    model = with_weights_as(plain, options.dtype)
    with tempfile.TemporaryDirectory() as cache:
        backend = XlaBackend("cpu", Path(cache))
        for positions in options.positions:
            program = program_of(model, positions)
            forms, seconds = zip(*(prepared(backend, program, roll) for roll in FORMS), strict=True)
            measured: tuple = ()
            if runs:
                measured = run_ratios(backend, forms, model.weights or {}, options.rounds)
            rows.append(Row(name, layers, positions, *seconds, *measured))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["llama"], choices=CONFIGS)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 18, 32, 80])
    parser.add_argument("--run-depths", type=int, nargs="*", default=[8, 18])
    parser.add_argument("--positions", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16", "int8"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    rows = [
        row for name in options.models for depth in options.depths for row in measure(options, name, depth)
    ]
    text = json.dumps([asdict(row) for row in rows], indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else markdown(HEADING, [row.cells for row in rows]))


if __name__ == "__main__":
    main()
