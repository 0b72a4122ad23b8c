"""How reports on programs for a TPU are shown: as files of a compiled directory, and beside predictions.

DIR/tpu/report.json         every operation with cycles, tiles and the names of our nodes; states; memory
DIR/tpu/report.txt          the same to read: sums, scopes, layout copies, the most expensive operations
DIR/tpu/NAME.mlir           the StableHLO that was compiled, states in row-major layout
DIR/tpu/NAME.hlo            the optimised, scheduled HLO
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...compiler.cost.comparison import POSITIONS, UNNAMED, Compared, node_scope
from .predictions import duration, size_text
from .table import aligned

if TYPE_CHECKING:
    from ...backends.tpu import TpuTarget
    from ...backends.tpu_products import ComparedProduct, Measured
    from ...compiler.cost import Matmul
    from ...compiler.cost.prediction import Prediction
    from ..tpu_report import TpuReport

_LAYER = re.compile(r"\.\d+(?=\.|$)")
_MOST = 20  # lines of operations, copies or comparisons; the JSON has all


def tpu_files(texts: Mapping[str, str], reports: Sequence[TpuReport], target: TpuTarget) -> dict[str, str]:
    """The texts of DIR/tpu by path."""
    from ..tpu_report import report_json

    files = {
        "tpu/report.json": json.dumps(report_json(reports, target), indent=1) + "\n",
        "tpu/report.txt": tpu_table(reports, target) + "\n",
    }
    files |= {f"tpu/{name}.mlir": text for name, text in texts.items()}
    return files | {f"tpu/{report.program}.hlo": report.compiled.text for report in reports}


def tpu_table(reports: Iterable[TpuReport], target: TpuTarget) -> str:
    """All reports to read."""
    return "\n\n".join(_program_table(report, target) for report in reports)


def _program_table(report: TpuReport, target: TpuTarget) -> str:
    memory = report.compiled.memory
    copied = [state.name for state in report.states if not state.is_in_place]
    states = f"{len(report.states) - len(copied)} of {len(report.states)} updated in place"
    untimed = ", ".join(f"{count} {opcode}" for opcode, count in report.unestimated.items())
    moved = sum(copy.bytes for copy in report.layout_copies)
    lines = [
        (report.program, f"{report.rows} rows of {report.chunk}, {report.capacity} positions"),
        ("target", f"{target.name}, one device of {target.topology}"),
        ("compiled", f"in {report.compiled.compile_seconds:.1f} s"),
        ("memory", ", ".join(f"{kind[:-6]} {size_text(size)}" for kind, size in memory.items())),
        ("states", states + (f"; copied: {_listed(copied)}" if copied else "")),
        ("estimated", f"{report.cycles:,} cycles, without {untimed or 'exception'}"),
        ("optimal", "" if report.optimal_seconds is None else duration(report.optimal_seconds)),
        ("layout copies", f"{len(report.layout_copies)}, {size_text(moved)}" if moved else "none"),
    ]
    sums = aligned([(name, text) for name, text in lines if text])
    return "\n\n".join([sums, *_copies(report), *_products(report), _scopes(report), _operations(report)])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _copies(report: TpuReport) -> list[str]:
    """The layout copies by what they copy, layers together."""
    groups: dict[tuple[str, str, str], list] = {}
    for copy in report.layout_copies:
        key = (_LAYER.sub(".*", copy.node) or UNNAMED, copy.shape, f"{copy.before} → {copy.after}")
        groups.setdefault(key, []).append(copy)
    header = ("copied", "shape", "layout", "copies", "cycles")
    lines = [
        (*key, f"{len(group):,}", f"{sum(copy.cycles for copy in group):,}") for key, group in groups.items()
    ]
    return [aligned([header, *lines[:_MOST]], right=(3, 4))] if lines else []


def _products(report: TpuReport) -> list[str]:
    """Whose kernel computes each matrix product, and what both take, one of them by itself."""
    from ...backends.tpu import Refusal

    header = ("product", "count", "kernel", "ours", "compiler's", "tiles of ours")
    lines = [
        (
            each.compared.product.name,
            f"{len(each.nodes):,}",
            "ours" if each.is_ours else "compiler's",
            *(
                "refused" if isinstance(side, Refusal) else f"{side.cycles:,.0f}"
                for side in (each.compared.kernel, each.compared.emitter)
            ),
            str(each.compared.choice.tiling),
        )
        for each in report.products
    ]
    refusals = [
        f"{each.compared.product.name}, {each.compared.choice.tiling}, is left to it: {each.refusal}"
        for each in report.products
        if each.refusal
    ]
    tables = [aligned([header, *lines], right=(1, 3, 4))] if lines else []
    return [*tables, *(["\n".join(refusals)] if refusals else [])]


def _scopes(report: TpuReport) -> str:
    sums: dict[str, list[int]] = {}
    for estimate in report.estimates():
        scope = _LAYER.sub(".*", node_scope(estimate.node))
        sums.setdefault(scope, []).append(estimate.cycles)
    rows = sorted(sums.items(), key=lambda item: -sum(item[1]))
    total = max(report.cycles, 1)
    lines = [(s, f"{len(c):,}", f"{sum(c):,}", f"{sum(c) / total:.1%}") for s, c in rows]
    return aligned([("scope", "operations", "cycles", "share"), *lines], right=(1, 2, 3))


def _operations(report: TpuReport) -> str:
    """The most expensive operations, those of all layers together; the tiles are those of the first."""
    groups: dict[str, list] = {}
    for operation, times in report.module.scheduled:
        if operation.cycles is not None:
            name = _LAYER.sub(".*", operation.node, count=1) or operation.name
            groups.setdefault(name, []).append((operation, operation.cycles * times))
    ranked = sorted(groups.items(), key=lambda item: -sum(cycles for _, cycles in item[1]))
    header = ("operation", "opcode", "count", "cycles", "tiles", "emitter")
    lines = [
        (
            name,
            group[0][0].opcode,
            f"{len(group):,}",
            f"{sum(cycles for _, cycles in group):,}",
            " ".join(f"{part} {'×'.join(map(str, b))}" for part, b in group[0][0].windows.items()),
            group[0][0].emitter or "-",
        )
        for name, group in ranked[:_MOST]
    ]
    return aligned([header, *lines], right=(2, 3))


# ---- beside a prediction ----


def comparison_json(found: Prediction, report: TpuReport, compared: Sequence[Compared]) -> dict[str, Any]:
    """Both sides in cycles, in all, by scope and by what could be told apart."""
    return {
        "target": found.plan.machine.target.name,
        "phase": found.plan.phase,
        "predicted_cycles": found.cycles,
        "estimated_cycles": report.cycles,
        "operations_without_estimate": report.unestimated,
        "scopes": [
            {"scope": scope, "predicted_cycles": predicted, "estimated_cycles": estimated}
            for scope, (predicted, estimated, _) in _by_scope(compared).items()
        ],
        "compared": [asdict(both) | {"ratio": both.ratio} for both in compared],
    }


def comparison_table(found: Prediction, report: TpuReport, compared: Sequence[Compared]) -> str:
    """Sums, scopes, and what differs most, layers together."""
    machine, phase = found.plan.machine, found.plan.phase
    predicted = found.cycles or 0.0
    sums = aligned(
        [
            (phase, f"{found.rows:,} rows, context {found.plan.context:,}, {machine.target.name}"),
            ("predicted", f"{predicted:,.0f} cycles, {machine.dtype}"),
            ("XLA's estimate", f"{report.cycles:,} cycles: {_ratio(predicted, report.cycles)}"),
            ("no estimate", ", ".join(f"{n} {opcode}" for opcode, n in report.unestimated.items()) or "-"),
        ]
    )
    scopes = [_line(scope, entry) for scope, entry in _by_scope(compared).items()]
    regions = _grouped((_region(both), both) for both in compared)
    ranked = sorted(regions.items(), key=lambda item: -abs(item[1][0] - item[1][1]))
    header = ("predicted", "estimated", "ratio", "count")
    tables = [
        aligned([("scope", *header), *scopes], right=(1, 2, 3, 4)),
        aligned(
            [("largest differences", *header), *(_line(*item) for item in ranked[:_MOST])],
            right=(1, 2, 3, 4),
        ),
    ]
    return "\n\n".join([sums, *tables])


def _region(both: Compared) -> str:
    names = both.regions or (f"{both.scope} (no region)",)
    first, *rest = (_LAYER.sub(".*", name, count=1) for name in names)
    return " + ".join([first, *(name.rpartition(".*.")[2] for name in rest)])


def _by_scope(compared: Iterable[Compared]) -> dict[str, tuple[float, float, int]]:
    return _grouped((_LAYER.sub(".*", both.scope) or POSITIONS, both) for both in compared)


def _grouped(pairs: Iterable[tuple[str, Compared]]) -> dict[str, tuple[float, float, int]]:
    found: dict[str, tuple[float, float, int]] = {}
    for name, both in pairs:
        predicted, estimated, count = found.get(name, (0.0, 0.0, 0))
        found[name] = (predicted + both.predicted, estimated + both.estimated, count + 1)
    return found


def _line(name: str, entry: tuple[float, float, int]) -> tuple[str, ...]:
    predicted, estimated, count = entry
    return name, f"{predicted:,.0f}", f"{estimated:,.0f}", _ratio(predicted, estimated), f"{count:,}"


def _ratio(predicted: float, estimated: float) -> str:
    return f"{predicted / estimated:.2f}×" if estimated else "-"


# ---- one product ----


def product_json(found: Matmul, compared: ComparedProduct) -> dict[str, Any]:
    """The prediction of one matmul, and beside it our kernel and the compiler's emitter."""
    from ...backends.tpu import Refusal

    choice, kernel = compared.choice, compared.kernel
    return found.to_json() | {
        "compare_xla": {
            "product": compared.product.name,
            "kernel": {
                "tiling": asdict(choice.tiling),
                "predicted_cycles": round(choice.cycles),
                "predicted_scheduled_cycles": round(choice.scheduled_cycles),
                **({"refusal": kernel.reason} if isinstance(kernel, Refusal) else kernel.to_json()),
            },
            "emitter": _emitter(compared).to_json(),
            "bound": {
                "cycles": round(compared.bound.cycles),
                "arrays": round(compared.bound.arrays),
                "memory": round(compared.bound.memory),
            },
        }
    }


