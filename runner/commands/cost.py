"""systolic cost: what a model's programs, or one matmul, cost on a target, predicted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...ir.errors import SystolicError
from ..files import write_file
from .arguments import Json, StateDtype
from .table import aligned

if TYPE_CHECKING:
    from ...compiler.cost import Matmul, Target


def cost(
    model: Annotated[
        str | None,
        typer.Argument(help="A model, as for `systolic graph`; a config.json without weights is enough."),
    ] = None,
    matmul: Annotated[
        str | None,
        typer.Option("--matmul", metavar="M,K,N", help="Only lhs [M, K] · rhs [K, N], of these sizes."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="bf16, f16, f32 or int8; or weights in groups with scales: int8-32, int4-32, …"),
    ] = "bf16",
    state_dtype: StateDtype = None,
    target: Annotated[str, typer.Option(help="A name from `systolic targets`, or a TOML file.")] = "tpu-v5e",
    batch: Annotated[int, typer.Option(help="Rows that run side by side.")] = 1,
    context: Annotated[int, typer.Option(help="Positions of each row, the new ones included.")] = 1024,
    phase: Annotated[str, typer.Option(help="decode: one token; prefill: the whole context.")] = "decode",
    by: Annotated[
        str, typer.Option(help="A line for each scope or op; layers are counted together.")
    ] = "scope",
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw roofline, scopes, batches and contexts: .png or .svg."),
    ] = None,
    array: Annotated[
        str | None, typer.Option(metavar="RxC", help="--matmul: another size of the target's arrays.")
    ] = None,
    dataflow: Annotated[
        str | None, typer.Option(help="--matmul: ws, os or is (default: the target's).")
    ] = None,
    scalesim_compatible: Annotated[
        bool,
        typer.Option("--scalesim-compatible", help="--matmul: count as SCALE-Sim does, os without drain."),
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="--matmul: write cells and addresses per cycle, as JSON."),
    ] = None,
    animate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="--matmul: write the wavefront through one small array, as HTML."),
    ] = None,
    compare_xla: Annotated[
        bool,
        typer.Option("--compare-xla", help="Compile it for the TPU target, and compare cycles op by op."),
    ] = False,
    transposed: Annotated[
        bool,
        typer.Option("--transposed", help="--matmul --compare-xla: rhs is kept as [N, K], as weights are."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Predicts what a model's programs cost on a target, or one matmul with its operands in main memory."""
    if (model is None) == (matmul is None):
        raise SystolicError("expected either a MODEL or --matmul M,K,N")
    if transposed and not (compare_xla and matmul is not None):
        raise SystolicError("--transposed belongs to --matmul M,K,N --compare-xla")
    if matmul is not None and compare_xla:
        _matmul_beside_xla(matmul, dtype, target, transposed, as_json)
    elif matmul is not None:
        _cost_of_matmul(matmul, dtype, target, array, dataflow, scalesim_compatible, trace, animate, as_json)
    elif model is not None and compare_xla:
        _compared_with_xla(model, dtype, state_dtype, target, batch, context, phase, as_json)
    elif model is not None:
        _cost_of_model(model, dtype, state_dtype, target, batch, context, phase, by, plot, as_json)


