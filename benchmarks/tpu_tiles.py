"""The tiling that the search takes for a kernel, held against every tiling as the TPU compiler has it.

    python -m systolic.benchmarks.tpu_tiles --target tpu-v5e --out tiles.json     # needs libtpu, no TPU
    python -m systolic.benchmarks.tpu_tiles --target tpu-v5e --calibrate --out calibration.json

For each product (layers of GPT-2, Llama 3.2 1B and Llama 3 8B, from one row to 2,048) the chosen tiling is
compiled, then every other one that could be more than 5 % faster: those whose bytes, and multiply-adds at the
arrays' full rate, allow it. What is compiled is kept in the file and never compiled again. ``--calibrate``
compiles tilings of other products and fits the figures of the target's [kernel] table (needs scipy).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from systolic.backends.tpu import TpuTarget, libtpu_version, parse_target
from systolic.backends.tpu_products import Measured, measure_emitters, measure_kernels
from systolic.compiler.cost.kernels import (
    KernelTiling,
    Product,
    kernel_tilings,
    one_tiling,
    pipeline_cycles,
    scheduled_cycles,
    tile_bytes,
    tiling_at,
)
from systolic.compiler.cost.targets import Kernel, Target, load_target

ROWS = (1, 128, 512, 2048)
WEIGHTS = ((768, 2304), (3072, 768), (2048, 8192), (4096, 6144), (4096, 14336), (14336, 4096))  # k, n
HELD_OUT = tuple(Product(m, k, n) for k, n in WEIGHTS for m in ROWS)
# Tiles m, k, n of products of no model: narrow, wide, shallow, deep; alone along k, and in two steps.
CALIBRATION_TILES = (
    (16, 512, 512),
    (16, 1024, 1024),
    (64, 512, 512),
    (128, 512, 512),
    (128, 1024, 1024),
    (256, 512, 256),
    (256, 512, 512),
    (256, 1024, 128),
    (512, 512, 128),
    (512, 512, 512),
    (512, 1024, 256),
    (1024, 512, 512),
)
CALIBRATION = tuple(
    (Product(m, k * deep, n * wide, is_transposed=is_transposed), KernelTiling(m, k, n))
    for m, k, n in CALIBRATION_TILES
    for deep, wide, is_transposed in ((1, 4, True), (1, 12, True), (2, 4, True), (1, 12, False))
)
MARGIN = 1.05
UNCERTAIN = 1.25  # tilings that the search takes for too large are tried up to this share of the memory
KERNELS_PER_PROGRAM = 12


@dataclass
class Record:
    """What the compiler said, by product and tiling; None where it refused. Kept in a file."""

    file: Path
    target: str
    kernels: dict[tuple[Product, KernelTiling], int | None]
    emitters: dict[Product, Measured]

    @classmethod
    def open(cls, file: Path, target: str) -> Record:
        record = cls(file, target, {}, {})
        if file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            record.kernels = {
                (Product(*row[:6], bool(row[6])), KernelTiling(*row[7:11])): row[11]
                for row in kept["kernels"]
            }
            record.emitters = {
                Product(*row[:6], bool(row[6])): Measured(
                    **row[7] | {"tiles": row[7]["tiles"] and tuple(row[7]["tiles"])}
                )
                for row in kept["emitters"]
            }
        return record

    def save(self) -> None:
        def row(item: Any) -> list[Any]:
            return [getattr(item, f.name) for f in fields(item)]

        kernels = [[*row(p), *row(t), cycles] for (p, t), cycles in self.kernels.items()]
        emitters = [[*row(p), found.to_json()] for p, found in self.emitters.items()]
        lines = ",\n".join(json.dumps(entry) for entry in kernels)
        more = ",\n".join(json.dumps(entry) for entry in emitters)
        head = f'"target": "{self.target}", "libtpu": "{libtpu_version()}"'
        self.file.write_text(
            f'{{{head},\n"kernels": [\n{lines}\n],\n"emitters": [\n{more}\n]}}\n', encoding="utf-8"
        )


def compile_missing(
    record: Record, wanted: Iterable[tuple[Product, KernelTiling]], machine: TpuTarget, target: Target
) -> None:
    """Compiles what the record lacks, and keeps it after every program."""
    missing = [kernel for kernel in wanted if kernel not in record.kernels]
    assert target.compiler is not None
    for i in range(0, len(missing), KERNELS_PER_PROGRAM):
        part = missing[i : i + KERNELS_PER_PROGRAM]
        found = measure_kernels(part, machine, target.compiler)
        record.kernels |= {
            kernel: each.scheduled_cycles if isinstance(each, Measured) else None
            for kernel, each in zip(part, found, strict=True)
        }
        record.save()


@dataclass(frozen=True)
class Sweep:
    """Tilings of one product: predicted cycles, and the least that each can take."""

    product: Product
    tilings: list[KernelTiling]
    predicted: np.ndarray
    least: np.ndarray
    is_certain: np.ndarray

    @property
    def chosen(self) -> KernelTiling:
        return self.tilings[int(np.argmin(np.where(self.is_certain, self.predicted, np.inf)))]


def sweep_of(product: Product, target: Target) -> Sweep:
    """All tilings, those included that perhaps do not fit."""
    compiler, kernel, arrays = target.compiler, target.kernel, target.arrays
    assert compiler is not None
    assert kernel is not None
    assert arrays is not None
    found = kernel_tilings(product, replace(compiler, scoped_bytes=int(compiler.scoped_bytes * UNCERTAIN)))
    certain = kernel_tilings(product, compiler)
    tiles, cells = tile_bytes(found, product), (arrays.rows, arrays.columns)
    scheduled = scheduled_cycles(found, product, kernel, cells)
    folds = -(-found.k // cells[0]) * -(-found.n // cells[1])
    at_full_rate = found.steps * folds * found.m / kernel.arrays
    tilings = [tiling_at(found, i) for i in range(len(found))]
    fitting = {tiling_at(certain, i) for i in range(len(certain))}
    return Sweep(
        product,
        tilings,
        pipeline_cycles(found, tiles, scheduled, compiler),
        pipeline_cycles(found, tiles, at_full_rate, compiler),
        np.array([tiling in fitting for tiling in tilings]),
    )


def cycles_of(record: Record, product: Product, tiling: KernelTiling, target: Target) -> float:
    """With main memory; infinite where the compiler refused the tiling or was not asked."""
    scheduled = record.kernels.get((product, tiling))
    if scheduled is None:
        return np.inf
    one = one_tiling(product, tiling)
    assert target.compiler is not None
    return float(pipeline_cycles(one, tile_bytes(one, product), np.array([scheduled]), target.compiler)[0])


def run_sweep(products: Sequence[Product], machine: TpuTarget, target: Target, record: Record) -> None:
    """Compiles the chosen tilings, then whatever could be more than 5 % faster; prints the table."""
    sweeps = [sweep_of(product, target) for product in products]
    compile_missing(record, [(sweep.product, sweep.chosen) for sweep in sweeps], machine, target)
    assert target.compiler is not None
    left = [product for product in products if product not in record.emitters]
    record.emitters |= dict(zip(left, measure_emitters(left, machine, target.compiler), strict=True))
    record.save()
    while left := [kernel for sweep in sweeps for kernel in could_be_faster(sweep, record, target)]:
        compile_missing(record, left[:KERNELS_PER_PROGRAM], machine, target)
    print("\n".join([HEADER, *(table_row(sweep, record, target) for sweep in sweeps)]))


def could_be_faster(sweep: Sweep, record: Record, target: Target) -> list[tuple[Product, KernelTiling]]:
    """What has not been compiled and could be faster than the chosen tiling by more than ``MARGIN``, the most
    promising first."""
    limit = cycles_of(record, sweep.product, sweep.chosen, target) / MARGIN
    return [
        (sweep.product, sweep.tilings[i])
        for i in np.argsort(sweep.predicted, kind="stable").tolist()
        if sweep.least[i] < limit and (sweep.product, sweep.tilings[i]) not in record.kernels
    ]


HEADER = (
    f"{'m':>5} {'k':>6} {'n':>6}  {'chosen':>20} {'predicted':>10} {'compiler':>10} {'best':>10}  "
    f"{'of best':>7} {'tilings':>7} {'compiled':>8} {'emitter':>10} {'ours':>6}"
)


def table_row(sweep: Sweep, record: Record, target: Target) -> str:
    """Predicted and compiled cycles of the chosen tiling, the best, and what the compiler emits itself."""
    product, chosen = sweep.product, sweep.chosen
    ours = cycles_of(record, product, chosen, target)
    best = min(cycles_of(record, product, tiling, target) for tiling in sweep.tilings)
    compiled = sum((product, tiling) in record.kernels for tiling in sweep.tilings)
    emitter = record.emitters[product].cycles
    return (
        f"{product.m:5} {product.k:6} {product.n:6}  {chosen!s:>20} "
        f"{sweep.predicted[sweep.tilings.index(chosen)]:10,.0f} {ours:10,.0f} {best:10,.0f}  "
        f"{ours / best:7.3f} {len(sweep.tilings):7} {compiled:8} {emitter:10,.0f} {ours / emitter:6.3f}"
    )


def calibrated(record: Record, target: Target) -> Kernel:
    """The figures of kernels that fit what was compiled best (relative error, outliers weigh less)."""
    from scipy.optimize import least_squares

    assert target.kernel is not None
    assert target.arrays is not None
    kernel, cells = target.kernel, (target.arrays.rows, target.arrays.columns)
    names = [f.name for f in fields(Kernel) if f.name not in ("arrays", "tried") and getattr(kernel, f.name)]
    known = [(*pair, cycles) for pair, cycles in record.kernels.items() if cycles is not None]

    def residuals(values: np.ndarray) -> np.ndarray:
        tried = replace(kernel, **dict(zip(names, np.exp(values).tolist(), strict=True)))
        predicted = [
            scheduled_cycles(one_tiling(product, tiling), product, tried, cells)[0]
            for product, tiling, _ in known
        ]
        return np.log(np.array(predicted) / [cycles for *_, cycles in known])

    start = np.log([getattr(kernel, name) for name in names])
    fit = least_squares(residuals, start, loss="soft_l1", f_scale=0.02, diff_step=1e-3)
    error = np.abs(np.expm1(residuals(fit.x)))
    print(f"{len(known)} kernels, mean error {error.mean():.1%}, largest {error.max():.1%}")
    return replace(kernel, **dict(zip(names, np.exp(fit.x).tolist(), strict=True)))


def main() -> None:
    """Prints the table, or with ``--calibrate`` the figures of the target's [kernel] table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="tpu-v5e")
    parser.add_argument("--out", type=Path, required=True, help="where what was compiled is kept")
    parser.add_argument("--calibrate", action="store_true", help="fit the [kernel] table and print it")
    arguments = parser.parse_args()
    machine, target = parse_target(arguments.target), load_target(arguments.target.partition(":")[0])
    record = Record.open(arguments.out, target.name)
    if arguments.calibrate:
        compile_missing(record, CALIBRATION, machine, target)
        found = calibrated(record, target)
        print("\n".join(f"{f.name} = {getattr(found, f.name):.4g}" for f in fields(found)))
        return
    run_sweep(HELD_OUT, machine, target, record)


if __name__ == "__main__":
    main()
