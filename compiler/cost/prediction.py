"""What a whole program costs on a target: time, bytes, energy, by op and by scope, and what was fused.

A program is derived once, for two rows; every other number of rows follows from it, because all amounts
are linear in rows (``regions``). Regions run one after the other; inside one, memory, arrays and vector
unit overlap. What may be joined is joined where that is predicted to be faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...ir.errors import SystolicError
from ...ir.graph import Graph
from ...ir.types import FLOATS
from ..chunks import ChunkSeconds
from ..derive import Form, choose_forms, derive_cheapest, derive_chunk, derive_score
from ..program import Program, State
from .region_cost import Costs, Machine
from .region_forms import are_siblings, join_attention, join_siblings, widen_first
from .regions import Region, counted_bytes, regions_of
from .targets import DTYPE_BYTES, Target

PHASES = ("decode", "prefill")
_ROWS = 2  # of the derived program: any number but 1, which could be mistaken for a broadcast


@dataclass(frozen=True, slots=True)
class Decision:
    """Regions that were joined, or could have been: seconds of both forms."""

    kind: str
    scope: str
    names: tuple[str, ...]
    apart: float
    joined: float

    @property
    def is_taken(self) -> bool:
        return self.joined < self.apart


@dataclass(frozen=True)
class Plan:
    """A program ready to be predicted for any number of rows.

    ``tokens``: positions of a row that one run advances. ``row_bytes``: what a row keeps in main memory
    in all, ``weight_bytes`` what all rows share.
    """

    machine: Machine
    regions: tuple[Region, ...]
    phase: str
    context: int
    tokens: int
    weight_bytes: float
    row_bytes: float


@dataclass(frozen=True)
class Prediction:
    """One run of a plan for ``rows`` rows. Seconds, bytes to and from main memory, joules (NaN: the target
    has no energies). ``mfu``, ``mbu``: shares (0 to 1) of the peak of ``dtype`` and of the bandwidth.
    ``on_chip_peak``: bytes of values and tiles at the same time. ``costs`` belong to ``regions``."""

    plan: Plan
    rows: int
    regions: tuple[Region, ...]
    costs: tuple[Costs, ...]
    decisions: tuple[Decision, ...]
    seconds: float
    on_chip_peak: float

    def total(self, name: str) -> float:
        """The sum of one field of the costs of all regions."""
        return float(sum(getattr(cost, name) for cost in self.costs))

    @property
    def tokens_per_second(self) -> float:
        return self.rows * self.plan.tokens / self.seconds

    @property
    def cycles(self) -> float | None:
        clock = self.plan.machine.clock
        return None if math.isinf(clock) else self.seconds * clock

    @property
    def mfu(self) -> float:
        return 2 * self.total("multiply_adds") / (self.seconds * self.plan.machine.peak)

    @property
    def mbu(self) -> float:
        return self.total("bytes") / (self.seconds * self.plan.machine.nominal_bandwidth)

    @property
    def bounds(self) -> dict[str, float]:
        """The share of the time that each bound decides."""
        shares: dict[str, float] = {}
        for cost in self.costs:
            shares[cost.bound] = shares.get(cost.bound, 0.0) + cost.seconds / self.seconds
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


# ---- plans ----


def plan_program(
    graph: Graph,
    target: Target,
    *,
    context: int,
    phase: str = "decode",
    dtype: str = "bf16",
    chunk: int | None = None,
) -> Plan:
    """The program of ``graph`` that reads one token behind ``context - 1`` others (decode), or ``context``
    tokens (prefill), as regions; all at once, or with ``chunk`` the last so many of them. Weights, states and
    values are counted as ``dtype``, but for those that are narrower in the graph.

    Raises ``SystolicError`` for another phase or dtype, and where the model cannot be decoded.
    """
    if phase not in PHASES:
        raise SystolicError(f"--phase must be one of {', '.join(PHASES)}, not {phase!r}")
    if dtype not in DTYPE_BYTES:
        raise SystolicError(f"dtype {dtype!r} has no cost model; expected one of {', '.join(DTYPE_BYTES)}")
    tokens = 1 if phase == "decode" else chunk or context
    if graph.certificate().leak is not None and phase == "prefill":
        program = derive_score(graph, rows=_ROWS, length=context)
    else:
        program = _chunk_program(graph, choose_forms(graph), tokens, context)
    size = DTYPE_BYTES[dtype]
    floats = [node.tensor for node in graph.parameters if node.tensor.dtype in FLOATS]
    others = [node.tensor for node in graph.parameters if node.tensor.dtype not in FLOATS]
    return Plan(
        machine=Machine(target, dtype),
        regions=regions_of(program, dtype),
        phase=phase,
        context=context,
        tokens=tokens,
        weight_bytes=float(sum(t.size * size for t in floats) + sum(t.bytes for t in others)),
        row_bytes=_row_bytes(program.states, size),
    )


def _chunk_program(graph: Graph, forms: tuple[Form, ...], chunk: int, context: int) -> Program:
    clock = forms[0].plan.clock
    sources = {c: context for c in graph.clocks if c != clock}
    return derive_cheapest(
        forms,
        lambda g, plan: derive_chunk(
            g, plan, rows=_ROWS, chunk=chunk, capacity=context, reserve=chunk, source_lengths=sources
        ),
    )


def chunk_seconds_on(
    target: Target, graph: Graph, *, rows: int, capacity: int, dtype: str = "bf16"
) -> ChunkSeconds:
    """What chunks of a prompt take; a call reads all ``capacity`` positions of a state, however many of them
    are behind."""

    def seconds(size: int, behind: int) -> float:
        plan = plan_program(graph, target, context=capacity, phase="prefill", dtype=dtype, chunk=size)
        return predict(plan, rows).seconds

    return seconds


def _row_bytes(states: Iterable[State], float_bytes: int) -> float:
    return sum(counted_bytes(state.type, float_bytes) / _ROWS for state in states)


def most_rows(plan: Plan) -> int | None:
    """The largest batch whose states fit beside the weights; None where the target has no memory size."""
    room = plan.machine.target.memory.hbm_bytes
    if room is None or not plan.row_bytes:
        return None
    return max(int((room - plan.weight_bytes) // plan.row_bytes), 0)


def crossover_rows(plan: Plan, limit: int = 1 << 16) -> int | None:
    """The smallest batch whose arithmetic takes longer than its main memory; None up to ``limit``."""

    def is_crossed(rows: int) -> bool:
        found = predict(plan, rows)
        return found.total("arithmetic_seconds") > found.total("memory_seconds")

    high = 1
    while not is_crossed(high):
        high *= 2
        if high > limit:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_crossed(middle) else (middle, high)
    return high


# ---- prediction ----


def predict(plan: Plan, rows: int) -> Prediction:
    """The costs of one run with ``rows`` rows; regions are joined where that is faster."""
    if rows < 1:
        raise SystolicError(f"a batch needs at least one row, not {rows}")
    machine = plan.machine
    joined, decisions = join_regions(plan.regions, machine, rows)
    costs = tuple(machine.cost(region, rows) for region in joined)
    seconds = sum(cost.seconds for cost in costs) + machine.launch_seconds
    peak = _on_chip_peak(joined, costs, machine, rows)
    return Prediction(plan, rows, joined, costs, decisions, seconds, peak)


def join_regions(
    regions: tuple[Region, ...], machine: Machine, rows: int
) -> tuple[tuple[Region, ...], tuple[Decision, ...]]:
    """The regions as they run, and what was joined or could have been."""
    decisions: list[Decision] = []
    return tuple(_join(regions, machine, rows, decisions)), tuple(decisions)


def _join(
    regions: tuple[Region, ...], machine: Machine, rows: int, decisions: list[Decision]
) -> Iterator[Region]:
    """The regions with attention and siblings joined; a joined region runs where its first part did."""
    gone: set[int] = set()
    for i, region in enumerate(regions):
        if i in gone:
            continue
        for j in _attention_partner(regions, i):
            region = _decide("attention", region, regions[j], j, machine, rows, decisions, gone)
        for j in range(i + 1, min(i + 8, len(regions))):
            if j not in gone and region.kind == "matmul" and are_siblings(region, regions[j]):
                region = _decide("projections", region, regions[j], j, machine, rows, decisions, gone)
        yield from _widened(region, machine, rows, decisions)


def _widened(region: Region, machine: Machine, rows: int, decisions: list[Decision]) -> tuple[Region, ...]:
    """A matmul makes its weights of scaled integers as they come on chip, again for every pass over them; or
    a region before it makes them once and writes them to main memory."""
    if not region.products or not region.prologue.operations:
        return (region,)
    parts = widen_first(region)
    apart = sum(machine.cost(part, rows).seconds for part in parts)
    names = tuple(part.name for part in parts)
    decision = Decision("dequantisation", region.scope, names, apart, machine.cost(region, rows).seconds)
    decisions.append(decision)
    return (region,) if decision.is_taken else parts


def _attention_partner(regions: tuple[Region, ...], i: int) -> Iterator[int]:
    """The region that mixes values by the probabilities which region ``i`` alone makes for it."""
    scores = regions[i]
    if len(scores.spilled) != 1 or not scores.products:
        return
    made = {value.name for value in scores.results}
    readers = [
        j for j in range(i + 1, min(i + 8, len(regions))) if made & {v.name for v in regions[j].inputs}
    ]
    if len(made) == 1 and len(readers) == 1 and len(regions[readers[0]].products) == 1:
        yield readers[0]


def _decide(
    kind: str,
    first: Region,
    second: Region,
    index: int,
    machine: Machine,
    rows: int,
    decisions: list[Decision],
    gone: set[int],
) -> Region:
    join = join_attention if kind == "attention" else join_siblings
    both = join(first, second)
    apart = machine.cost(first, rows).seconds + machine.cost(second, rows).seconds
    decision = Decision(kind, first.scope, (first.name, second.name), apart, machine.cost(both, rows).seconds)
    decisions.append(decision)
    if not decision.is_taken:
        return first
    gone.add(index)
    return both


def _on_chip_peak(
    regions: tuple[Region, ...], costs: tuple[Costs, ...], machine: Machine, rows: int
) -> float:
    """The most bytes at one time: values that wait for their last reader, and the tiles of a region."""
    last = {value.name: i for i, region in enumerate(regions) for value in region.inputs}
    live: dict[str, float] = {}
    peak = 0.0
    for i, (region, cost) in enumerate(zip(regions, costs, strict=True)):
        for value in region.results:
            size = value.bytes.at(rows)
            if machine.is_resident(size) and last.get(value.name, -1) > i:
                live[value.name] = size
        peak = max(peak, sum(live.values()) + cost.on_chip)
        for name in [name for name in live if last[name] <= i]:
            del live[name]
    return peak