def _cost_of_model(
    model: str,
    dtype: str,
    state_dtype: str | None,
    target: str,
    batch: int,
    context: int,
    phase: str,
    by: str,
    plot: Path | None,
    as_json: bool,
) -> None:
    from ...compiler.cost import load_target
    from ...compiler.cost.grouped import MULTIPLIED, groups_of
    from ...compiler.cost.matmul import DTYPE_NAMES
    from ...compiler.cost.prediction import Plan, crossover_rows, most_rows, plan_program, predict
    from ...compiler.pipeline import passes_with, run_passes
    from ..locate import open_model
    from .predictions import prediction_json, prediction_table, write_plots

    machine = load_target(target)
    is_grouped = groups_of(dtype) is not None
    subject = open_model(model, context, dtype if is_grouped else None)
    final = run_passes(subject.graph, passes_with(state_dtype or "f32"))[-1].graph

    def planned(positions: int) -> Plan:
        name = MULTIPLIED if is_grouped else DTYPE_NAMES.get(dtype, dtype)
        return plan_program(final, machine, context=positions, phase=phase, dtype=name)

    plan = planned(context)
    found, most, crossover = predict(plan, batch), most_rows(plan), crossover_rows(plan)
    if plot is not None:
        positions = sorted({max(context * part // 8, 1) for part in (1, 2, 4, 6, 8)})
        write_plots(found, lambda: [(n, predict(planned(n), batch).seconds) for n in positions], plot)
    if as_json:
        print(json.dumps(prediction_json(found, most, crossover), indent=1))
    else:
        print(prediction_table(found, most, crossover, by))


def _compared_with_xla(
    model: str,
    dtype: str,
    state_dtype: str | None,
    target: str,
    batch: int,
    context: int,
    phase: str,
    as_json: bool,
) -> None:
    """The prediction of one phase beside the cycles that the TPU compiler estimates for the same program."""
    from dataclasses import replace

    from ...backends.tpu import parse_target
    from ...compiler.cost import load_target
    from ...compiler.cost.comparison import compare
    from ...compiler.cost.prediction import plan_program, predict
    from ...compiler.pipeline import passes_with, run_passes
    from ..locate import open_model
    from ..options import options_for
    from ..program_source import DerivedPrograms
    from ..tpu_report import compile_reports
    from .tpu_files import comparison_json, comparison_table

    if dtype not in ("f32", "bf16", "f16"):
        raise SystolicError(f"--compare-xla compiles weights as f32, bf16 or f16, not {dtype!r}")
    machine = parse_target(target)
    subject = open_model(model, context, dtype)
    final = run_passes(subject.for_texts_up_to(context).graph, passes_with(state_dtype or "f32"))[-1].graph
    plan = plan_program(final, load_target(machine.name), context=context, phase=phase, dtype=dtype)
    found = predict(plan, batch)
    chunk = 1 if phase == "decode" else context
    options = options_for(subject, batch=batch, capacity=context, chunk=chunk)
    program = DerivedPrograms(final, replace(options, chunk=chunk)).chunk(chunk)
    _, (report,) = compile_reports([program], machine)
    compared = compare(found, report.estimates())
    if as_json:
        print(json.dumps(comparison_json(found, report, compared), indent=1))
    else:
        print(comparison_table(found, report, compared))


def _cost_of_matmul(
    matmul: str,
    dtype: str,
    target: str,
    array: str | None,
    dataflow: str | None,
    scalesim_compatible: bool,
    trace: Path | None,
    animate: Path | None,
    as_json: bool,
) -> None:
    from ...compiler.cost import load_target
    from ...compiler.cost import matmul as predict

    m, k, n = _numbers(matmul, r"(\d+),(\d+),(\d+)", "--matmul", "three sizes M,K,N")
    size = _numbers(array, r"(\d+)x(\d+)", "--array", "rows and columns RxC") if array else None
    rows_columns = (size[0], size[1]) if size else None
    machine = load_target(target)
    found = predict(
        m, k, n, dtype, machine,
        array=rows_columns, dataflow=dataflow, scalesim_compatible=scalesim_compatible,
    )  # fmt: skip
    if trace is not None or animate is not None:
        _write_cycles((m, k, n), machine, rows_columns, dataflow, trace, animate)
    print(json.dumps(found.to_json(), indent=1) if as_json else _table(found))


def _matmul_beside_xla(matmul: str, dtype: str, target: str, transposed: bool, as_json: bool) -> None:
    """One product as predicted, as a kernel of our own, and as the TPU compiler emits it."""
    from ...backends.tpu import parse_target
    from ...backends.tpu_products import compare_products
    from ...compiler.cost import load_target
    from ...compiler.cost import matmul as predict
    from ...compiler.cost.kernels import product_of
    from .tpu_files import product_json, product_table

    m, k, n = _numbers(matmul, r"(\d+),(\d+),(\d+)", "--matmul", "three sizes M,K,N")
    machine = parse_target(target)
    found = predict(m, k, n, dtype, load_target(machine.name))
    (compared,) = compare_products([product_of(m, k, n, found.dtype, transposed)], machine)
    if as_json:
        print(json.dumps(product_json(found, compared), indent=1))
    else:
        print(product_table(found, compared))


def _write_cycles(
    shape: tuple[int, int, int],
    machine: Target,
    array: tuple[int, int] | None,
    dataflow: str | None,
    trace: Path | None,
    animate: Path | None,
) -> None:
    """The cycles of one array, as JSON, as a page, or both."""
    from ...compiler.cost.animation import wavefront_page
    from ...compiler.cost.matmul import with_changes
    from ...compiler.cost.trace import OPERANDS
    from ...compiler.cost.trace import trace as traced

    if machine.arrays is None:
        raise SystolicError(f"target {machine.name} has no arrays to trace")
    arrays = with_changes(machine.arrays, array, dataflow)
    if animate is not None:
        write_file(animate, wavefront_page(*shape, arrays))
    if trace is not None:
        cycles = traced(*shape, arrays)
        streams = {
            operand: {f: getattr(getattr(cycles, operand), f).tolist() for f in ("cycle", "port", "address")}
            for operand in OPERANDS
        }
        write_file(trace, json.dumps({"busy": cycles.busy.tolist(), **streams}))


def _numbers(text: str, pattern: str, option: str, expected: str) -> tuple[int, ...]:
    found = re.fullmatch(pattern, text.replace(" ", ""))
    if found is None:
        raise SystolicError(f"{option} is {text!r}; expected {expected}")
    return tuple(int(number) for number in found.groups())


def _table(found: Matmul) -> str:
    """What was found, one line each; figures that the target lacks are left out."""
    lines = [
        ("matmul", f"[{found.m}, {found.k}] · [{found.k}, {found.n}] {found.dtype} on {found.target}"),
        ("cycles", found.cycles and f"{found.cycles:,.0f}"),
        ("time", found.seconds and f"{found.seconds * 1e6:,.2f} µs"),
        ("bound", found.bound),
        ("tiling", _parts(found.tiling)),
        ("main memory", f"{found.hbm_bytes:,} bytes: {_parts(found.hbm_bytes_by_operand)}"),
        ("utilization", found.utilization and f"{found.utilization:.1%}"),
        ("energy", found.energy_joules and f"{found.energy_joules * 1e6:,.1f} µJ"),
        ("array cycles", found.compute_cycles and f"{found.compute_cycles:,} with all operands at hand"),
        ("array reads", found.sram_reads and f"{found.sram_reads:,}: {_parts(found.sram_reads_by_operand)}"),
        ("array writes", found.sram_writes and f"{found.sram_writes:,}"),
        ("mapped cells", found.mapping_utilization and f"{found.mapping_utilization:.1%}"),
    ]
    lines += [("alternative", _parts(other)) for other in found.alternatives]
    return aligned([(name, str(value)) for name, value in lines if value])


def _parts(parts: Mapping[str, int | str]) -> str:
    shown = (f"{value:,}" if isinstance(value, int) else value for value in parts.values())
    return ", ".join(f"{name} {value}" for name, value in zip(parts, shown, strict=True))
