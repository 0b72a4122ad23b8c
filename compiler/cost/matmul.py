"""The cost of one matmul on a target: cycles, time, what bounds it, the tiling, bytes, alternatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ...ir.errors import SystolicError
from . import analytic, tpu
from .grouped import MULTIPLIED, Groups, forms, groups_of
from .schedule import fastest_schedules, main_memory
from .targets import DATAFLOWS, DTYPE_BYTES, RESULT_BYTES, Arrays, Compiler, Target, load_target
from .tiling import traffic

DTYPE_NAMES: Mapping[str, str] = {
    "int8": "i8",
    "s8": "i8",
    "bfloat16": "bf16",
    "float16": "f16",
    "float32": "f32",
}
ALTERNATIVES = 5


@dataclass(frozen=True)
class Matmul:
    """The cost of lhs [m, k] · rhs [k, n] with operands and result in main memory.

    ``bound``: what decides it ("memory", "arrays", "vector" or "launch"). ``tiling``: tile sizes, loop
    order (outermost first), steps. ``hbm_bytes``: to and from main memory. ``utilization``: the share of
    the arrays' multiply-adds that are useful, over all cycles (0 to 1). ``alternatives``: the next best
    choices. The array figures (``compute_cycles`` … ``mapping_utilization``; reads and writes in words
    of on-chip memory) are those of the target's dataflow with all operands at hand. None: the target
    lacks the figure.
    """

    m: int
    k: int
    n: int
    dtype: str
    target: str
    cycles: int | None
    seconds: float | None
    bound: str
    tiling: dict[str, Any]
    hbm_bytes: int
    hbm_bytes_by_operand: dict[str, int]
    utilization: float | None
    alternatives: tuple[dict[str, Any], ...] = ()
    energy_joules: float | None = None
    compute_cycles: int | None = None
    sram_reads: int | None = None
    sram_reads_by_operand: dict[str, int] = field(default_factory=dict)
    sram_writes: int | None = None
    mapping_utilization: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON types."""
        return asdict(self) | {"alternatives": list(self.alternatives)}


def matmul(
    m: int,
    k: int,
    n: int,
    dtype: str = "bf16",
    target: str | Target = "tpu-v5e",
    *,
    array: tuple[int, int] | None = None,
    dataflow: str | None = None,
    scalesim_compatible: bool = False,
) -> Matmul:
    """The predicted cost of lhs [m, k] · rhs [k, n] on ``target`` (a preset, a TOML file, or a ``Target``).

    For TPU generations with compiler constants ``cycles`` predicts the compiler's estimate; otherwise it is
    that of the fastest schedule on the target's arrays behind its main memory. ``array`` (rows, columns)
    and ``dataflow`` ("ws", "os", "is") replace the target's; with one of them, or where main memory is
    ideal, folds are counted one after another, as the simulator does. ``scalesim_compatible`` counts as
    SCALE-Sim does: no drain for os. ``dtype`` "int4-32" and the like: weights in groups (``grouped``).
    Raises ``SystolicError`` for sizes, dtypes, targets and dataflows that there are not.
    """
    machine = target if isinstance(target, Target) else load_target(target)
    groups, dtype = groups_of(dtype), DTYPE_NAMES.get(dtype, dtype)
    _check(m, k, n, dtype if groups is None else MULTIPLIED, array, dataflow)
    if groups is not None:
        if array is not None or dataflow is not None or scalesim_compatible:
            raise SystolicError(
                f"dtype {dtype!r} is predicted on the target's own arrays, in their own dataflow"
            )
        return _grouped(m, k, n, dtype, groups, machine)
    if machine.arrays is None:
        return _roofline(m, k, n, dtype, machine)
    changed = array is not None or dataflow is not None or scalesim_compatible
    arrays = with_changes(machine.arrays, array, dataflow)
    if changed or main_memory(machine).bytes_per_cycle == np.inf:
        return _on_arrays(m, k, n, dtype, machine, arrays, not scalesim_compatible)
    if machine.compiler is None:
        return _scheduled(m, k, n, dtype, machine, arrays)
    return _compiled(m, k, n, dtype, machine, arrays, machine.compiler)


def _check(m: int, k: int, n: int, dtype: str, array: tuple[int, int] | None, dataflow: str | None) -> None:
    for name, size in (("m", m), ("k", k), ("n", n)):
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise SystolicError(f"{name} is {size!r}; a matmul needs sizes of at least 1")
    if dtype not in DTYPE_BYTES:
        known = ", ".join((*DTYPE_BYTES, *DTYPE_NAMES))
        raise SystolicError(
            f"dtype {dtype!r} has no cost model; expected one of {known}, or int4-32 and the like"
        )
    if array is not None and min(array) < 1:
        raise SystolicError(f"array {array[0]}x{array[1]} has no cells")
    if dataflow is not None and dataflow not in DATAFLOWS:
        raise SystolicError(f"dataflow {dataflow!r} is not one of {', '.join(DATAFLOWS)}")


