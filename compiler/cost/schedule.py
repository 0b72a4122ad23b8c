"""How a matmul runs on a target: the loops over tiles, the dataflow, the buffers, and what limits it.

A step takes one tile of lhs and one of rhs. With two buffers the tiles of the next step come from main memory
while the arrays work, with one they come first. All tile sizes, loop orders, dataflows and numbers of buffers
are candidates at once; the fastest that fits on chip is chosen. ``schedule_run`` walks one, step by step.

    two buffers   first tiles + (steps - 1) · max(arrays, memory) + arrays + last result
    one buffer    all tiles + steps · arrays

with ``arrays`` and ``memory`` the means over all steps (over all but the first): exact where all steps are
alike, and never below what the longer side needs on its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from ...ir.errors import SystolicError
from . import tpu
from .analytic import ACCUMULATOR_BYTES, Bus, Number, Traffic, ceil_div, interval, mapping, one_fold
from .targets import DTYPE_BYTES, RESULT_BYTES, Arrays, Target
from .tiling import ORDERS, Tilings, candidates, on_chip_bytes, repeats, traffic

Array = np.ndarray
BUFFERS = (2, 1)
OPERANDS = ("lhs", "rhs", "result")
LETTERS = {"lhs": "mk", "rhs": "kn", "result": "mn"}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Loops over the tiles of lhs [m, k] · rhs [k, n], in ``order`` from the outermost to the innermost.

    ``passes``: how often the whole of lhs, rhs and result moves between main memory and chip.
    ``on_chip``: bytes of tiles on chip, all buffers counted, of ``room``; ``moved_by_operand``: bytes to
    and from main memory. ``arrays_cycles`` and ``memory_cycles``: what either side needs on its own.
    ``is_loading``: what stays on an array takes longer to load than to use.
    """

    shape: tuple[int, int, int]
    tile: tuple[int, int, int]
    order: str
    dataflow: str
    buffers: int
    passes: tuple[int, int, int]
    on_chip: int
    room: int
    moved_by_operand: tuple[int, int, int]
    cycles: float
    arrays_cycles: float
    memory_cycles: float
    is_loading: bool = False

    @property
    def moved(self) -> int:
        return sum(self.moved_by_operand)

    @property
    def pieces(self) -> tuple[int, int, int]:
        """How many tiles there are along m, k and n."""
        m, k, n = (ceil_div(size, tile) for size, tile in zip(self.shape, self.tile, strict=True))
        return m, k, n

    @property
    def steps(self) -> int:
        return math.prod(self.pieces)

    @property
    def bound(self) -> str:
        """What takes longer on its own: memory or arrays."""
        return "memory" if self.memory_cycles > self.arrays_cycles else "arrays"

    @property
    def loops(self) -> Iterator[tuple[str, int, int]]:
        """(letter, size, tile) of the loops that run more than once, the outermost first."""
        sizes = dict(zip("mkn", zip(self.shape, self.tile, strict=True), strict=True))
        return ((x, *sizes[x]) for x in self.order if sizes[x][0] > sizes[x][1])

    @property
    def spills(self) -> bool:
        """Whether sums leave the chip before they are finished: a loop runs inside of that over k."""
        loops = [letter for letter, _, _ in self.loops]
        return "k" in loops[:-1]

    def limit(self) -> str:
        """What limits it, in words: the longer side, and what more room on chip would save it."""
        share = 100 * max(self.memory_cycles, self.arrays_cycles) / max(self.cycles, 1)
        again = [f"{name} passes {n} times" for name, n in zip(OPERANDS, self.passes, strict=True) if n > 1]
        if self.bound == "arrays":
            loads = ", which load weights for longer than a wave takes" if self.is_loading else ""
            return f"the arrays ({share:.0f} % of {self.cycles:,.0f} cycles){loads}"
        text = f"main memory ({share:.0f} % of {self.cycles:,.0f} cycles)"
        return f"{text}; {', '.join(again)}, as not all of it fits on chip" if again else text

    def describe(self) -> dict[str, int | str]:
        """As JSON."""
        m, k, n = self.tile
        return {
            "m": m, "k": k, "n": n, "order": self.order, "steps": self.steps, "dataflow": self.dataflow,
            "buffers": self.buffers, "on_chip_bytes": self.on_chip, "limit": self.limit(),
        }  # fmt: skip


def choose_schedule(m: int, k: int, n: int, dtype: str, target: Target) -> Schedule:
    """The fastest schedule of lhs [m, k] · rhs [k, n] on ``target``; see ``fastest_schedules``."""
    return fastest_schedules(m, k, n, dtype, target, 1)[0]


