"""Measures the forms of products on this machine's CPU.

What is timed is what is emitted: a program of products in a row, a bounded function between two of them,
lowered with a table that has one form. Weights that are near are those of a loop that reads one matrix again
and again; others are several matrices, together larger than the caches.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jaxlib

from ...compiler.program import Program
from ..processor import in_words
from ..stablehlo import emit_stablehlo
from ..xla import XlaBackend
from ..xla_device import run
from .forms import available_forms
from .products import find_product
from .sample import sample_arrays, sample_program
from .table import MANY, WEIGHTS, Cell, FormTable, Setting, forced_table

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NEAR = (256, 1024, 2048)  # widths of square matrices that stay in the caches
FAR_BYTES, FAR_COUNT = 16 << 20, 4  # of a matrix that does not, and how many are read in turn
MANY_WIDTH, MANY_COUNT = 2048, 2  # of matrices that many rows are multiplied with
BITS = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4, "f32-packed": 28, "bf16-packed": 12}
LEAST_ROUNDS, MOST_ROUNDS, ENOUGH_SECONDS = 5, 25, 0.15
HOPELESS = 3.0  # times as long as the best: not timed again
NEAR_OPERATIONS = 1 << 25  # of one run over a near matrix: about a millisecond
FALLBACK_CACHE = 8 << 20  # bytes, where the system tells nothing


def grid() -> Iterator[tuple[Setting, int]]:
    """What is measured, and how many matrices are read in turn."""
    for weights in WEIGHTS:
        for turned in (False, True) if weights in ("f32", "bf16") else (False,):
            for rows in ROWS:
                if rows >= MANY:
                    yield Setting(weights, turned, False, rows, MANY_WIDTH, MANY_WIDTH), MANY_COUNT
                    continue
                for width in NEAR:
                    yield Setting(weights, turned, True, rows, width, width), 1
                width = round((FAR_BYTES * 8 / BITS[weights]) ** 0.5) // 256 * 256
                yield Setting(weights, turned, False, rows, width, width), FAR_COUNT


def measured_forms(report: Callable[[int, int], None] | None = None) -> FormTable:
    """The table of this machine. ``report`` is told how many of its cells are measured, and of how many."""
    every = list(grid())
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count(), "compile") as threads:
        backend = XlaBackend("cpu", Path(folder))
        for setting, matrices in every:
            cells.append(measured_cell(backend, setting, matrices, threads))
            if report:
                report(len(cells), len(every))
    name, kind = backend.processor.name, in_words(backend.processor.kind)
    source = f"{name} with {kind}, {os.cpu_count()} processors, jaxlib {jaxlib.__version__}"
    return FormTable(tuple(cells), cache_bytes(), source)


def measured_cell(backend: XlaBackend, setting: Setting, matrices: int, threads: Executor) -> Cell:
    """Seconds of one product in each form, which take turns."""
    operations = setting.rows * setting.width * setting.columns
    steps = max(2, NEAR_OPERATIONS // operations) if setting.near else 1
    program = sample_program(setting, matrices, steps)
    forms = forms_of(program, has_kernels=backend.kernels is not None)
    texts = [emit_stablehlo(program, backend.kernels, forced_table(form)) for form in forms]
    compiled = zip(forms, threads.map(backend.compile, texts), strict=True)
    arrays = list(map(backend.place, sample_arrays(program).values()))
    results = backend.device.results(node.tensor for node in program.graph.outputs.values())
    seconds = compared_seconds(
        {form: partial(_seconds, each.executable, arrays, results) for form, each in compiled}
    )
    return Cell(setting, {form: round(seconds[form] / (matrices * steps), 9) for form in forms})


def compared_seconds(runs: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Seconds of each, such that their ratios are the medians of ratios within a round: the speed of a
    machine that others use, too, changes from one moment to the next. What is hopeless runs only twice."""
    for each in runs.values():
        each()  # the first run of all finds nothing in the caches
    first = {name: each() for name, each in runs.items()}
    base = min(first, key=first.__getitem__)
    promising = {name: each for name, each in runs.items() if first[name] < HOPELESS * first[base]}
    rounds: list[dict[str, float]] = []
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and _total(rounds) < ENOUGH_SECONDS):
        rounds.append({name: each() for name, each in promising.items()})
    usual = median(round_[base] for round_ in rounds)
    found = {name: usual * median(round_[name] / round_[base] for round_ in rounds) for name in promising}
    return {name: usual * seconds / first[base] for name, seconds in first.items()} | found


def _total(rounds: list[dict[str, float]]) -> float:
    return sum(sum(round_.values()) for round_ in rounds)


def forms_of(program: Program, *, has_kernels: bool) -> tuple[str, ...]:
    """The forms that the products of a sample have."""
    bodies = [node.params["body"].nodes for node in program.graph.nodes if node.op.name == "loop"]
    found = (find_product(node) for nodes in (*bodies, program.graph.nodes) for node in nodes)
    return available_forms(next(filter(None, found)), has_kernels=has_kernels)


def cache_bytes() -> int:
    """Bytes of the largest cache of this processor, as Linux tells."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes, default=FALLBACK_CACHE)


def _seconds(executable: Any, arrays: list[Any], results: list[Any]) -> float:
    start = time.perf_counter()
    for result in run(executable, arrays, results):
        result.block_until_ready()
    return time.perf_counter() - start
