"""Targets as data: arrays, memories, peaks and energies of a machine, each figure with its source."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ...ir.errors import SystolicError

PRESETS = Path(__file__).parent / "presets"
DATAFLOWS = ("ws", "os", "is")
DTYPE_BYTES: Mapping[str, int] = {"i8": 1, "bf16": 2, "f16": 2, "f32": 4}
# What one multiplication's accumulator leaves the array as, when the result is stored.
RESULT_BYTES: Mapping[str, int] = {"i8": 4, "bf16": 2, "f16": 2, "f32": 4}


@dataclass(frozen=True, slots=True)
class Arrays:
    """Systolic arrays: ``count`` of ``rows`` × ``columns`` cells, all at one clock.

    ``overlapped``: weights are loaded (or, output-stationary, results drained) while the previous
    wave still runs. ``dataflows``: those that a schedule may choose from (none: only ``dataflow``).
    ``macs_per_cell`` gives multiply-adds per cell and cycle for dtypes that do not
    run at one (two for a packed dtype, 1/6 for six passes); a dtype that is absent runs at one.
    """

    rows: int
    columns: int
    count: int = 1
    clock_hz: float | None = None
    dataflow: str = "ws"
    overlapped: bool = False
    dataflows: tuple[str, ...] = ()
    macs_per_cell: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """``on_chip_bytes`` beside the arrays; main memory with its bandwidth and latency (None: ideal)."""

    on_chip_bytes: int
    hbm_bytes: int | None = None
    hbm_bytes_per_second: float | None = None
    hbm_latency_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """The vector unit: elements that it works on at once."""

    lanes: int


@dataclass(frozen=True, slots=True)
class Energy:
    """Picojoules: one multiply-add per dtype, one byte from on-chip memory, one byte from main memory."""

    mac_pj: Mapping[str, float]
    on_chip_byte_pj: float
    hbm_byte_pj: float


@dataclass(frozen=True, slots=True)
class Interconnect:
    """Links to other chips: bytes per second of one chip, all links together."""

    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Compiler:
    """What a matmul costs in the view of the target's own compiler: five fitted constants, two capacities.

    ``launch_cycles`` once per program, and ``fill_cycles`` for each fold of one tile that an array gets;
    ``step_cycles`` of latency per step of the pipeline;
    ``bytes_per_cycle`` of main memory; ``issue_efficiency`` of the arrays; ``vector_elements_per_cycle``
    at which results are narrowed and stored. ``scoped_bytes`` of on-chip memory are one program's, of
    which the operands' windows get ``window_bytes``. ``accumulating_lanes`` of the vector unit add up the
    partial sums of folds over k (0: the arrays have accumulators of their own). ``converted``: per dtype,
    the operands that the arrays take in another dtype.
    """

    launch_cycles: float
    step_cycles: float
    bytes_per_cycle: float
    issue_efficiency: float
    vector_elements_per_cycle: float
    scoped_bytes: int
    window_bytes: int
    fill_cycles: float = 0.0
    accumulating_lanes: int = 0
    matvec_on_vector_unit: bool = True
    converted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel of our own takes on a TPU, in cycles of its instructions: see ``cost.kernels``.

    ``arrays`` work for one program. ``start_cycles`` once; ``step_cycles`` in each step for addresses, moves
    and loops, of which ``hidden_step_cycles`` are left where the arrays have the most to do. A piece of rhs
    as large as an array is pushed in ``push_cycles`` (``transposed_push_cycles`` if kept as [n, k]) and
    latched in ``latch_cycles``, which count all arrays at work. ``feed_cycles`` bring a register of lhs,
    ``sum_cycles`` add a register of results to the sums where k takes several steps (0: while it leaves the
    arrays). ``tried``: so many of the tilings that are predicted to be the fastest are compiled to find one.
    """

    arrays: int
    start_cycles: float
    step_cycles: float
    hidden_step_cycles: float
    push_cycles: float
    transposed_push_cycles: float
    latch_cycles: float
    feed_cycles: float
    sum_cycles: float = 0.0
    tried: int = 1


