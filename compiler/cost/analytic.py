"""What a matmul costs on systolic arrays, in closed form: cycles, reads and writes, bytes, energy.

Every function takes numbers or NumPy arrays that broadcast, so that many shapes are one call. The
simulator in ``array`` counts the same things fold by fold; ``docs/cost-model.md`` says where the two
may differ, and by how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .targets import DTYPE_BYTES, RESULT_BYTES, Arrays, Energy

Number = Any  # an int, a float, or a NumPy array of them
ACCUMULATOR_BYTES = 4


@dataclass(frozen=True, slots=True)
class Mapping:
    """A matmul laid on an array: what stays (``rows`` × ``columns`` of it) and how long a wave is."""

    rows: Number
    columns: Number
    wave: Number


def mapping(m: Number, k: Number, n: Number, dataflow: str) -> Mapping:
    """ws: rhs[k, n] stays, m rows stream. is: lhs[m, k] stays, n columns stream. os: the result stays."""
    if dataflow == "ws":
        return Mapping(k, n, m)
    return Mapping(k, m, n) if dataflow == "is" else Mapping(m, n, k)


@dataclass(frozen=True, slots=True)
class Folds:
    """How often the arrays are filled: ``down`` × ``across`` tiles, in ``rounds`` of all arrays."""

    down: Number
    across: Number
    rounds: Number


def ceil_div(x: Number, y: Number) -> Number:
    """⌈x / y⌉ in integers."""
    return -(-x // y)


def folds(where: Mapping, arrays: Arrays) -> Folds:
    """The tiles of the stationary operand (os: of the result), charged at full array size."""
    down, across = ceil_div(where.rows, arrays.rows), ceil_div(where.columns, arrays.columns)
    return Folds(down, across, ceil_div(down * across, arrays.count))


def one_fold(wave: Number, arrays: Arrays, drained: bool = True) -> Number:
    """Cycles of a fold on its own: load (os: drain) R, fill and empty R + C - 2, and the wave T."""
    load = arrays.rows if drained or arrays.dataflow != "os" else 0
    return load + arrays.rows + arrays.columns + wave - 2


def interval(wave: Number, arrays: Arrays, drained: bool = True) -> Number:
    """Cycles from the start of one fold to the start of the next on the same array.

    Overlapped loads and drains: max(T, R); otherwise the whole fold. ``drained=False`` leaves out
    the drain of os, as SCALE-Sim does.
    """
    return np.maximum(wave, arrays.rows) if arrays.overlapped else one_fold(wave, arrays, drained)


def compute_cycles(
    m: Number, k: Number, n: Number, arrays: Arrays, drained: bool = True, batch: Number = 1
) -> Number:
    """Cycles of the arrays with all operands at hand, from the first load to the last result.

    Overlapped: R + (folds - 1) · max(T, R) + T + R + C - 2, otherwise folds · (2R + C + T - 2), with
    the folds of all ``batch`` matmuls shared out among the arrays.
    """
    wave = mapping(m, k, n, arrays.dataflow).wave
    tiles = folds(mapping(m, k, n, arrays.dataflow), arrays)
    rounds = ceil_div(batch * tiles.down * tiles.across, arrays.count)
    return (rounds - 1) * interval(wave, arrays, drained) + one_fold(wave, arrays, drained)


@dataclass(frozen=True, slots=True)
class Accesses:
    """Words that the arrays read from and write to the memory beside them."""

    lhs_reads: Number
    rhs_reads: Number
    writes: Number

    @property
    def reads(self) -> Number:
        return self.lhs_reads + self.rhs_reads


def accesses(m: Number, k: Number, n: Number, arrays: Arrays, scalesim_compatible: bool = False) -> Accesses:
    """Reads and writes, in words. Partial sums of every fold over k are written.

    ``scalesim_compatible`` adds the folds · (R + C) writes by which SCALE-Sim over-counts os.
    """
    tiles = folds(mapping(m, k, n, arrays.dataflow), arrays)
    if arrays.dataflow == "ws":
        return Accesses(m * k * tiles.across, k * n, m * n * tiles.down)
    if arrays.dataflow == "is":
        return Accesses(m * k, k * n * tiles.across, m * n * tiles.down)
    surplus = tiles.down * tiles.across * (arrays.rows + arrays.columns) if scalesim_compatible else 0
    return Accesses(m * k * tiles.across, k * n * tiles.down, m * n + surplus)


def mapping_utilization(m: Number, k: Number, n: Number, arrays: Arrays) -> Number:
    """The share of cells that hold something, on average over the folds (0 to 1)."""
    where = mapping(m, k, n, arrays.dataflow)
    tiles = folds(where, arrays)
    return where.rows * where.columns / (tiles.down * tiles.across * arrays.rows * arrays.columns)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes between main memory and the memory beside the arrays."""

    lhs: Number
    rhs: Number
    result: Number

    @property
    def total(self) -> Number:
        return self.lhs + self.rhs + self.result


