"""systolic compile: a directory that holds everything but, if wanted, the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import DEFAULT_MODEL, Batch, Capacity, Dtype, ModelArgument, State


def compile_model(
    model: ModelArgument = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="The directory to create.")] = ...,  # type: ignore[assignment]
    copy_weights: Annotated[
        bool, typer.Option("--copy-weights", help="Copy the weights instead of referring to them.")
    ] = False,
    batch: Batch = None,
    capacity: Capacity = None,
    dtype: Dtype = None,
    chunk: Annotated[int | None, typer.Option(help="The longest piece that a prompt is read in.")] = None,
    state: State = None,
) -> None:
    """Writes StableHLO, NumPy modules, graphs and a manifest; run and score accept the directory."""
    from ..artifacts import write_compiled
    from ..locate import open_model
    from ..options import options_for

    subject = open_model(model, capacity, dtype)
    options = options_for(subject, batch=batch or 1, capacity=capacity, chunk=chunk, state=state or "auto")
    write_compiled(subject, options, out, copy_weights=copy_weights)
