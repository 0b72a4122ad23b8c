"""Tilings as the TPU compiler has them, recorded for docs/tpu.md, and what the search makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tpu_tiles as tiles
from systolic.compiler.cost.kernels import KernelTiling, Product, bound, one_tiling, scheduled_cycles
from systolic.compiler.cost.targets import load_target

V5E = load_target("tpu-v5e")
FILE = Path(__file__).parent / "recorded_tiles.json"
RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


def schedule_errors(rows) -> np.ndarray:
    """Of the predicted scheduled cycles, for kernels that the compiler took."""
    errors = []
    for *sizes, lhs, rhs, result, is_transposed, m, k, n, order, cycles in rows:
        if cycles is not None:
            product = Product(*sizes, lhs, rhs, result, bool(is_transposed))
            one = one_tiling(product, KernelTiling(m, k, n, order))
            cells = (V5E.arrays.rows, V5E.arrays.columns)
            errors.append(scheduled_cycles(one, product, V5E.kernel, cells)[0] / cycles - 1)
    return np.abs(errors)


def test_the_predicted_schedule_is_the_compilers():
    """All kernels that were compiled for the table of docs/tpu.md, none of which calibrated anything."""
    errors = schedule_errors(RECORDED["kernels"])
    assert len(errors) > 160
    assert np.median(errors) < 0.02
    assert np.mean(errors) < 0.05  # with few steps, the first and the last weigh more than they should


@pytest.mark.parametrize("dtype", ["i8", "f32"])
def test_int8_and_f32_follow_from_the_figures_of_bf16(dtype):
    errors = schedule_errors(row for row in RECORDED["other_dtypes"] if row[3] == dtype)
    assert len(errors) >= 12
    assert np.mean(errors) < 0.07


@pytest.fixture(scope="module")
def record() -> tiles.Record:
    return tiles.Record.open(FILE, "tpu-v5e")


@pytest.mark.parametrize("product", tiles.HELD_OUT, ids=lambda product: product.name)
def test_no_tiling_is_more_than_five_percent_faster_than_the_chosen(record, product):
    """Of those that were compiled, and of those that were not: bytes and arrays rule them out."""
    sweep = tiles.sweep_of(product, V5E)
    chosen = tiles.cycles_of(record, product, sweep.chosen, V5E)
    best = min(tiles.cycles_of(record, product, tiling, V5E) for tiling in sweep.tilings)
    assert bound(product, V5E).cycles <= best <= chosen <= 1.05 * best
    assert tiles.could_be_faster(sweep, record, V5E) == []
