"""A schedule walked step by step: the numbers that it computes, the bytes that it moves, and its cycles.

It judges the closed form of ``schedule``: nothing here knows how often a loop repeats an operand. A tile is
fetched when it is not the one on chip; sums leave when another result's turn comes, and come back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .analytic import ACCUMULATOR_BYTES, Bus, mapping
from .schedule import LETTERS, Schedule, step_cycles, way_out
from .targets import DTYPE_BYTES, RESULT_BYTES, Arrays

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class ScheduleRun:
    """What a walk gave: the product (float32, or int32 of int8), cycles, and bytes per operand."""

    result: Array
    cycles: float
    moved: dict[str, int]


@dataclass(frozen=True, slots=True)
class Step:
    """One step: where its tiles lie along m, k and n, and whether it ends the result's turn on chip."""

    at: dict[str, slice]
    ends_turn: bool

    def size(self, letter: str) -> int:
        return self.at[letter].stop - self.at[letter].start

    def tile(self, letters: str) -> tuple[slice, slice]:
        return self.at[letters[0]], self.at[letters[1]]


def walk(schedule: Schedule) -> Iterator[Step]:
    """The steps in their order."""
    sizes, tiles = (dict(zip("mkn", of, strict=True)) for of in (schedule.shape, schedule.tile))
    cuts = [
        [slice(start, min(start + tiles[x], sizes[x])) for start in range(0, sizes[x], tiles[x])]
        for x in schedule.order
    ]
    places = [dict(zip(schedule.order, at, strict=True)) for at in itertools.product(*cuts)]
    for i, at in enumerate(places):
        after = places[i + 1] if i + 1 < len(places) else None
        yield Step(at, after is None or any(after[x] != at[x] for x in LETTERS["result"]))


def run_schedule(
    lhs: Array, rhs: Array, schedule: Schedule, arrays: Arrays, bus: Bus, dtype: str
) -> ScheduleRun:
    """lhs [m, k] · rhs [k, n] as the schedule has it, on the arrays behind the bus; operands as ``dtype``."""
    arrays = replace(arrays, dataflow=schedule.dataflow)
    wide = np.int32 if lhs.dtype == np.int8 else np.float32
    result: Array = np.zeros((lhs.shape[0], rhs.shape[1]), wide)
    moved, held = dict.fromkeys(LETTERS, 0), dict.fromkeys(LETTERS)
    into, out, busy = [], [], []
    begun: set[tuple[int, int]] = set()
    out_of_arrays = 0.0
    for step in walk(schedule):
        m, k, n = (step.at[x] for x in "mkn")
        result[m, n] = result[m, n] + lhs[m, k].astype(wide) @ rhs[k, n].astype(wide)
        arriving = {x: _arriving(x, step, held, begun, dtype) for x in LETTERS}
        begun.add((m.start, n.start))
        leaving = _leaving(step, k.stop == lhs.shape[1], dtype) if step.ends_turn else 0
        for x in LETTERS:
            moved[x] += arriving[x]
        moved["result"] += leaving
        into.append(sum(arriving.values()))
        out.append(leaving)
        size_m, size_k, size_n = (step.size(x) for x in "mkn")
        busy.append(int(step_cycles(size_m, size_k, size_n, arrays)))
        out_of_arrays = float(way_out(mapping(size_m, size_k, size_n, arrays.dataflow).wave, arrays))
    cycles = _timeline(np.array(into), np.array(out), np.array(busy), schedule.buffers, bus)
    return ScheduleRun(result, cycles + out_of_arrays, moved)


def _arriving(operand: str, step: Step, held: dict, begun: set, dtype: str) -> int:
    """Bytes that an operand's tile brings: none if it is on chip, of a result only sums begun before."""
    letters = LETTERS[operand]
    tile = step.tile(letters)
    if held[operand] == tile:
        return 0
    held[operand] = tile
    area = step.size(letters[0]) * step.size(letters[1])
    if operand == "result":
        return ACCUMULATOR_BYTES * area * ((tile[0].start, tile[1].start) in begun)
    return DTYPE_BYTES[dtype] * area


def _leaving(step: Step, is_finished: bool, dtype: str) -> int:
    size = RESULT_BYTES[dtype] if is_finished else ACCUMULATOR_BYTES
    return size * step.size("m") * step.size("n")


def _timeline(into: Array, out: Array, busy: Array, buffers: int, bus: Bus) -> float:
    """Cycles until the last result is in main memory, without the way out of the arrays.

    With two buffers a step lasts until it is computed, the next step's tiles are here, and what the step
    before it finished is gone; with one, everything happens in turn.
    """
    rate, latency = bus.bytes_per_cycle, bus.latency_cycles
    if buffers == 1:
        return float(busy.sum() + (into.sum() + out.sum()) / rate + len(busy) * latency)
    beside = latency + (into[1:] + np.concatenate([[0], out[:-2]])[: len(into) - 1]) / rate
    late = out[-2] / rate if len(out) > 1 else 0.0
    last = max(float(busy[-1]), late)
    return float(latency + into[0] / rate + np.maximum(busy[:-1], beside).sum() + last + out[-1] / rate)