@dataclass(frozen=True, slots=True)
class Bus:
    """Main memory as the arrays see it: bandwidth, latency, and the room for operands beside them."""

    bytes_per_cycle: float
    latency_cycles: float = 0.0
    on_chip_bytes: int = 2**62


@dataclass(frozen=True, slots=True)
class Residence:
    """What is kept on chip: half of the room for a whole streamed operand, half for partial sums."""

    streamed: Number
    partial_sums: Number


def residence(m: Number, k: Number, n: Number, arrays: Arrays, dtype: str, bus: Bus) -> Residence:
    """Whether the operand that passes every column of folds stays on chip, and whether the sums do.

    That operand is lhs (is: rhs). A column of folds is finished before the next begins.
    """
    where = mapping(m, k, n, arrays.dataflow)
    half = bus.on_chip_bytes // 2
    streamed = DTYPE_BYTES[dtype] * where.rows * where.wave <= half
    sums = ACCUMULATOR_BYTES * where.wave * np.minimum(where.columns, arrays.columns) <= half
    return Residence(streamed, sums | np.bool_(arrays.dataflow == "os"))


def traffic(m: Number, k: Number, n: Number, arrays: Arrays, dtype: str, bus: Bus) -> Traffic:
    """Bytes per operand: what stays or is kept moves once; what is not kept, once per column of folds."""
    tiles = folds(mapping(m, k, n, arrays.dataflow), arrays)
    kept = residence(m, k, n, arrays, dtype, bus)
    lhs, rhs = DTYPE_BYTES[dtype] * m * k, DTYPE_BYTES[dtype] * k * n
    again = np.where(kept.streamed, 1, tiles.across)
    spilled = np.where(kept.partial_sums, 0, 2 * (tiles.down - 1) * ACCUMULATOR_BYTES * m * n)
    result = RESULT_BYTES[dtype] * m * n + spilled
    return Traffic(lhs, rhs * again, result) if arrays.dataflow == "is" else Traffic(lhs * again, rhs, result)


@dataclass(frozen=True, slots=True)
class FoldClass:
    """Folds that move the same bytes: ``number`` of them, at the ends of a column or a row or between."""

    first: bool
    last: bool
    number: Number
    size: Number


def _classes(length: Number, tile: int, total: Number) -> tuple[FoldClass, ...]:
    """The tiles of one dimension: alone, first, between, last (which may be cut)."""
    cut, several = total - (length - 1) * tile, length > 1
    return (
        FoldClass(True, True, np.where(several, 0, 1), cut),
        FoldClass(True, False, np.where(several, 1, 0), tile),
        FoldClass(False, False, np.maximum(length - 2, 0), tile),
        FoldClass(False, True, np.where(several, 1, 0), cut),
    )


def _moved_in(
    down: FoldClass, across: FoldClass, wave: Number, kept: Residence, dtype: str, os: bool
) -> Number:
    """Bytes that one fold needs: its tile of what stays, its slab of what streams, sums that were spilled."""
    size = DTYPE_BYTES[dtype]
    streamed = np.where(kept.streamed & (not across.first), 0, size * wave * down.size)
    if os:
        return streamed + size * wave * across.size * down.first
    sums = np.where(kept.partial_sums | down.first, 0, ACCUMULATOR_BYTES * wave * across.size)
    return streamed + size * down.size * across.size + sums


