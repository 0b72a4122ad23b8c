"""How attention runs on a target when its scores never leave the chip: tiles of queries and of positions.

For every row and head, a tile of queries stays while all positions pass, a tile of keys and of values at a
time; the highest score, the sum of weights and the mix so far are kept for each query and rescaled when a
higher score comes (an online softmax: Milakov & Gimelshein 2018; Dao et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.errors import SystolicError
from .analytic import ACCUMULATOR_BYTES, Bus, ceil_div
from .schedule import main_memory, step_cycles
from .targets import DTYPE_BYTES, Target
from .tiling import tile_sizes


@dataclass(frozen=True, slots=True)
class AttentionSchedule:
    """``queries`` × ``group`` rows of scores over ``positions``, ``batch`` times, in tiles of ``tile``
    (queries, positions). ``passes``: how often all keys and values pass. Bytes and cycles as in
    ``Schedule``."""

    batch: int
    queries: int
    group: int
    positions: int
    tile: tuple[int, int]
    passes: int
    on_chip: int
    room: int
    moved: int
    cycles: float
    arrays_cycles: float
    memory_cycles: float

    @property
    def bound(self) -> str:
        """What takes longer on its own: memory or arrays."""
        return "memory" if self.memory_cycles > self.arrays_cycles else "arrays"

    def limit(self) -> str:
        """What limits it, in words."""
        share = 100 * max(self.memory_cycles, self.arrays_cycles) / max(self.cycles, 1)
        if self.bound == "arrays":
            return f"the arrays ({share:.0f} % of {self.cycles:,.0f} cycles)"
        text = f"main memory ({share:.0f} % of {self.cycles:,.0f} cycles)"
        return f"{text}; keys and values pass {self.passes} times" if self.passes > 1 else text


def choose_attention_schedule(
    batch: int,
    queries: int,
    group: int,
    positions: int,
    key_width: int,
    value_width: int,
    dtype: str,
    target: Target,
) -> AttentionSchedule:
    """The fastest tiles that fit on chip; keys and values have two buffers. ``SystolicError`` if none fit."""
    arrays = target.arrays
    if arrays is None:
        raise SystolicError(f"target {target.name} has no arrays to tile for")
    compiler, bus = target.compiler, main_memory(target)
    if compiler is not None:
        bus = Bus(compiler.bytes_per_cycle, bus.latency_cycles, compiler.scoped_bytes)
    size = DTYPE_BYTES[dtype]
    q, p = (grid.ravel() for grid in np.meshgrid(tile_sizes(queries, 1), tile_sizes(positions, 1)))
    rows = q * group
    kept = rows * (size * key_width + ACCUMULATOR_BYTES * (2 * value_width + 2))
    on_chip = kept + 2 * size * p * (key_width + value_width) + ACCUMULATOR_BYTES * rows * p
    fits = on_chip <= bus.on_chip_bytes
    if not fits.any():
        raise SystolicError(
            f"target {target.name}: no tile of attention fits into {bus.on_chip_bytes:,} bytes"
        )
    q, p, rows, on_chip = q[fits], p[fits], rows[fits], on_chip[fits]
    passes, pieces = ceil_div(queries, q), ceil_div(positions, p)
    steps = batch * passes * pieces
    own = queries * group * (key_width + value_width)
    moved = batch * size * (own + passes * positions * (key_width + value_width))
    busy = steps * (step_cycles(rows, key_width, p, arrays) + step_cycles(rows, p, value_width, arrays))
    busy = busy / target.macs_per_cell(dtype)
    memory = moved / bus.bytes_per_cycle + steps * bus.latency_cycles
    first = size * (rows * key_width + p * (key_width + value_width)) / bus.bytes_per_cycle
    cycles = first + np.maximum(memory, busy)
    best = int(np.lexsort((moved, cycles))[0])
    return AttentionSchedule(
        batch,
        queries,
        group,
        positions,
        (int(q[best]), int(p[best])),
        int(passes[best]),
        int(on_chip[best]),
        bus.on_chip_bytes,
        int(moved[best]),
        float(cycles[best]),
        float(busy[best]),
        float(memory[best]),
    )
