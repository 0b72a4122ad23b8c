"""How predicted programs are shown: as a table by scope or op, as JSON, and as plots."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import SystolicError
from ..files import write_file
from .table import aligned

if TYPE_CHECKING:
    from ...compiler.cost.prediction import Decision, Plan, Prediction

_LAYER = re.compile(r"\.\d+(?=\.|$)")
Curve = list[tuple[int, float]]


def prediction_json(found: Prediction, most: int | None, crossover: int | None) -> dict[str, Any]:
    """Everything that was predicted, as JSON types; what the target does not tell is null."""
    plan = found.plan
    return {
        "target": plan.machine.target.name,
        "dtype": plan.machine.dtype,
        "phase": plan.phase,
        "batch": found.rows,
        "context": plan.context,
        "seconds": found.seconds,
        "cycles": found.cycles and round(found.cycles),
        "tokens_per_second": found.tokens_per_second,
        "mfu": _number(found.mfu),
        "mbu": _number(found.mbu),
        "multiply_adds": int(found.total("multiply_adds")),
        "hbm_bytes": {name: round(found.total(name)) for name in ("weights", "state", "activations")},
        "on_chip_peak_bytes": round(found.on_chip_peak),
        "energy_joules": _number(found.total("joules")),
        "bounds": found.bounds,
        "weight_bytes": round(plan.weight_bytes),
        "state_bytes_per_row": round(plan.row_bytes),
        "largest_batch_that_fits": most,
        "crossover_batch": crossover,
        "scopes": [_entry(name, costs, found.seconds) for name, costs in by_scope(found).items()],
        "regions": [
            {"name": region.name, "scope": region.scope, "kind": region.kind, "nodes": list(region.nodes)}
            | {name: _number(value) for name, value in asdict(cost).items()}
            for region, cost in zip(found.regions, found.costs, strict=True)
        ],
        "decisions": [asdict(decision) | {"taken": decision.is_taken} for decision in found.decisions],
    }


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def by_scope(found: Prediction) -> dict[str, list]:
    """The costs of all regions by scope, with the numbers of layers left out."""
    scopes: dict[str, list] = {}
    for region, cost in zip(found.regions, found.costs, strict=True):
        scopes.setdefault(_LAYER.sub(".*", region.scope) or "(positions)", []).append(cost)
    return scopes


def by_op(found: Prediction) -> dict[str, list]:
    """The same by region, with those of all layers together."""
    names: dict[str, list] = {}
    for region, cost in zip(found.regions, found.costs, strict=True):
        names.setdefault(f"{_LAYER.sub('.*', region.name, count=1)} ({region.kind})", []).append(cost)
    return names


def _entry(name: str, costs: list, total: float) -> dict[str, Any]:
    seconds = sum(cost.seconds for cost in costs)
    return {
        "name": name,
        "regions": len(costs),
        "seconds": seconds,
        "share": seconds / total,
        "bytes": round(sum(cost.bytes for cost in costs)),
        "multiply_adds": sum(cost.multiply_adds for cost in costs),
        "bound": max(costs, key=lambda cost: cost.seconds).bound,
    }


def prediction_table(found: Prediction, most: int | None, crossover: int | None, by: str) -> str:
    """The sums, then a line for each scope or op, then what was joined."""
    if by not in ("scope", "op"):
        raise SystolicError(f"--by must be scope or op, not {by!r}")
    entries = by_scope(found) if by == "scope" else by_op(found)
    rows = [_entry(name, costs, found.seconds) for name, costs in entries.items()]
    header = (by, "regions", "time", "share", "main memory", "multiply-adds", "bound")
    lines = [
        (
            row["name"],
            f"{row['regions']:,}",
            duration(row["seconds"]),
            f"{row['share']:.1%}",
            size_text(row["bytes"]),
            f"{row['multiply_adds']:,}",
            row["bound"],
        )
        for row in rows
    ]
    table = aligned([header, *lines], right=(1, 2, 3, 4, 5))
    return "\n\n".join([_summary(found, most, crossover), table, *_decisions(found.decisions)])


def _summary(found: Prediction, most: int | None, crossover: int | None) -> str:
    plan = found.plan
    machine = plan.machine
    what = "one token each" if plan.phase == "decode" else f"{plan.tokens:,} tokens each"
    moved = {name: found.total(name) for name in ("weights", "state", "activations")}
    joules, tokens = found.total("joules"), found.rows * plan.tokens
    fits = "" if most is None else f"{most:,} rows of {size_text(plan.row_bytes)} beside the weights"
    if most == 0:
        room = size_text(machine.target.memory.hbm_bytes or 0)
        fits = f"not on one chip: {size_text(plan.weight_bytes)} of weights, {room} of memory"
    lines = [
        (plan.phase, f"{found.rows:,} rows, {what}, context {plan.context:,}"),
        ("target", f"{machine.target.name}, {machine.dtype}"),
        ("time", f"{duration(found.seconds)}: {found.tokens_per_second:,.0f} tokens/s"),
        ("cycles", found.cycles and f"{found.cycles:,.0f}"),
        ("peaks", f"MFU {found.mfu:.1%}, MBU {found.mbu:.1%}"),
        ("bound", ", ".join(f"{name} {share:.0%}" for name, share in found.bounds.items() if share >= 0.005)),
        ("main memory", ", ".join(f"{name} {size_text(value)}" for name, value in moved.items())),
        ("on chip", f"{size_text(found.on_chip_peak)} at most"),
        ("energy", "" if math.isnan(joules) else f"{joules:,.3g} J, {joules / tokens:,.3g} J a token"),
        ("fits", fits),
        ("crossover", crossover and f"arithmetic takes longer than memory from {crossover:,} rows on"),
    ]  # fmt: skip
    return aligned([(name, str(value)) for name, value in lines if value])


def _decisions(decisions: Iterable[Decision]) -> list[str]:
    """What was joined and what was not, by kind and scope, with the seconds of both forms."""
    groups: dict[tuple[str, str, bool], list[Decision]] = {}
    for decision in decisions:
        key = (decision.kind, _LAYER.sub(".*", decision.scope), decision.is_taken)
        groups.setdefault(key, []).append(decision)
    lines = [
        (
            "joined" if taken else "left apart",
            kind,
            scope,
            f"{len(group):,}",
            f"{duration(sum(d.apart for d in group))} apart",
            f"{duration(sum(d.joined for d in group))} joined",
        )
        for (kind, scope, taken), group in groups.items()
    ]
    return [aligned(lines, right=(3, 4, 5))] if lines else []


def duration(seconds: float) -> str:
    """A time with a unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:,.3f} {unit}"
    return f"{seconds * 1e9:,.0f} ns"


