"""What an array does in every cycle: how many cells are busy, which words its ports read and write.

One array with all operands at hand, folds in the order of ``array``. Cell (i, j) works on element t of
a wave at start + t + i + j; everything here follows from that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from .analytic import compute_cycles, interval, mapping
from .array import Fold, fold_order
from .targets import Arrays

Array = np.ndarray
OPERANDS = ("lhs", "rhs", "result")


@dataclass(frozen=True, slots=True)
class Stream:
    """The words of one operand in the order of time: int64 arrays of one length.

    ``port``: the row of the array (lhs, and rhs of is) or the column (the others) that a word passes;
    ``address``: its row-major index in the operand's matrix.
    """

    cycle: Array
    port: Array
    address: Array


@dataclass(frozen=True, slots=True)
class Trace:
    """``busy`` [cycles]: cells that do a multiply-add of the matmul. And the words of every operand."""

    busy: Array
    lhs: Stream
    rhs: Stream
    result: Stream


def wave_starts(m: int, k: int, n: int, arrays: Arrays) -> list[tuple[int, Fold]]:
    """The cycle at which cell (0, 0) gets the first element of each fold."""
    where = mapping(m, k, n, arrays.dataflow)
    step = int(interval(where.wave, arrays))
    load = 0 if arrays.dataflow == "os" else arrays.rows
    order = fold_order(where.rows, where.columns, arrays)
    return [(load + index * step, fold) for index, fold in enumerate(order)]


def trace(m: int, k: int, n: int, arrays: Arrays) -> Trace:
    """The trace of lhs [m, k] · rhs [k, n] on one array of ``arrays``."""
    wave = mapping(m, k, n, arrays.dataflow).wave
    changes = np.zeros(int(compute_cycles(m, k, n, replace(arrays, count=1))) + 1, np.int64)
    words: list[tuple[Stream, Stream, Stream]] = []
    for start, fold in wave_starts(m, k, n, arrays):
        diagonals = np.convolve(np.ones(fold.rows, np.int64), np.ones(fold.columns, np.int64))
        begin = start + np.arange(len(diagonals))  # the cells of diagonal d work from start + d, for a wave
        np.add.at(changes, begin, diagonals)
        np.add.at(changes, begin + wave, -diagonals)
        places = _output_stationary if arrays.dataflow == "os" else _kept_operand
        words.append(places(start, fold, wave, arrays, (m, k, n)))
    return Trace(np.cumsum(changes)[:-1], *map(_in_time, zip(*words, strict=True)))


def _stream(cycle: Array, port: Array, row: Array, column: Array, width: int) -> Stream:
    """A stream of words at [row, column] of a matrix that is ``width`` wide."""
    parts = np.broadcast_arrays(cycle, port, row * width + column)
    return Stream(*(part.ravel() for part in parts))


def _kept_operand(
    start: int, fold: Fold, wave: int, arrays: Arrays, shape: tuple[int, int, int]
) -> tuple[Stream, Stream, Stream]:
    """ws and is: one operand enters the rows, the other was loaded down the columns, sums leave below."""
    _, k, n = shape
    t, i, j = np.arange(wave)[:, None], np.arange(fold.rows)[None], np.arange(fold.columns)[None]
    into, load, out = start + t + i, start - arrays.rows + j + i.T, start + t + arrays.rows - 1 + j
    depth, across = fold.down.start + i, fold.across.start + j
    if arrays.dataflow == "ws":
        lhs = _stream(into, i, t, depth, k)
        return lhs, _stream(load, j, depth.T, across, n), _stream(out, j, t, across, n)
    rhs = _stream(into, i, depth, t, n)
    return _stream(load, j, across, depth.T, k), rhs, _stream(out, j, across, t, n)


def _output_stationary(
    start: int, fold: Fold, wave: int, arrays: Arrays, shape: tuple[int, int, int]
) -> tuple[Stream, Stream, Stream]:
    """os: lhs enters the rows, rhs the columns; a column drains once its last row is complete."""
    _, k, n = shape
    t, i, j = np.arange(wave)[:, None], np.arange(fold.rows)[None], np.arange(fold.columns)[None]
    down, across = fold.down.start + i, fold.across.start + j
    drain = start + wave + arrays.rows - 1 + j + (arrays.rows - 1 - i.T)
    lhs, rhs = _stream(start + t + i, i, down, t, k), _stream(start + t + j, j, t, across, n)
    return lhs, rhs, _stream(drain, j, down.T, across, n)


def _in_time(streams: Iterable[Stream]) -> Stream:
    parts = [
        np.concatenate(part) for part in zip(*((s.cycle, s.port, s.address) for s in streams), strict=True)
    ]
    order = np.argsort(parts[0], kind="stable")
    return Stream(*(part[order] for part in parts))