def with_changes(arrays: Arrays, array: tuple[int, int] | None, dataflow: str | None) -> Arrays:
    """``arrays`` with other rows and columns, another dataflow, or as they are."""
    rows, columns = array or (arrays.rows, arrays.columns)
    return replace(arrays, rows=rows, columns=columns, dataflow=dataflow or arrays.dataflow)


def _seconds(cycles: float, machine: Target) -> float | None:
    clock = machine.arrays.clock_hz if machine.arrays else None
    return cycles / clock if clock else None


def _bytes(moved: analytic.Traffic) -> dict[str, Any]:
    by_operand = {name: int(np.asarray(getattr(moved, name)).item()) for name in ("lhs", "rhs", "result")}
    return {"hbm_bytes": sum(by_operand.values()), "hbm_bytes_by_operand": by_operand}


def _array_figures(
    m: int, k: int, n: int, dtype: str, arrays: Arrays, machine: Target, moved: int, drained: bool
) -> dict[str, Any]:
    words = analytic.accesses(m, k, n, arrays, scalesim_compatible=not drained)
    joules = None
    if machine.energy is not None and dtype in machine.energy.mac_pj:
        joules = float(analytic.energy_pj(m, k, n, arrays, dtype, moved, machine.energy)) * 1e-12
    return {
        "energy_joules": joules,
        "compute_cycles": int(analytic.compute_cycles(m, k, n, arrays, drained)),
        "sram_reads": int(words.reads),
        "sram_reads_by_operand": {"lhs": int(words.lhs_reads), "rhs": int(words.rhs_reads)},
        "sram_writes": int(words.writes),
        "mapping_utilization": float(analytic.mapping_utilization(m, k, n, arrays)),
    }


def _utilization(m: int, k: int, n: int, cycles: float, dtype: str, machine: Target, arrays: Arrays) -> float:
    cells = arrays.rows * arrays.columns * arrays.count
    return m * k * n / (cycles * cells * machine.macs_per_cell(dtype))


def _on_arrays(m: int, k: int, n: int, dtype: str, machine: Target, arrays: Arrays, drained: bool) -> Matmul:
    """Counted on the arrays themselves, behind the target's main memory (ideal where it has none)."""
    bus = main_memory(machine)
    cycles = {
        flow: _fold_cycles(m, k, n, dtype, replace(arrays, dataflow=flow), bus, drained) for flow in DATAFLOWS
    }
    chosen = cycles[arrays.dataflow]
    compute = analytic.compute_cycles(m, k, n, arrays, drained)
    moved = analytic.traffic(m, k, n, arrays, dtype, bus)
    where = analytic.mapping(m, k, n, arrays.dataflow)
    tiles = analytic.folds(where, arrays)
    return Matmul(
        m, k, n, dtype, machine.name,
        cycles=round(chosen),
        seconds=_seconds(chosen, machine),
        bound="memory" if moved.total / bus.bytes_per_cycle > compute else "arrays",
        tiling={
            "dataflow": arrays.dataflow, "rows": arrays.rows, "columns": arrays.columns,
            "wave": where.wave, "folds": int(tiles.down * tiles.across), "rounds": int(tiles.rounds),
        },
        **_bytes(moved),
        utilization=_utilization(m, k, n, chosen, dtype, machine, arrays),
        alternatives=tuple(
            {"dataflow": flow, "cycles": round(count)}
            for flow, count in sorted(cycles.items(), key=lambda item: item[1])
            if flow != arrays.dataflow
        ),
        **_array_figures(m, k, n, dtype, arrays, machine, int(np.asarray(moved.total).item()), drained),
    )  # fmt: skip


def _fold_cycles(
    m: int, k: int, n: int, dtype: str, arrays: Arrays, bus: analytic.Bus, drained: bool
) -> float:
    """Fold after fold; behind an ideal memory those are the cycles of the arrays alone."""
    if bus.bytes_per_cycle == np.inf:
        return float(analytic.compute_cycles(m, k, n, arrays, drained))
    return float(analytic.cycles(m, k, n, arrays, dtype, bus, drained))


def _scheduled(m: int, k: int, n: int, dtype: str, machine: Target, arrays: Arrays) -> Matmul:
    """The fastest schedule of tiles that fit on chip."""
    best, *others = fastest_schedules(m, k, n, dtype, machine, ALTERNATIVES + 1)
    return Matmul(
        m, k, n, dtype, machine.name,
        cycles=round(best.cycles),
        seconds=_seconds(best.cycles, machine),
        bound=best.bound,
        tiling=best.describe(),
        **_bytes(analytic.Traffic(*best.moved_by_operand)),
        utilization=_utilization(m, k, n, best.cycles, dtype, machine, arrays),
        alternatives=tuple(other.describe() | {"cycles": round(other.cycles)} for other in others),
        **_array_figures(m, k, n, dtype, arrays, machine, best.moved, True),
    )  # fmt: skip


