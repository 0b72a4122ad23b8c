"""systolic compile: a directory that holds everything but, if wanted, the weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import DEFAULT_MODEL, Batch, Capacity, Dtype, ModelArgument, State, StateDtype

if TYPE_CHECKING:
    from ...compiler.chunks import ChunkSeconds
    from ...models.model import Model
    from ..options import Options


def compile_model(
    model: ModelArgument = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="The directory to create.")] = ...,  # type: ignore[assignment]
    copy_weights: Annotated[
        bool, typer.Option("--copy-weights", help="Copy the weights instead of referring to them.")
    ] = False,
    batch: Batch = None,
    capacity: Capacity = None,
    dtype: Dtype = None,
    state_dtype: StateDtype = None,
    chunk: Annotated[int | None, typer.Option(help="The longest piece that a prompt is read in.")] = None,
    state: State = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TPU[:TOPOLOGY[:CHIP]]",
            help="Also compile prefill and decode for tpu-v4, tpu-v5e, tpu-v5p, tpu-v6e or tpu-7x, "
            "without a TPU, and write what the compiler made of them. Products use kernels of our own where "
            "those are measured faster (tpu-v5e, v5p, v6e).",
        ),
    ] = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="--target: only warn of copied states and large temporaries.")
    ] = False,
    temporaries: Annotated[
        float, typer.Option(metavar="MB", help="--target: temporary memory that a program may need.")
    ] = 512.0,
) -> None:
    """Writes StableHLO, NumPy modules, graphs and a manifest; run and score accept the directory."""
    from ..artifacts import write_compiled
    from ..locate import open_model
    from ..options import options_for

    subject = open_model(model, capacity, dtype)
    options = options_for(
        subject,
        batch=batch or 1,
        capacity=capacity,
        chunk=chunk,
        state=state or "auto",
        state_dtype=state_dtype or "f32",
    )
    options = options.with_chunks(_chunk_seconds(subject, options, target), chunk)
    more = _compiled_for(subject, options, target, lenient, temporaries) if target else None
    write_compiled(subject, options, out, copy_weights=copy_weights, more=more)


def _chunk_seconds(model: Model, options: Options, target: str | None) -> ChunkSeconds:
    """Predicted for the target, or for a CPU of the kind that most are: the directory is read on any machine,
    and is the same on whichever it was written."""
    from ...backends.contractions.chunk_seconds import chunk_seconds
    from ...backends.contractions.table import packaged_table
    from ...compiler.cost.prediction import chunk_seconds_on
    from ...compiler.cost.targets import load_target
    from ...compiler.pipeline import run_passes

    graph = run_passes(model.for_texts_up_to(options.capacity).graph, options.passes)[-1].graph
    rows, capacity = options.batch, options.capacity
    if target is None:
        return chunk_seconds(graph, packaged_table(), rows=rows, capacity=capacity, has_kernels=True)
    machine = load_target(target.partition(":")[0])
    return chunk_seconds_on(machine, graph, rows=rows, capacity=capacity)


def _compiled_for(
    model: Model, options: Options, target: str, lenient: bool, temporaries: float
) -> dict[str, str]:
    """Files of the decode program and of the longest prefill as the compiler of a TPU has them; the table
    goes to the terminal, and what the audit finds with it or into an error."""
    from ...backends.tpu import parse_target
    from ...compiler.pipeline import run_passes
    from ..program_source import DerivedPrograms
    from ..tpu_report import audit, compile_reports, findings
    from .tpu_files import tpu_files, tpu_table

    machine = parse_target(target)
    source = DerivedPrograms(
        run_passes(model.for_texts_up_to(options.capacity).graph, options.passes)[-1].graph, options
    )
    texts, reports = compile_reports(
        [source.chunk(size) for size in dict.fromkeys((1, options.chunk))], machine, own_kernels=True
    )
    allowed = round(temporaries * 1e6)
    print(tpu_table(reports, machine))
    if lenient:
        for finding in findings(reports, allowed):
            print(f"systolic: warning: {finding}", file=sys.stderr)
    else:
        audit(reports, allowed)
    return tpu_files(texts, reports, machine)