def fastest_schedules(m: int, k: int, n: int, dtype: str, target: Target, most: int) -> list[Schedule]:
    """The ``most`` fastest schedules that fit, the fastest first.

    On a TPU generation with compiler constants the cycles are those that its compiler would estimate.
    Raises ``SystolicError`` where the target has no arrays to tile for, or no room for one tile.
    """
    arrays = target.arrays
    if arrays is None:
        raise SystolicError(f"target {target.name} has no arrays to tile for")
    if target.compiler is not None:
        return _compiled((m, k, n), dtype, target, most)
    bus, found = main_memory(target), []
    for dataflow, buffers in product(arrays.dataflows or (arrays.dataflow,), BUFFERS):
        found += _fastest((m, k, n), dtype, replace(arrays, dataflow=dataflow), bus, buffers, most)
    if not found:
        room = f"{bus.on_chip_bytes:,} bytes"
        raise SystolicError(f"target {target.name}: no tile of [{m}, {k}] · [{k}, {n}] fits into {room}")
    return sorted(found, key=lambda schedule: schedule.cycles)[:most]


def main_memory(target: Target) -> Bus:
    """A target's main memory as its arrays see it; ideal where it has no bandwidth or no clock."""
    memory, clock = target.memory, target.arrays.clock_hz if target.arrays else None
    if memory.hbm_bytes_per_second is None or clock is None:
        return Bus(np.inf, 0.0, memory.on_chip_bytes)
    latency = (memory.hbm_latency_seconds or 0.0) * clock
    return Bus(memory.hbm_bytes_per_second / clock, latency, memory.on_chip_bytes)


# ---- on arrays behind a main memory ----


def granules(arrays: Arrays) -> tuple[int, int, int]:
    """The sizes that tiles along m, k and n are multiples of: whole folds of what stays."""
    rows, columns = arrays.rows, arrays.columns
    return {"ws": (1, rows, columns), "is": (columns, rows, 1), "os": (rows, 1, columns)}[arrays.dataflow]


def _fastest(
    shape: tuple[int, int, int], dtype: str, arrays: Arrays, bus: Bus, buffers: int, most: int
) -> list[Schedule]:
    """The fastest schedules of one dataflow and number of buffers."""
    tilings = candidates(shape, granules(arrays), len(ORDERS))
    tilings = tilings.within_shape()
    room = tile_bytes(tilings, dtype, buffers)
    fits = room <= bus.on_chip_bytes
    tilings, room = tilings[fits], room[fits]
    if not len(tilings):
        return []
    moved, busy = moved_bytes(tilings, dtype), busy_cycles(tilings, arrays)
    cycles, memory = _cycles(tilings, dtype, arrays, bus, buffers)
    waves = mapping(tilings.m, tilings.k, tilings.n, arrays.dataflow).wave
    return [
        Schedule(
            shape=shape,
            tile=(int(tilings.m[i]), int(tilings.k[i]), int(tilings.n[i])),
            order=ORDERS[int(tilings.order[i])],
            dataflow=arrays.dataflow,
            buffers=buffers,
            passes=_passes(tilings, i),
            on_chip=int(room[i]),
            room=bus.on_chip_bytes,
            moved_by_operand=_at(moved, i),
            cycles=float(cycles[i]),
            arrays_cycles=float(busy[i]),
            memory_cycles=float(memory[i]),
            is_loading=arrays.overlapped and int(waves[i]) < arrays.rows,
        )
        for i in np.lexsort((moved.total, cycles))[:most].tolist()
    ]


def _passes(tilings: Tilings, index: int) -> tuple[int, int, int]:
    one = tilings[np.array([index])]
    lhs, rhs, result = (int(repeats(one, LETTERS[operand])[0]) for operand in OPERANDS)
    return lhs, rhs, result


def tile_bytes(tilings: Tilings, dtype: str, buffers: int) -> Array:
    """Room for the tiles: ``buffers`` of each that changes; results are sums until they are finished."""
    pieces = dict(zip("mkn", tilings.pieces, strict=True))
    total = np.zeros(len(tilings), np.int64)
    for operand, letters in LETTERS.items():
        size = ACCUMULATOR_BYTES if operand == "result" else DTYPE_BYTES[dtype]
        changes = pieces[letters[0]] * pieces[letters[1]] > 1
        area = getattr(tilings, letters[0]) * getattr(tilings, letters[1])
        total += np.where(changes, buffers, 1) * size * area
    return total