def product_table(found: Matmul, compared: ComparedProduct) -> str:
    """The same as a table: cycles with main memory, and of the instructions alone."""
    from ...backends.tpu import Refusal

    choice, kernel, emitter, bound = compared.choice, compared.kernel, _emitter(compared), compared.bound
    estimated = "" if emitter.estimated_cycles is None else f"{emitter.estimated_cycles:,}"
    tiles = "×".join(map(str, emitter.tiles)) if emitter.tiles else "-"

    def line(name: str, cycles: float, scheduled: float, moved: int | None, what: str) -> tuple[str, ...]:
        size = "-" if moved is None else f"{moved:,}"
        return name, f"{cycles:,.0f}", f"{scheduled:,.0f}", size, what

    tiling = str(choice.tiling)
    if isinstance(kernel, Refusal):
        ours: tuple[str, ...] = ("our kernel, compiled", "-", "-", "-", f"refused: {kernel.reason}")
    else:
        ours = line("our kernel, compiled", kernel.cycles, kernel.scheduled_cycles, kernel.hbm_bytes, tiling)
    rows = [
        (compared.product.name, "cycles", "scheduled", "HBM bytes", "tiles m×k×n"),
        line("our kernel, predicted", choice.cycles, choice.scheduled_cycles, choice.hbm_bytes, tiling),
        ours,
        line(
            "the compiler's own",
            emitter.cycles,
            emitter.scheduled_cycles,
            emitter.hbm_bytes,
            f"{tiles} {emitter.emitter}",
        ),
        line("bound", bound.cycles, bound.arrays, None, f"main memory {bound.memory:,.0f}"),
        ("the compiler's estimate", estimated or "-", "-", "-", f"predicted {found.cycles:,}"),
    ]
    return aligned(rows, right=(1, 2, 3))


def _emitter(compared: ComparedProduct) -> Measured:
    """The compiler's own; ``RefusedError`` if it does not take the product."""
    from ...backends.tpu import Refusal, RefusedError

    if isinstance(compared.emitter, Refusal):
        raise RefusedError(compared.emitter.reason)
    return compared.emitter