def _moved_out_before(
    down: FoldClass, across: FoldClass, where: Mapping, kept: Residence, dtype: str, arrays: Arrays
) -> Number:
    """Bytes of results (or spilled sums) that the fold before this one leaves."""
    size, columns = RESULT_BYTES[dtype], arrays.columns
    if arrays.dataflow == "os":
        cut = where.rows - (ceil_div(where.rows, arrays.rows) - 1) * arrays.rows
        return size * cut * columns if down.first else size * arrays.rows * across.size
    if down.first:
        return size * where.wave * columns
    return np.where(kept.partial_sums, 0, ACCUMULATOR_BYTES * where.wave * across.size)


def cycles(
    m: Number, k: Number, n: Number, arrays: Arrays, dtype: str, bus: Bus, drained: bool = True
) -> Number:
    """Cycles of a matmul behind a main memory, prefetching one fold ahead, results written behind.

    A fold takes the longer of its interval and of the transfers beside it, so folds are summed by
    class. Several arrays share the bus; their rounds are charged at the mean over all folds.
    """
    where = mapping(m, k, n, arrays.dataflow)
    tiles, kept = folds(where, arrays), residence(m, k, n, arrays, dtype, bus)
    step, total = interval(where.wave, arrays, drained), tiles.down * tiles.across
    later: Number = 0.0
    for across in _classes(tiles.across, arrays.columns, where.columns):
        for down in _classes(tiles.down, arrays.rows, where.rows):
            if down.first and across.first:
                continue  # the very first fold has nothing to hide behind
            moved = _moved_in(down, across, where.wave, kept, dtype, arrays.dataflow == "os")
            moved = moved + _moved_out_before(down, across, where, kept, dtype, arrays)
            transfer = bus.latency_cycles + arrays.count * moved / bus.bytes_per_cycle
            later = later + down.number * across.number * np.maximum(step, transfer)
    mean_round = later / np.maximum(total - 1, 1)
    ends = _ends(m, k, n, arrays, dtype, bus, drained)
    return ends + (tiles.rounds - 1) * mean_round


def _ends(m: Number, k: Number, n: Number, arrays: Arrays, dtype: str, bus: Bus, drained: bool) -> Number:
    """What nothing hides: the first transfers, one whole fold, and the last results on their way out."""
    where = mapping(m, k, n, arrays.dataflow)
    tiles, size = folds(where, arrays), DTYPE_BYTES[dtype]
    rows, columns = np.minimum(where.rows, arrays.rows), np.minimum(where.columns, arrays.columns)
    last_rows = where.rows - (tiles.down - 1) * arrays.rows
    last_columns = where.columns - (tiles.across - 1) * arrays.columns
    if arrays.dataflow == "os":
        first, last = size * where.wave * (rows + columns), last_rows * last_columns
    else:
        first, last = size * rows * (where.wave + columns), where.wave * last_columns
    used = np.minimum(arrays.count, tiles.down * tiles.across)
    transfers = (first * used + RESULT_BYTES[dtype] * last) / bus.bytes_per_cycle
    return bus.latency_cycles + transfers + one_fold(where.wave, arrays, drained)


def energy_pj(
    m: Number, k: Number, n: Number, arrays: Arrays, dtype: str, moved: Number, energy: Energy
) -> Number:
    """Picojoules of the multiply-adds, the words beside the arrays and ``moved`` bytes of main memory."""
    words = accesses(m, k, n, arrays)
    on_chip = words.reads * DTYPE_BYTES[dtype] + words.writes * ACCUMULATOR_BYTES
    if dtype not in energy.mac_pj:
        return np.nan * on_chip
    macs = m * k * n * energy.mac_pj[dtype]
    return macs + on_chip * energy.on_chip_byte_pj + moved * energy.hbm_byte_pj