@dataclass(frozen=True, slots=True)
class Target:
    """A machine. ``peak``: operations per second per dtype (a multiply-add is two)."""

    name: str
    description: str
    arrays: Arrays | None
    memory: Memory
    peak: Mapping[str, float]
    vector: Vector | None = None
    energy: Energy | None = None
    interconnect: Interconnect | None = None
    compiler: Compiler | None = None
    kernel: Kernel | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def macs_per_cell(self, dtype: str) -> float:
        """Multiply-adds per cell and cycle at ``dtype``."""
        return self.arrays.macs_per_cell.get(dtype, 1.0) if self.arrays else 0.0

    def source(self, figure: str) -> str | None:
        """Where ``figure`` ("memory.hbm_bytes") is from: its own entry, or that of its table."""
        parts = figure.split(".")
        tables = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((self.sources[table] for table in tables if table in self.sources), None)

    def figures(self) -> dict[str, float | str | bool]:
        """Every figure of the machine under its dotted name, in the order of the declaration."""
        found: dict[str, float | str | bool] = {}
        for name in ("arrays", "memory", "peak", "vector", "energy", "interconnect", "compiler", "kernel"):
            found |= _flat(name, getattr(self, name))
        return found

    def to_toml(self) -> str:
        """The target as a TOML file that ``load_target`` reads."""
        tables: dict[str, dict[str, Any]] = {"": {"name": self.name, "description": self.description}}
        for name, value in self.figures().items():
            table, _, key = name.rpartition(".")
            tables.setdefault(table, {})[key] = value
        tables["sources"] = {json.dumps(name): source for name, source in self.sources.items()}
        return "\n".join(
            "".join(
                [f"[{table}]\n" if table else "", *(f"{k} = {json.dumps(v)}\n" for k, v in entries.items())]
            )
            for table, entries in tables.items()
        )

    def to_json(self) -> dict[str, Any]:
        """The target as a JSON object: figures by dotted name with value and source."""
        figures = {
            name: {"value": value, "source": self.source(name)} for name, value in self.figures().items()
        }
        return {"name": self.name, "description": self.description, "figures": figures}


def _flat(name: str, value: Any) -> dict[str, Any]:
    if hasattr(value, "__dataclass_fields__"):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if not isinstance(value, Mapping):
        return {} if value is None else {name: value}
    return {k: v for key, entry in value.items() for k, v in _flat(f"{name}.{key}", entry).items()}


def preset_names() -> tuple[str, ...]:
    """The names of the targets that come with systolic."""
    return tuple(sorted(file.stem for file in PRESETS.glob("*.toml")))


def load_target(name: str) -> Target:
    """The preset ``name``, or the TOML file at that path; ``SystolicError`` names what is wrong in it."""
    file = Path(name)
    if file.suffix != ".toml":
        file = PRESETS / f"{name}.toml"
        if name not in preset_names():
            known = ", ".join(preset_names())
            raise SystolicError(f"target {name!r} is not known; expected a TOML file or one of: {known}")
    try:
        table = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SystolicError(f"{file}: not a TOML file: {error}") from error
    return _target(table, file)


def _target(table: dict[str, Any], file: Path) -> Target:
    parts: dict[str, type] = {
        "arrays": Arrays, "memory": Memory, "vector": Vector, "energy": Energy,
        "interconnect": Interconnect, "compiler": Compiler, "kernel": Kernel,
    }  # fmt: skip
    table = {"name": file.stem, "description": "", "arrays": None, "peak": {}} | table
    built = {
        key: _record(parts[key], value, f"{file}: [{key}]") if key in parts and value is not None else value
        for key, value in table.items()
    }
    target = _record(Target, built, str(file))
    _check_arrays(target.arrays, file)
    for name, figure in target.figures().items():
        if isinstance(figure, int | float) and not isinstance(figure, bool) and figure < 0:
            raise SystolicError(f"{file}: {name} is {figure}; expected a number that is not negative")
    return target


def _check_arrays(arrays: Arrays | None, file: Path) -> None:
    for dataflow in (arrays.dataflow, *arrays.dataflows) if arrays else ():
        if dataflow not in DATAFLOWS:
            raise SystolicError(f"{file}: dataflow {dataflow!r} is not one of {', '.join(DATAFLOWS)}")
    if arrays and min(arrays.rows, arrays.columns, arrays.count) < 1:
        raise SystolicError(f"{file}: arrays need at least one row, one column and a count of one")


def _record(kind: type, table: Any, where: str) -> Any:
    """``kind`` from a TOML table, with the types that its fields declare."""
    if not isinstance(table, Mapping):
        raise SystolicError(f"{where} is {table!r}; expected a table")
    declared = {f.name: f for f in fields(kind)}
    unknown = sorted(set(table) - set(declared))
    if unknown:
        raise SystolicError(f"{where} has no field {unknown[0]!r}; expected some of {', '.join(declared)}")
    for name, f in declared.items():
        if name not in table and f.default is MISSING and f.default_factory is MISSING:
            raise SystolicError(f"{where} lacks {name!r}")
    hints = get_type_hints(kind)
    return kind(**{key: _typed(hints[key], value, f"{where} {key}") for key, value in table.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    for kind, accepted in ((int, int), (float, int | float), (str, str), (bool, bool)):
        if kind not in kinds:
            continue
        if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
            raise SystolicError(f"{where} is {value!r}; expected {kind.__name__}")
    return tuple(value) if isinstance(value, list) else value
