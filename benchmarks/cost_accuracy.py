"""Predicted cycles against the TPU compiler's and SCALE-Sim's: the accuracy table of docs/cost-model.md.

    python benchmarks/cost_accuracy.py [--shared DIR] [--target T] [--calibrate | --leave-out]

Every third (k, n) shape is for calibration, of all dtypes together; the table is for the other shapes.
``--calibrate`` fits the five constants of each generation (needs scipy) and prints them; ``--leave-out`` fits
them once for each model, on all shapes but that model's, and predicts those (``all``: these together).
"""

from __future__ import annotations

import argparse
import csv
import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from systolic.compiler.cost import matmul
from systolic.compiler.cost.targets import Target, load_target
from systolic.compiler.cost.tiling import Tilings
from systolic.compiler.cost.tpu import estimate, matvec_cycles, searched_tilings

GENERATIONS = {"v4": "tpu-v4", "v5e": "tpu-v5e", "v5p": "tpu-v5p", "v6e": "tpu-v6e", "tpu7x": "tpu-7x"}
CONSTANTS = (
    "launch_cycles",
    "step_cycles",
    "bytes_per_cycle",
    "issue_efficiency",
    "vector_elements_per_cycle",
)
# v4 has the arrays of v5e, whose issue_efficiency it keeps; the tile that is loaded first takes longer there.
CONSTANTS_OF_V4 = tuple(name if name != "issue_efficiency" else "fill_cycles" for name in CONSTANTS)
START = {"launch_cycles": 3500.0, "step_cycles": 2500.0, "issue_efficiency": 0.9, "fill_cycles": 40.0}
DTYPES = {"bf16": "bf16", "s8": "i8", "f32": "f32"}


@dataclass(frozen=True)
class Row:
    """One compiled matmul: its shape and the cycles that the compiler estimates for the main op."""

    generation: str
    dtype: str
    shape: tuple[int, int, int]
    cycles: float
    in_hbm: bool
    calibration: bool
    models: frozenset[str] = frozenset()


