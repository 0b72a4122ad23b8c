"""What a TPU's compiler estimates for a matmul: a pipeline of tiles, five constants per generation.

The constants are in the target's [compiler] table. The rest is structure, the same for every
generation: step by step the tiles of the operands come from main memory while the arrays work on
those of the step before; results are narrowed and stored by the vector unit.

    cycles = launch + fill + max(memory, arrays) + min(memory, arrays) / steps + results
    fill   = folds of one tile · fill_cycles
    memory = bytes / bytes_per_cycle + steps · step_cycles
    arrays = the longer of multiply-adds (in whole folds) / (cells · macs_per_cell · issue_efficiency)
             and partial sums / (PARTIAL_SUMS · lanes), where the vector unit adds them up
    results = m · n · NARROWING[dtype] / vector_elements_per_cycle

The term with ``/ steps`` is what one step leaves uncovered: filling and emptying the pipeline. On v4 the
weights of one tile take time besides, for each fold that an array gets; elsewhere ``fill_cycles`` is 0.

Operands that the arrays do not take (int8 on v4 and 7x) are converted in on-chip memory. That hides behind
the arrays and not behind the copies, which use the same memory:

    cycles = launch + fill + max(copies, arrays) + UNCOVERED · min(copies, arrays) + results
    copies = memory + converted elements · CONVERSION / vector_elements_per_cycle
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .analytic import ceil_div
from .targets import DTYPE_BYTES, RESULT_BYTES, Arrays, Compiler
from .tiling import Tilings, candidates, on_chip_bytes, traffic, window_bytes

Array = np.ndarray
GRANULES = (8, 128, 128)  # a vector register is 8 sublanes of 128 lanes
# Passes of the vector unit per element, the same for all generations.
NARROWING: Mapping[str, float] = {"bf16": 1.0, "f16": 1.0}  # per result that is stored in 16 bits
PREPARATION: Mapping[str, float] = {"f32": 1.35}  # per weight: splitting f32 into bf16 parts
PARTIAL_SUMS = 1.1  # per lane and cycle; with int8 at twice the rate, 256 rows of cells make more of them
CONVERSION = 0.55  # per element of an operand that the arrays do not take
SINGLE_STEP = 0.5  # of which so much is left where there is one step, and each element is converted once
RESULT_CONVERSION = 0.3  # per result of such a dtype
UNCOVERED = 0.3  # of the shorter of multiplying, and copying and converting
MATVEC = 1.28  # per weight, where one row of lhs is multiplied and reduced without the arrays


@dataclass(frozen=True, slots=True)
class Kept:
    """Weights that are kept in another form: ``bytes`` of one, and ``cycles`` of the vector unit to make the
    number of it that is multiplied, each time that it comes on chip."""

    bytes: float
    cycles: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cycles of each tiling, the two sides of the pipeline that decide it, and the results' share."""

    cycles: Array
    memory: Array
    arrays: Array
    results: float


def searched_tilings(shape: tuple[int, int, int], dtype: str, compiler: Compiler) -> Tilings:
    """All candidates that fit into the memory of one program."""
    found = candidates(shape, GRANULES)
    fits = (on_chip_bytes(found, dtype) <= compiler.scoped_bytes) & (
        window_bytes(found, dtype) <= compiler.window_bytes
    )
    return found[fits]


def estimate(
    tilings: Tilings,
    dtype: str,
    arrays: Arrays,
    compiler: Compiler,
    from_memory: tuple[str, ...] = ("lhs", "rhs", "result"),
    kept: Kept | None = None,
) -> Estimate:
    """The estimate for every tiling. What is not ``from_memory`` stays on chip and moves no bytes. Weights
    that are ``kept`` in another form come on chip in it, and are made ``dtype`` there beside the arrays."""
    m, _, n = tilings.shape
    steps, whole = tilings.steps, traffic(tilings, dtype)
    passed = whole.rhs / DTYPE_BYTES[dtype]
    if kept is not None:
        whole = replace(whole, rhs=passed * kept.bytes)
    moved = sum(getattr(whole, operand) for operand in from_memory)
    memory = moved / compiler.bytes_per_cycle + steps * compiler.step_cycles
    multiplied = _multiplying(tilings, dtype, arrays, compiler)
    prepared = steps * _prepared_elements(tilings, dtype, compiler) / compiler.vector_elements_per_cycle
    results = m * n * _narrowing(dtype, compiler) / compiler.vector_elements_per_cycle
    started = compiler.launch_cycles + _folds(tilings, arrays) * compiler.fill_cycles
    if dtype in compiler.converted:
        copies = memory + np.where(steps == 1, SINGLE_STEP, 1.0) * prepared
        uncovered = UNCOVERED * np.minimum(copies, multiplied)
        cycles = started + np.maximum(copies, multiplied) + uncovered + results
        return Estimate(cycles, memory, np.maximum(multiplied, prepared), results)
    made = prepared if kept is None else prepared + passed * kept.cycles
    busy = np.maximum(multiplied, made)
    uncovered = np.minimum(memory, busy) / steps
    cycles = started + np.maximum(memory, busy) + uncovered + results
    return Estimate(cycles, memory, busy, results)


def _multiplying(tilings: Tilings, dtype: str, arrays: Arrays, compiler: Compiler) -> Array:
    """Cycles of the arrays, or of the vector unit that adds up what comes out of them."""
    macs = tilings.steps * _step_macs_cycles(tilings, dtype, arrays) / compiler.issue_efficiency
    if not compiler.accumulating_lanes:
        return macs
    sums = tilings.steps * ceil_div(tilings.k, arrays.rows) * tilings.m * tilings.n
    return np.maximum(macs, sums / (PARTIAL_SUMS * compiler.accumulating_lanes))


def _folds(tilings: Tilings, arrays: Arrays) -> Array:
    """Folds of one tile of rhs for each array."""
    return ceil_div(tilings.k, arrays.rows) * ceil_div(tilings.n, arrays.columns) / arrays.count


def _step_macs_cycles(tilings: Tilings, dtype: str, arrays: Arrays) -> Array:
    return _folds(tilings, arrays) * tilings.m / arrays.macs_per_cell.get(dtype, 1.0)


def _prepared_elements(tilings: Tilings, dtype: str, compiler: Compiler) -> Array:
    """Elements that the vector unit works on in each step before the arrays can, weighted by its passes."""
    elements = {"lhs": tilings.m * tilings.k, "rhs": tilings.k * tilings.n}
    if dtype in compiler.converted:
        return CONVERSION * np.sum([elements[operand] for operand in compiler.converted[dtype]], axis=0)
    return PREPARATION.get(dtype, 0.0) * elements["rhs"]


def _narrowing(dtype: str, compiler: Compiler) -> float:
    return RESULT_CONVERSION if dtype in compiler.converted else NARROWING.get(dtype, 0.0)


def matvec_cycles(
    k: int, n: int, dtype: str, compiler: Compiler, kept: Kept | None = None
) -> tuple[float, float]:
    """(memory, vector unit) cycles of one row of lhs on the vector unit; they do not overlap."""
    weight = kept or Kept(DTYPE_BYTES[dtype], 0.0)
    moved = DTYPE_BYTES[dtype] * k + weight.bytes * k * n + RESULT_BYTES[dtype] * n
    multiplied = MATVEC * k * n / compiler.vector_elements_per_cycle
    return moved / compiler.bytes_per_cycle, multiplied + weight.cycles * k * n
