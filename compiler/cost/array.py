"""The array simulator: the numbers that systolic arrays compute, and the cycle of every fold.

A matmul is cut into folds, each filling one array once; the simulator walks the folds in order, moves
their tiles through the buses, and multiplies what is on the arrays. Inside a fold the wavefront is
regular (cell (i, j) works on element t at start + t + i + j), so it is handled whole;
``register_array`` steps every register and judges that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...ir.errors import SystolicError
from .analytic import (
    ACCUMULATOR_BYTES,
    Accesses,
    Bus,
    Residence,
    Traffic,
    interval,
    mapping,
    one_fold,
    residence,
)
from .targets import DTYPE_BYTES, RESULT_BYTES, Arrays

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Fold:
    """One filling of an array: ``down`` rows and ``across`` columns of what stays, at a place in the grid."""

    down: slice
    across: slice
    first_down: bool
    last_down: bool
    first_across: bool

    @property
    def rows(self) -> int:
        return self.down.stop - self.down.start

    @property
    def columns(self) -> int:
        return self.across.stop - self.across.start


@dataclass(frozen=True, slots=True)
class Run:
    """What a simulated matmul gave: the result, int32 or float32 [m, n], and what it took.

    ``starts``: the cycle at which each round of folds starts to load. ``stall_cycles`` are those that
    main memory adds. Words are counted in ``accesses``, bytes of main memory in ``traffic``.
    """

    result: Array
    cycles: float
    stall_cycles: float
    starts: Array
    accesses: Accesses
    traffic: Traffic
    mapping_utilization: float


def fold_order(rows: int, columns: int, arrays: Arrays) -> Iterator[Fold]:
    """The folds of a stationary operand [rows, columns]: down each column of tiles, then across."""
    for left in range(0, columns, arrays.columns):
        for top in range(0, rows, arrays.rows):
            bottom = min(top + arrays.rows, rows)
            down, across = slice(top, bottom), slice(left, min(left + arrays.columns, columns))
            yield Fold(down, across, top == 0, bottom == rows, left == 0)


def simulate(lhs: Array, rhs: Array, arrays: Arrays, bus: Bus | None = None, drained: bool = True) -> Run:
    """lhs [m, k] · rhs [k, n] on the arrays; without a ``bus`` all operands are at hand.

    ``drained=False`` leaves out the drain of output-stationary folds, as SCALE-Sim does.
    int8 accumulates exactly in int32 (and wraps there); floats accumulate in float32, fold by fold.
    """
    (m, k), n = lhs.shape, rhs.shape[1]
    where = mapping(m, k, n, arrays.dataflow)
    dtype, bus = _dtype_name(lhs, rhs), bus or Bus(np.inf)
    kept = residence(m, k, n, arrays, dtype, bus)
    order = list(fold_order(where.rows, where.columns, arrays))
    words = np.array([_fold_words(fold, where.wave, arrays.dataflow) for fold in order])
    moved = np.array([_fold_bytes(fold, where.wave, arrays.dataflow, kept, dtype) for fold in order])
    starts, cycles = _timeline(moved, where.wave, arrays, bus, drained)
    return Run(
        result=_result(lhs, rhs, arrays),
        cycles=cycles,
        stall_cycles=cycles - _timeline(moved, where.wave, arrays, Bus(np.inf), drained)[1],
        starts=starts,
        accesses=Accesses(*words.sum(axis=0).tolist()),
        traffic=_traffic(moved, arrays.dataflow),
        mapping_utilization=where.rows * where.columns / (len(order) * arrays.rows * arrays.columns),
    )


def _dtype_name(lhs: Array, rhs: Array) -> str:
    known = {"int8": "i8", "bfloat16": "bf16", "float16": "f16", "float32": "f32"}
    if lhs.ndim != 2 or rhs.ndim != 2 or lhs.shape[1] != rhs.shape[0] or 0 in lhs.shape + rhs.shape:
        raise SystolicError(f"operands {lhs.shape} and {rhs.shape} are not matrices [m, k] and [k, n]")
    if lhs.dtype != rhs.dtype or lhs.dtype.name not in known:
        found = f"{lhs.dtype} and {rhs.dtype}"
        raise SystolicError(f"arrays multiply two operands of one of {', '.join(known)}, not {found}")
    return known[lhs.dtype.name]


def _result(lhs: Array, rhs: Array, arrays: Arrays) -> Array:
    """The product as the arrays form it: each fold over k adds its partial sums to the accumulators."""
    integers = lhs.dtype == np.int8
    wide, total_dtype = (np.float64, np.int64) if integers else (np.float32, np.float32)
    left: Array = lhs.astype(wide)
    right: Array = rhs.astype(wide)  # products of int8 are exact in float64, and fast
    total = np.zeros((lhs.shape[0], rhs.shape[1]), total_dtype)
    depth = lhs.shape[1] if arrays.dataflow == "os" else arrays.rows
    for top in range(0, lhs.shape[1], depth):
        total += (left[:, top : top + depth] @ right[top : top + depth]).astype(total_dtype)
    return total.astype(np.int32) if integers else total


def _fold_words(fold: Fold, wave: int, dataflow: str) -> tuple[int, int, int]:
    """Words of one fold: lhs read, rhs read, results written."""
    streamed, kept, across = wave * fold.rows, fold.rows * fold.columns, wave * fold.columns
    words = {"ws": (streamed, kept, across), "is": (kept, streamed, across), "os": (streamed, across, kept)}
    return words[dataflow]


def _fold_bytes(
    fold: Fold, wave: int, dataflow: str, kept: Residence, dtype: str
) -> tuple[int, int, int, int]:
    """Bytes of one fold: the operand that streams in, the other one in, spilled sums in, results out."""
    size, result = DTYPE_BYTES[dtype], RESULT_BYTES[dtype]
    streamed = 0 if kept.streamed and not fold.first_across else size * wave * fold.rows
    if dataflow == "os":
        return streamed, size * wave * fold.columns * fold.first_down, 0, result * fold.rows * fold.columns
    sums = 0 if kept.partial_sums else ACCUMULATOR_BYTES * wave * fold.columns
    out = result * wave * fold.columns if fold.last_down else sums
    return streamed, size * fold.rows * fold.columns, 0 if fold.first_down else sums, out


def _traffic(moved: Array, dataflow: str) -> Traffic:
    streamed, other, sums, out = moved.sum(axis=0).tolist()
    return Traffic(other, streamed, sums + out) if dataflow == "is" else Traffic(streamed, other, sums + out)


def _timeline(moved: Array, wave: int, arrays: Arrays, bus: Bus, drained: bool) -> tuple[Array, float]:
    """The cycle at which each round of ``count`` folds starts, and the cycle after the last result.

    While a round runs, the bus brings the next round's operands and takes the last round's results.
    """
    rounds = np.add.reduceat(moved, np.arange(0, len(moved), arrays.count), axis=0)
    into, out = rounds[:, :3].sum(axis=1), rounds[:, 3]
    beside = bus.latency_cycles + (into[1:] + out[:-1]) / bus.bytes_per_cycle
    steps = np.maximum(interval(wave, arrays, drained), beside)
    first = bus.latency_cycles + into[0] / bus.bytes_per_cycle
    starts = first + np.concatenate([[0.0], np.cumsum(steps)])
    return starts, float(starts[-1] + one_fold(wave, arrays, drained) + out[-1] / bus.bytes_per_cycle)