def read_rows(shared: Path) -> list[Row]:
    """The rows of tpu_matmul.csv; every third (k, n), in order, is for calibration."""
    with open(shared / "cost" / "tpu_matmul.csv", newline="") as file:
        table = list(csv.DictReader(file))
    shapes = sorted({(int(r["K"]), int(r["N"])) for r in table})
    calibration = set(shapes[::3])
    return [
        Row(
            r["gen"],
            DTYPES[r["dtype"]],
            (int(r["M"]), int(r["K"]), int(r["N"])),
            float(r["estimated_cycles"]),
            r["a_space"] == "HBM|HBM" and r["out_space"] == "HBM",
            (int(r["K"]), int(r["N"])) in calibration,
            frozenset(r["models"].split("|")),
        )
        for r in table
    ]


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def summary(predicted: Sequence[float], actual: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, median and largest absolute relative error, and the rank correlation."""
    error = np.abs(np.asarray(predicted) / np.asarray(actual) - 1)
    correlation = np.corrcoef(ranks(np.asarray(predicted)), ranks(np.asarray(actual)))[0, 1]
    return float(error.mean()), float(np.median(error)), float(error.max()), float(correlation)


def predicted_with(row: Row, target: Target) -> float:
    """The prediction of ``matmul`` for given constants, without the preset."""
    assert target.arrays is not None
    assert target.compiler is not None
    m, k, n = row.shape
    if m == 1 and target.compiler.matvec_on_vector_unit:
        return target.compiler.launch_cycles + sum(matvec_cycles(k, n, row.dtype, target.compiler))
    tilings = tilings_of(row.shape, row.dtype, target.name)
    return float(estimate(tilings, row.dtype, target.arrays, target.compiler).cycles.min())


@functools.cache
def tilings_of(shape: tuple[int, int, int], dtype: str, target: str) -> Tilings:
    """Those that fit, which no constant decides."""
    compiler = load_target(target).compiler
    assert compiler is not None
    return searched_tilings(shape, dtype, compiler)


def fitted_constants(target: Target) -> tuple[str, ...]:
    """The names of the five that are fitted."""
    return CONSTANTS_OF_V4 if target.name == "tpu-v4" else CONSTANTS


def calibrate(rows: Iterable[Row], target: Target) -> Target:
    """The five constants that fit the calibration rows best (relative error, outliers weigh less)."""
    from scipy.optimize import least_squares

    assert target.compiler is not None
    compiler, rows, names = target.compiler, list(rows), fitted_constants(target)
    actual = np.array([row.cycles for row in rows])

    def with_constants(logarithms: np.ndarray) -> Target:
        values = dict(zip(names, np.exp(logarithms).tolist(), strict=True))
        return replace(target, compiler=replace(compiler, **values))

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        fitted = with_constants(logarithms)
        return np.log([predicted_with(row, fitted) for row in rows] / actual)

    assert target.arrays is not None
    assert target.arrays.clock_hz is not None
    assert target.vector is not None
    nominal = (target.memory.hbm_bytes_per_second or np.inf) / target.arrays.clock_hz
    start = START | {
        "bytes_per_cycle": 0.95 * nominal,
        "vector_elements_per_cycle": target.vector.lanes / 5,
    }
    highest = [1e-9 if name == "issue_efficiency" else np.inf for name in names]
    fit = least_squares(
        residuals,
        np.log([start[name] for name in names]),
        bounds=(-np.inf, highest),
        loss="soft_l1",
        f_scale=0.05,
        diff_step=1e-3,
        max_nfev=25,
    )
    return with_constants(fit.x)


def print_tpu_table(rows: Sequence[Row]) -> None:
    """Per generation and dtype: the held-out rows with operands and result in main memory."""
    print("generation  dtype  rows  mean error  median  largest  rank correlation   (held-out shapes)")
    for generation, name in GENERATIONS.items():
        for dtype in DTYPES.values():
            held = [
                row
                for row in rows
                if (row.generation, row.dtype) == (generation, dtype) and row.in_hbm and not row.calibration
            ]
            if not held:
                continue
            predicted = [matmul(*row.shape, dtype, name).cycles for row in held]
            mean, median, largest, rank = summary(predicted, [row.cycles for row in held])
            print(f"{name:11} {dtype:5} {len(held):5} {mean:10.1%} {median:8.1%} {largest:8.1%} {rank:12.5f}")


def print_left_out_table(rows: Sequence[Row]) -> None:
    """Rows of a model whose shapes calibrated nothing: mean error, rank correlation and count, by dtype."""
    models = sorted(set().union(*(row.models for row in rows)))
    print("generation  left out      " + "".join(f"{dtype:>24}" for dtype in DTYPES.values()))
    for generation, name in GENERATIONS.items():
        of_generation = [row for row in rows if row.generation == generation and row.in_hbm]
        together: list[tuple[Row, float]] = []
        for model in models if of_generation else ():
            fitted = calibrate((row for row in of_generation if model not in row.models), load_target(name))
            found = [(row, predicted_with(row, fitted)) for row in of_generation if model in row.models]
            print(f"{name:11} {model:13} {left_out_cells(found)}", flush=True)
            together += found
        if together:
            print(f"{name:11} {'all':13} {left_out_cells(together)}", flush=True)


def left_out_cells(found: Sequence[tuple[Row, float]]) -> str:
    """Mean error, rank correlation and number of rows, by dtype."""
    cells = []
    for dtype in DTYPES.values():
        predicted = [cycles for row, cycles in found if row.dtype == dtype]
        actual = [row.cycles for row, _ in found if row.dtype == dtype]
        mean, _, _, rank = summary(predicted, actual) if actual else (np.nan,) * 4
        cells.append(f"{mean:10.1%} {rank:8.4f} {len(actual):4}" if actual else " " * 24)
    return " ".join(cells)


def print_matvec_table(rows: Sequence[Row]) -> None:
    """One row of lhs, wherever the compiler puts it: its main op, bf16."""
    print("\none row of lhs (bf16, main op, also where the compiler keeps lhs and result on chip)")
    for generation, name in GENERATIONS.items():
        chosen = [r for r in rows if (r.generation, r.dtype, r.shape[0]) == (generation, "bf16", 1)]
        if not chosen:
            continue
        predicted = [matmul(*row.shape, row.dtype, name).cycles for row in chosen]
        mean, median, largest, rank = summary(predicted, [row.cycles for row in chosen])
        print(f"{name:11} {len(chosen):11} {mean:10.1%} {median:8.1%} {largest:8.1%} {rank:12.5f}")


def print_scalesim_table(shared: Path) -> None:
    """Rows of scalesim_gemm.csv on which every figure is SCALE-Sim's own."""
    with open(shared / "cost" / "scalesim_gemm.csv", newline="") as file:
        table = list(csv.DictReader(file))
    print("\nSCALE-Sim: rows whose cycles, reads, writes and utilisation are all equal")
    for dataflow in ("ws", "is", "os"):
        chosen = [row for row in table if row["dataflow"] == dataflow]
        print(f"{dataflow}  {sum(map(equals_scalesim, chosen))} of {len(chosen)}")


def equals_scalesim(row: dict[str, str]) -> bool:
    """Whether ``matmul`` counts as SCALE-Sim did, in its compatible mode."""
    m, k, n = (int(row[name]) for name in "MKN")
    array = (int(row["rows"]), int(row["cols"]))
    found = matmul(
        m, k, n, "int8", "scalesim", array=array, dataflow=row["dataflow"], scalesim_compatible=True
    )
    assert found.mapping_utilization is not None
    return (
        found.cycles == float(row["demand_rows"])
        and found.sram_reads_by_operand["lhs"] == float(row["ifmap_sram_reads"])
        and found.sram_reads_by_operand["rhs"] == float(row["filter_sram_reads"])
        and found.sram_writes == float(row["ofmap_sram_writes"])
        and abs(100 * found.mapping_utilization - float(row["mapping_util_pct"])) < 1e-9
    )


def main() -> None:
    """Prints the tables, or with ``--calibrate`` the constants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--shared", type=Path, default=root.parent / "shared")
    parser.add_argument("--calibrate", action="store_true", help="fit the constants and print them")
    parser.add_argument("--leave-out", action="store_true", help="fit without one model, predict that model")
    parser.add_argument("--target", choices=GENERATIONS.values(), help="only this generation")
    arguments = parser.parse_args()
    if not (arguments.shared / "cost").is_dir():
        sys.exit(f"the reference data at {arguments.shared} is absent (--shared)")
    rows = read_rows(arguments.shared)
    if arguments.target:
        rows = [row for row in rows if GENERATIONS[row.generation] == arguments.target]
    if arguments.calibrate:
        for generation, name in GENERATIONS.items():
            if arguments.target not in (None, name):
                continue
            chosen = [r for r in rows if r.generation == generation and r.in_hbm and r.calibration]
            fitted = calibrate(chosen, load_target(name))
            names = fitted_constants(fitted)
            print(name, {each: float(f"{getattr(fitted.compiler, each):.4g}") for each in names})
        return
    if arguments.leave_out:
        print_left_out_table(rows)
        return
    print_tpu_table(rows)
    print_matvec_table(rows)
    print_scalesim_table(arguments.shared)


if __name__ == "__main__":
    main()