def moved_bytes(tilings: Tilings, dtype: str) -> Traffic:
    """Bytes to and from main memory; sums that leave the chip before they are finished come back."""
    m, k, n = tilings.shape
    size, spilled = DTYPE_BYTES[dtype], 2 * ACCUMULATOR_BYTES * (repeats(tilings, "mn") - 1)
    lhs, rhs = (size * area * repeats(tilings, letters) for area, letters in ((m * k, "mk"), (k * n, "kn")))
    return Traffic(lhs, rhs, m * n * (RESULT_BYTES[dtype] + spilled))


def _at(moved: Traffic, index: int) -> tuple[int, int, int]:
    return int(moved.lhs[index]), int(moved.rhs[index]), int(moved.result[index])


def busy_cycles(tilings: Tilings, arrays: Arrays) -> Array:
    """Cycles of the arrays over all steps, cut tiles at the edges as small as they are; without the last
    fold's way out of an overlapped array."""
    tiles = (tilings.m, tilings.k, tilings.n)
    sides: list[tuple[tuple[Number, Number], ...]] = [
        ((pieces - 1, tile), (1, size - (pieces - 1) * tile))
        for size, tile, pieces in zip(tilings.shape, tiles, tilings.pieces, strict=True)
    ]
    total: Number = 0.0
    for (number_m, m), (number_k, k), (number_n, n) in product(*sides):
        total = total + number_m * number_k * number_n * step_cycles(m, k, n, arrays)
    return np.asarray(total, np.float64)


def step_cycles(m: Number, k: Number, n: Number, arrays: Arrays) -> Number:
    """Cycles of the arrays for one step, its folds shared out in rounds."""
    where = mapping(m, k, n, arrays.dataflow)
    folds = ceil_div(where.rows, arrays.rows) * ceil_div(where.columns, arrays.columns)
    return ceil_div(folds, arrays.count) * interval(where.wave, arrays)


def way_out(wave: Number, arrays: Arrays) -> Number:
    """Cycles from the end of the last fold's interval until its results have left the array."""
    return one_fold(wave, arrays) - interval(wave, arrays)


def _cycles(tilings: Tilings, dtype: str, arrays: Arrays, bus: Bus, buffers: int) -> tuple[Array, Array]:
    """(all cycles, those that main memory needs on its own), by the formulas at the top."""
    m, _, n = tilings.shape
    pieces_m, _, pieces_n = tilings.pieces
    steps, busy, moved = tilings.steps, busy_cycles(tilings, arrays), moved_bytes(tilings, dtype).total
    first = DTYPE_BYTES[dtype] * tilings.k * (tilings.m + tilings.n)
    last = RESULT_BYTES[dtype] * (m - (pieces_m - 1) * tilings.m) * (n - (pieces_n - 1) * tilings.n)
    memory = moved / bus.bytes_per_cycle + steps * bus.latency_cycles
    out = way_out(mapping(tilings.m, tilings.k, tilings.n, arrays.dataflow).wave, arrays)
    if buffers == 1:
        return memory + busy + out, memory
    ends = bus.latency_cycles + (first + last) / bus.bytes_per_cycle
    beside = (memory - ends) / np.maximum(steps - 1, 1)
    each = busy / steps
    return ends + (steps - 1) * np.maximum(each, beside) + each + out, memory


# ---- as a TPU's compiler would ----


def _compiled(shape: tuple[int, int, int], dtype: str, target: Target, most: int) -> list[Schedule]:
    """The tilings that the compiler of a TPU generation would be expected to find fastest."""
    compiler, arrays = target.compiler, target.arrays
    assert compiler is not None
    assert arrays is not None
    tilings = tpu.searched_tilings(shape, dtype, compiler)
    found = tpu.estimate(tilings, dtype, arrays, compiler)
    whole, room = traffic(tilings, dtype), on_chip_bytes(tilings, dtype)
    return [
        Schedule(
            shape=shape,
            tile=(
                min(int(tilings.m[i]), shape[0]),
                min(int(tilings.k[i]), shape[1]),
                min(int(tilings.n[i]), shape[2]),
            ),
            order=ORDERS[int(tilings.order[i])],
            dataflow=arrays.dataflow,
            buffers=2,
            passes=_passes(tilings, i),
            on_chip=int(room[i]),
            room=compiler.scoped_bytes,
            moved_by_operand=_at(whole, i),
            cycles=float(found.cycles[i]),
            arrays_cycles=float(found.arrays[i] + found.results),
            memory_cycles=float(found.memory[i]),
        )
        for i in np.argsort(found.cycles, kind="stable")[:most].tolist()
    ]
