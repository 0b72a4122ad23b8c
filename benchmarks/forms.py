"""What the measured table of forms of products is worth in whole programs, beside one form for all.

    python -m benchmarks.forms [--rounds 5] [--json] [--out FILE]

Our own programs, once with the table of this machine and once with every product in one form: our kernels, or
where there are none, a plain product. Both run by turns on the same weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import systolic as sy
from systolic.backends.contractions.table import forced_table
from systolic.backends.xla import XlaBackend
from systolic.compiler.pipeline import run_passes
from systolic.runner.executable import Executable
from systolic.runner.options import options_for
from systolic.runner.program_source import DerivedPrograms
from systolic.runner.programs import Programs

from .contest import REST, markdown, spread
from .peers.ours import Ours, with_weights_as
from .subjects import load_subject

CAPACITY = 1024


@dataclass(frozen=True)
class Case:
    """A model with weights kept as ``dtype``; timed is a prompt of ``prompt`` tokens, or ``tokens`` steps
    behind it if there are any."""

    model: str
    dtype: str
    prompt: int
    tokens: int = 0
    native: bool = True

    @property
    def form(self) -> str:
        """What the table is held against."""
        return "kernel" if self.native else "dot"

    def __str__(self) -> str:
        what = f"{self.tokens} steps" if self.tokens else f"a prompt of {self.prompt}"
        return f"{self.model}, {self.dtype}, {what}{'' if self.native else ', without kernels'}"


CASES = (
    Case("lstm-80m", "f32", 512),
    Case("lstm-80m", "f32", 16, 64),
    Case("gpt2", "f32", 512),
    Case("llama-0.1b", "bf16", 16, 8, native=False),
)


def contestants(case: Case) -> Mapping[str, Ours]:
    """With the table, and with one form for all."""
    model = with_weights_as(load_subject(case.model), case.dtype)
    found = {}
    for name, forms in {"table": None, case.form: forced_table(case.form)}.items():
        backend = XlaBackend(native=case.native, forms=forms)
        found[name] = Ours(name, with_backend(model, backend))
    return found


def with_backend(model: sy.Model, backend: XlaBackend) -> Executable:
    """What ``sy.compile`` makes, on a backend of one's own."""
    options = options_for(model, capacity=min(CAPACITY, model.context_length))
    model = model.for_texts_up_to(options.capacity)
    source = DerivedPrograms(run_passes(model.graph, options.passes)[-1].graph, options)
    return Executable(model, options, backend, Programs(source, backend))


def turn(case: Case) -> Callable[[Ours], float]:
    """Seconds of what is timed."""
    prompts = np.random.default_rng(1).integers(3, 1000, (1, case.prompt)).astype(np.int32)

    def run(contestant: Ours) -> float:
        start = time.perf_counter()
        contestant.prefill(prompts)
        if case.tokens:
            contestant.decode(1)
            start = time.perf_counter()
            contestant.decode(case.tokens)
        return time.perf_counter() - start

    return run


def measure(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds by the table and by one form, a number for each round."""
    both, run = contestants(case), turn(case)
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for round_ in range(rounds + 1):
        for name, contestant in both.items():
            taken = run(contestant)
            time.sleep(REST / 10)
            if round_:  # the first compiles
                seconds[name].append(taken)
    return seconds


def table(cases: Sequence[Case], found: Sequence[Mapping[str, Sequence[float]]]) -> str:
    """How many times as fast each is by the table."""
    rows = []
    for case, seconds in zip(cases, found, strict=True):
        ratios = np.array(seconds[case.form]) / np.array(seconds["table"])
        rows.append([str(case), f"`{case.form}`", spread(ratios)])
    return markdown(["", "instead of always", "the table is … times as fast"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    found = [measure(case, options.rounds) for case in CASES]
    rows = [{**asdict(case), "seconds": seconds} for case, seconds in zip(CASES, found, strict=True)]
    text = json.dumps({"rows": rows}, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else table(CASES, found))


if __name__ == "__main__":
    main()
