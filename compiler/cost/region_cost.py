"""What one region costs on a target: the longest of its memory, arrays and vector unit, which overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from . import analytic, tpu
from .regions import Product, Prologue, Region, Value
from .targets import DTYPE_BYTES, Target
from .tiling import on_chip_bytes

# A value stays on chip between regions if it takes at most this share of the on-chip memory.
RESIDENT_SHARE = 0.25
# A schedule that takes so many times what its longest side does is bound by latency.
UNACCOUNTED = 1.5


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds and what they are made of. ``bound``: memory, arrays, vector or latency, whichever decides;
    ``arithmetic_seconds`` are the longer of arrays and vector unit.

    ``weights``, ``state``, ``activations``: bytes to and from main memory. ``on_chip``: bytes of tiles.
    """

    seconds: float
    bound: str
    memory_seconds: float
    arithmetic_seconds: float
    weights: float
    state: float
    activations: float
    multiply_adds: int
    elementwise: float
    on_chip: float
    joules: float

    @property
    def bytes(self) -> float:
        return self.weights + self.state + self.activations


@dataclass(frozen=True, slots=True)
class Schedule:
    """A matmul as the target's own compiler would run it, without the launch of the program.

    ``bound`` is what decides it where no side of the region accounts for its time: the latency of its
    steps, or the vector unit that multiplies a single row. ``on_chip``: bytes of tiles.
    """

    seconds: float
    bound: str
    on_chip: float


class Machine:
    """A target as regions see it: rates per second, of everything infinite that the target does not say."""

    def __init__(self, target: Target, dtype: str) -> None:
        self.target = target
        self.dtype = dtype
        clock = target.arrays.clock_hz if target.arrays else None
        self.clock = clock or math.inf
        nominal = target.memory.hbm_bytes_per_second or math.inf
        self.nominal_bandwidth = nominal
        compiler = target.compiler
        self.bandwidth = compiler.bytes_per_cycle * self.clock if compiler and clock else nominal
        self.peak = target.peak.get(dtype) or self._array_peak()
        lanes = target.vector.lanes if target.vector else None
        self.vector = lanes * self.clock if lanes else target.peak.get("f32", math.inf)
        self.launch_seconds = compiler.launch_cycles / self.clock if compiler else 0.0
        self._schedules: dict[tuple, Schedule] = {}

    def _array_peak(self) -> float:
        arrays = self.target.arrays
        if arrays is None:
            return math.inf
        cells = arrays.rows * arrays.columns * arrays.count
        return 2 * cells * self.clock * self.target.macs_per_cell(self.dtype)

    def is_resident(self, size: float) -> bool:
        """Whether a value of so many bytes stays on chip from the region that makes it to its readers."""
        return size <= RESIDENT_SHARE * self.target.memory.on_chip_bytes

    # ---- one region ----

    def cost(self, region: Region, rows: int) -> Costs:
        """The costs of a region for a number of rows."""
        weights, state = region.weights.at(rows), region.state.at(rows)
        weights += sum(self._expert_bytes(product, rows) for product in region.products)
        moved = self._moved(region.inputs, rows) + self._moved(region.results, rows)
        moved += 2 * self._moved(region.spilled, rows)
        operations = region.elementwise.at(rows)
        macs = sum(product.multiply_adds(rows) for product in region.products)
        sides = {
            "memory": (weights + state + moved) / self.bandwidth,
            "vector": operations / self.vector,
            "arrays": sum(self._array_seconds(product, rows) for product in region.products),
        }
        bound = max(sides, key=sides.__getitem__)
        seconds, on_chip = sides[bound], 0.0
        if self._is_compiled(region):
            schedule = self._compiled(region.products[0], rows, moved, region.prologue)
            if schedule.seconds > UNACCOUNTED * seconds:
                bound = schedule.bound
            seconds, on_chip = max(seconds, schedule.seconds), schedule.on_chip
        total = weights + state + moved
        return Costs(
            seconds=seconds,
            bound=bound,
            memory_seconds=sides["memory"],
            arithmetic_seconds=max(sides["arrays"], sides["vector"]),
            weights=weights,
            state=state,
            activations=moved,
            multiply_adds=macs,
            elementwise=operations,
            on_chip=on_chip,
            joules=self._joules(macs, total),
        )

    def _moved(self, values: tuple[Value, ...], rows: int) -> float:
        sizes = [value.bytes.at(rows) for value in values]
        return sum(size for size in sizes if not self.is_resident(size))

    def _expert_bytes(self, product: Product, rows: int) -> float:
        return product.chosen_experts(rows) * product.k * product.n * DTYPE_BYTES[self.dtype]

    def _joules(self, macs: int, moved: float) -> float:
        energy = self.target.energy
        if energy is None or self.dtype not in energy.mac_pj:
            return math.nan
        return 1e-12 * (macs * energy.mac_pj[self.dtype] + moved * energy.hbm_byte_pj)

    def _array_seconds(self, product: Product, rows: int) -> float:
        arrays = self.target.arrays
        batch, m, k, n = product.at(rows)
        if arrays is None or arrays.clock_hz is None:
            return 2 * batch * m * k * n / self.peak
        cycles = analytic.compute_cycles(m, k, n, arrays, batch=batch)
        return float(cycles) / self.target.macs_per_cell(self.dtype) / self.clock

    # ---- matmuls as the target's own compiler schedules them ----

    def _is_compiled(self, region: Region) -> bool:
        """Whether the constants of the compiler hold for it: one matmul with weights."""
        if self.target.compiler is None or len(region.products) != 1:
            return False
        (product,) = region.products
        return (
            product.batch == 1
            and not product.experts
            and product.grows != "batch"
            and product.right == "weights"
        )

    def _compiled(self, product: Product, rows: int, moved: float, prologue: Prologue) -> Schedule:
        """The best schedule of a matmul in a region that moves so many bytes of values."""
        _, m, k, n = product.at(rows)
        size = DTYPE_BYTES[self.dtype]
        kept = (self.is_resident(size * m * k), self.is_resident(size * m * n))
        weights = None
        if prologue.operations:
            cycles = prologue.operations * self.clock / self.vector
            weights = tpu.Kept(prologue.kept / (k * n), cycles / (k * n))
        key = (m, k, n, kept, weights)
        if key not in self._schedules:
            self._schedules[key] = self._best_schedule(m, k, n, kept, weights)
        schedule = self._schedules[key]
        own = size * (m * k * (not kept[0]) + m * n * (not kept[1]))
        return replace(schedule, seconds=schedule.seconds + max(moved - own, 0) / self.bandwidth)

    def _best_schedule(
        self, m: int, k: int, n: int, kept: tuple[bool, bool], weights: tpu.Kept | None
    ) -> Schedule:
        compiler, arrays = self.target.compiler, self.target.arrays
        assert compiler is not None
        assert arrays is not None
        if m == 1 and compiler.matvec_on_vector_unit:
            memory, vector = tpu.matvec_cycles(k, n, self.dtype, compiler, weights)
            return Schedule((memory + vector) / self.clock, "vector" if vector > memory else "memory", 0.0)
        tilings = tpu.searched_tilings((m, k, n), self.dtype, compiler)
        streamed = (*(() if kept[0] else ("lhs",)), "rhs", *(() if kept[1] else ("result",)))
        cycles = tpu.estimate(tilings, self.dtype, arrays, compiler, streamed, weights).cycles
        best = int(np.argmin(cycles))
        seconds = (float(cycles[best]) - compiler.launch_cycles) / self.clock
        return Schedule(seconds, "latency", float(on_chip_bytes(tilings, self.dtype)[best]))
