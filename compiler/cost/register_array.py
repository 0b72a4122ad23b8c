"""The array, register by register: every cycle moves every value one cell. The judge of ``array``.

Nothing here knows how long a fold takes: values move, cells latch and multiply, results are collected
where they leave, and the cycles are counted until the last one is out. For small arrays and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.errors import SystolicError
from .targets import Arrays

Array = np.ndarray
NOTHING = -1


@dataclass(frozen=True, slots=True)
class Stepped:
    """The result [m, n], int32 or float32, and the cycles that were stepped until it was complete."""

    result: Array
    cycles: int


def step_through(lhs: Array, rhs: Array, arrays: Arrays, drained: bool = True) -> Stepped:
    """lhs [m, k] · rhs [k, n] on one array (``count`` 1), all cells stepped every cycle.

    ``drained=False`` reads output-stationary results in place, which no array can: SCALE-Sim's count.
    """
    if arrays.count != 1:
        raise SystolicError(f"register-true stepping is for one array, not {arrays.count}")
    wide = np.int32 if np.issubdtype(lhs.dtype, np.integer) else np.float32
    left, right = lhs.astype(wide), rhs.astype(wide)
    if arrays.dataflow == "os":
        return _output_stationary(left, right, arrays, drained)
    if arrays.dataflow == "ws":
        return _weight_stationary(left, right, arrays)
    transposed = _weight_stationary(right.T, left.T, arrays)  # lhs stays, columns of rhs stream past
    return Stepped(transposed.result.T, transposed.cycles)


@dataclass(slots=True)
class Lane:
    """One register per cell for a value that travels, with the fold and the element that it belongs to."""

    value: Array
    fold: Array
    element: Array

    @classmethod
    def empty(cls, rows: int, columns: int, dtype: np.dtype) -> Lane:
        cells = (rows, columns)
        return cls(np.zeros(cells, dtype), np.full(cells, NOTHING), np.full(cells, NOTHING))

    def shift(self, axis: int, entering: tuple[Array, Array, Array]) -> None:
        """Moves every value one cell down (axis 0) or right (axis 1); ``entering`` fills the edge."""
        for register, edge in zip((self.value, self.fold, self.element), entering, strict=True):
            moved = np.roll(register, 1, axis)
            moved[(0,) if axis == 0 else (slice(None), 0)] = edge
            register[...] = moved


def _entering(tiles: list[Array], starts: list[int], now: int) -> tuple[Array, Array, Array]:
    """What enters an edge at cycle ``now``: port p sees element now - start - p of each fold's tile.

    A tile is [elements, ports]; at most one fold has an element for a port at a time.
    """
    length, ports = tiles[0].shape
    value, fold, element = np.zeros(ports, tiles[0].dtype), np.full(ports, NOTHING), np.full(ports, NOTHING)
    for index, start in enumerate(starts):
        if start <= now < start + length + ports:
            at = now - start - np.arange(ports)
            live = (at >= 0) & (at < length)
            value[live], fold[live], element[live] = (
                tiles[index][at[live], np.flatnonzero(live)],
                index,
                at[live],
            )
    return value, fold, element


def _tiles(operand: Array, down: int, across: int) -> list[list[Array]]:
    """``operand`` cut into tiles of down × across, padded with zeros at the edges: [column][row]."""
    rows, columns = -(-operand.shape[0] // down), -(-operand.shape[1] // across)
    padded = np.zeros((rows * down, columns * across), operand.dtype)
    padded[: operand.shape[0], : operand.shape[1]] = operand
    return [
        [padded[i * down : (i + 1) * down, j * across : (j + 1) * across] for i in range(rows)]
        for j in range(columns)
    ]


def _weight_stationary(stream: Array, kept: Array, arrays: Arrays) -> Stepped:
    """stream [T, K] flows right, sums flow down; kept [K, N] is latched from a lane that flows down."""
    rows, columns, wave = arrays.rows, arrays.columns, stream.shape[0]
    grid = _tiles(kept, rows, columns)
    weights = [tile for column in grid for tile in column]
    slabs = [tile for (tile,) in _tiles(stream, wave, rows)] * len(grid)
    acts, loads = (Lane.empty(rows, columns, stream.dtype) for _ in range(2))
    banks, sums = np.zeros((2, rows, columns), stream.dtype), np.zeros((rows, columns), stream.dtype)
    row_index, cells = np.arange(rows)[:, None], np.indices((rows, columns))
    out = np.zeros((len(grid), wave, columns), stream.dtype)
    load_starts, missing, now = [0], len(weights) * wave * columns, -1
    while missing:
        now += 1
        loads.shift(0, _entering(weights, load_starts, now))
        latched = (loads.fold != NOTHING) & (loads.element == row_index)
        banks[loads.fold[latched] % 2, cells[0][latched], cells[1][latched]] = loads.value[latched]
        acts.shift(1, _entering(slabs, [start + rows for start in load_starts], now))
        live = acts.fold != NOTHING
        weight = np.where(acts.fold % 2 == 1, banks[1], banks[0])
        sums = np.roll(sums, 1, axis=0)
        sums[0] = 0
        sums = np.where(live, sums + acts.value * weight, 0)
        leaving = np.flatnonzero(live[-1])
        fold = acts.fold[-1, leaving]
        out[fold // len(grid[0]), acts.element[-1, leaving], leaving] += sums[-1, leaving]
        missing -= len(leaving)
        if _may_start(now, load_starts, len(weights), missing, wave, arrays, wave * columns):
            load_starts.append(now + 1)
    return Stepped(np.concatenate(list(out), axis=1)[:, : kept.shape[1]], now + 1)


def _may_start(
    now: int, starts: list[int], folds: int, missing: int, wave: int, arrays: Arrays, per_fold: int
) -> bool:
    """Whether the next fold may enter in the next cycle.

    Overlapped: as soon as the ports that load (or drain) and those that stream are both free again.
    Otherwise: when everything of the folds before has left.
    """
    if len(starts) == folds:
        return False
    if arrays.overlapped:
        return now + 1 >= starts[-1] + max(wave, arrays.rows)
    return missing == (folds - len(starts)) * per_fold


def _output_stationary(lhs: Array, rhs: Array, arrays: Arrays, drained: bool) -> Stepped:
    """lhs flows right, rhs flows down, sums stay; a chain of registers carries finished columns out."""
    rows, columns, wave = arrays.rows, arrays.columns, lhs.shape[1]
    left, right = _tiles(lhs.T, wave, rows), _tiles(rhs, wave, columns)
    lefts = [tile for (tile,) in left] * len(right)
    rights = [tile for (tile,) in right for _ in left]
    acts, tops = Lane.empty(rows, columns, lhs.dtype), Lane.empty(rows, columns, lhs.dtype)
    chain, banks = Lane.empty(rows, columns, lhs.dtype), np.zeros((2, rows, columns), lhs.dtype)
    nothing = (np.zeros(columns, lhs.dtype), np.full(columns, NOTHING), np.full(columns, NOTHING))
    out = np.zeros((len(lefts), rows, columns), lhs.dtype)
    starts, missing, now, finished = [0], out.size, -1, np.full(columns, NOTHING)
    while missing:
        now += 1
        chain.shift(0, nothing)
        for column in np.flatnonzero(finished != NOTHING):  # its last row finished in the cycle before
            chain.value[:, column] = banks[finished[column] % 2, :, column]
            chain.fold[:, column], chain.element[:, column] = finished[column], np.arange(rows)
        acts.shift(1, _entering(lefts, starts, now))
        tops.shift(0, _entering(rights, starts, now))
        live = acts.fold != NOTHING
        for bank in range(2):
            here = live & (acts.fold % 2 == bank)
            fresh = np.where(acts.element == 0, 0, banks[bank])
            banks[bank] = np.where(here, fresh + acts.value * tops.value, banks[bank])
        done = live & (acts.element == wave - 1)
        finished = np.where(done[-1], acts.fold[-1], NOTHING)
        if drained:
            leaving = np.flatnonzero(chain.fold[-1] != NOTHING)
            out[chain.fold[-1, leaving], chain.element[-1, leaving], leaving] = chain.value[-1, leaving]
            missing -= len(leaving)
        else:
            out[acts.fold[done], *np.nonzero(done)] = banks[acts.fold[done] % 2, *np.nonzero(done)]
            missing -= int(done.sum())
        if _may_start(now, starts, len(lefts), missing, wave, arrays, rows * columns):
            starts.append(now + 1)
    return Stepped(_assembled(out, len(left), lhs.shape[0], rhs.shape[1]), now + 1)


def _assembled(tiles: Array, down: int, rows: int, columns: int) -> Array:
    """Result tiles [fold, r, c], down each column of tiles, as one matrix without its padding."""
    folds, tile_rows, tile_columns = tiles.shape
    grid = tiles.reshape(folds // down, down, tile_rows, tile_columns).transpose(1, 2, 0, 3)
    return grid.reshape(down * tile_rows, -1)[:rows, :columns]
