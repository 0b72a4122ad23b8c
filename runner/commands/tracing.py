"""What systolic run --trace writes: a table on the screen, JSON, or a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...ir.errors import SystolicError
from ..files import write_file

if TYPE_CHECKING:
    from ..executable import Executable

ON_SCREEN = "-"
SUFFIXES = (".json", ".html")

TraceOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Record each step: token, candidates, entropy, attention. A .json, a .html, or - for a table.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Let --trace overwrite an existing file.")]


def check_trace(target: str | None, *, beams: int, as_json: bool, force: bool) -> None:
    """``SystolicError`` where a trace could not be written, before any work is done for it."""
    if target is None:
        return
    if beams > 1:
        raise SystolicError("--trace records one text, and --beams searches among several; leave one out")
    if target == ON_SCREEN:
        if as_json:
            raise SystolicError("--trace - and --json both print; name a file for --trace")
        return
    file = Path(target)
    if file.suffix not in SUFFIXES:
        raise SystolicError(f"--trace must be a file that ends with .json or .html, or -, not {target!r}")
    if file.exists() and not force:
        raise SystolicError(f"{file} exists already; --force overwrites it")


def write_trace(
    executable: Executable, prompt: Sequence[int], new_ids: Sequence[int], target: str, *, force: bool
) -> None:
    """Records the continuation, and prints or writes it."""
    from ..traces.board import WIDTH, board
    from ..traces.page import trace_page
    from ..traces.record import record_trace, trace_json

    trace = record_trace(executable, prompt, new_ids)
    if target == ON_SCREEN:
        print()
        print(board(trace, shutil.get_terminal_size((WIDTH, 0)).columns))
        return
    file = Path(target)
    is_page = file.suffix == ".html"
    content = trace_page(trace) if is_page else json.dumps(trace_json(trace), indent=1, ensure_ascii=False)
    write_file(file, f"{content}\n", force=force)