def size_text(size: float) -> str:
    """Bytes with a unit that suits them."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.2f} {unit}"
        size /= 1000
    return f"{size:,.2f} TB"


# ---- plots ----


def write_plots(found: Prediction, contexts: Callable[[], Curve], file: Path) -> None:
    """Roofline, time by scope, time over batch and time over context, as PNG or SVG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystolicError("--plot needs matplotlib: pip install 'systolic[plot]'") from None
    if file.suffix not in (".png", ".svg"):
        raise SystolicError(f"--plot writes .png or .svg, not {file.suffix or 'a file without a suffix'}")
    figure = Figure(figsize=(11, 8), layout="constrained")
    (roofline, scopes), (batches, positions) = figure.subplots(2, 2)
    plan = found.plan
    figure.suptitle(f"{plan.phase}, {found.rows} rows, context {plan.context:,}, {plan.machine.target.name}")
    _draw_roofline(roofline, found)
    names = by_scope(found)
    scopes.barh(list(names), [1e3 * sum(c.seconds for c in costs) for costs in names.values()])
    scopes.set(xlabel="ms", title="time by scope")
    scopes.invert_yaxis()
    _draw_curve(batches, _over_batches(plan, found.rows), "rows")
    _draw_curve(positions, contexts(), "context")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=file.suffix[1:], dpi=120)
    write_file(file, drawn.getvalue())


def _draw_roofline(axes: Any, found: Prediction) -> None:
    machine = found.plan.machine
    points = [
        (2 * c.multiply_adds / c.bytes, 2 * c.multiply_adds / c.seconds)
        for c in found.costs
        if c.bytes and c.multiply_adds
    ]
    ridge = machine.peak / machine.nominal_bandwidth
    intensities = [ridge / 1e4, ridge, ridge * 1e2]
    axes.loglog(
        intensities, [min(machine.peak, x * machine.nominal_bandwidth) for x in intensities], color="black"
    )
    axes.scatter([x for x, _ in points], [y for _, y in points], s=12, alpha=0.6)
    axes.set(
        xlabel="operations per byte", ylabel="operations per second", title="roofline, a point per region"
    )


def _draw_curve(axes: Any, curve: Curve, label: str) -> None:
    axes.plot([x for x, _ in curve], [1e3 * seconds for _, seconds in curve], marker="o")
    axes.set(xlabel=label, ylabel="ms", title=f"time over {label}", ylim=(0, None))


def _over_batches(plan: Plan, rows: int) -> Curve:
    from ...compiler.cost.prediction import predict

    counts = sorted({1, 2, 4, 8, 16, 32, 64, 128, 256, rows})
    return [(count, predict(plan, count).seconds) for count in counts]