def _compiled(
    m: int, k: int, n: int, dtype: str, machine: Target, arrays: Arrays, compiler: Compiler
) -> Matmul:
    """The compiler's estimate for the best tiling, or for the vector unit where lhs is one row."""
    if m == 1 and compiler.matvec_on_vector_unit:
        return _matvec(k, n, dtype, machine, arrays, compiler)
    tilings = tpu.searched_tilings((m, k, n), dtype, compiler)
    estimate = tpu.estimate(tilings, dtype, arrays, compiler)
    best, *others = np.argsort(estimate.cycles, kind="stable")[: ALTERNATIVES + 1].tolist()
    cycles = float(estimate.cycles[best])
    moved = traffic(tilings[np.array([best])], dtype)
    sides = {
        "memory": estimate.memory[best],
        "arrays": estimate.arrays[best],
        "launch": compiler.launch_cycles,
        "vector": estimate.results,
    }
    return Matmul(
        m, k, n, dtype, machine.name,
        cycles=round(cycles),
        seconds=_seconds(cycles, machine),
        bound=max(sides, key=lambda side: float(sides[side])),
        tiling=tilings.describe(best),
        **_bytes(moved),
        utilization=_utilization(m, k, n, cycles, dtype, machine, arrays),
        alternatives=tuple(
            tilings.describe(index) | {"cycles": round(float(estimate.cycles[index]))} for index in others
        ),
        **_array_figures(m, k, n, dtype, arrays, machine, int(np.asarray(moved.total).item()), True),
    )  # fmt: skip


def _matvec(k: int, n: int, dtype: str, machine: Target, arrays: Arrays, compiler: Compiler) -> Matmul:
    memory, vector = tpu.matvec_cycles(k, n, dtype, compiler)
    cycles = compiler.launch_cycles + memory + vector
    size = DTYPE_BYTES[dtype]
    moved = analytic.Traffic(size * k, size * k * n, RESULT_BYTES[dtype] * n)
    sides = {"memory": memory, "vector": vector, "launch": compiler.launch_cycles}
    return Matmul(
        1, k, n, dtype, machine.name,
        cycles=round(cycles),
        seconds=_seconds(cycles, machine),
        bound=max(sides, key=lambda side: sides[side]),
        tiling={"unit": "vector"},
        **_bytes(moved),
        utilization=_utilization(1, k, n, cycles, dtype, machine, arrays),
        **_array_figures(1, k, n, dtype, arrays, machine, int(np.asarray(moved.total).item()), True),
    )  # fmt: skip


def _grouped(m: int, k: int, n: int, dtype: str, groups: Groups, machine: Target) -> Matmul:
    """The faster of both forms; the other one is the alternative."""
    best, other = sorted(forms(m, k, n, groups, machine), key=lambda form: form.cycles)
    assert machine.arrays is not None, "forms raises without"
    moved = analytic.Traffic(*best.moved)
    return Matmul(
        m, k, n, dtype, machine.name,
        cycles=round(best.cycles),
        seconds=_seconds(best.cycles, machine),
        bound=best.bound,
        tiling=best.tiling,
        **_bytes(moved),
        utilization=_utilization(m, k, n, best.cycles, MULTIPLIED, machine, machine.arrays),
        alternatives=(other.to_json(),),
        **_array_figures(m, k, n, MULTIPLIED, machine.arrays, machine, int(moved.total), True),
    )  # fmt: skip


def _roofline(m: int, k: int, n: int, dtype: str, machine: Target) -> Matmul:
    """A target without arrays (cpu, gpu): the longer of its arithmetic and its memory."""
    bandwidth = machine.memory.hbm_bytes_per_second
    if dtype not in machine.peak or bandwidth is None:
        raise SystolicError(f"target {machine.name} has no peak for {dtype}, or no memory bandwidth")
    size = DTYPE_BYTES[dtype]
    moved = analytic.Traffic(size * m * k, size * k * n, RESULT_BYTES[dtype] * m * n)
    arithmetic, memory = 2 * m * k * n / machine.peak[dtype], moved.total / bandwidth
    seconds = max(arithmetic, memory)
    return Matmul(
        m, k, n, dtype, machine.name,
        cycles=None,
        seconds=seconds,
        bound="memory" if memory > arithmetic else "arithmetic",
        tiling={},
        **_bytes(moved),
        utilization=arithmetic / seconds,
    )  # fmt: skip
