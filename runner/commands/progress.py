"""How far the compilation of programs is, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..programs import Report


@contextmanager
def compile_progress() -> Iterator[Report | None]:
    """What ``Executable.prepare`` reports to: a bar that goes when the block ends.

    None where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # only now: it takes a while to load
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("compiling", total=None)

        def report(ready: int, programs: int) -> None:
            bar.update(task, completed=ready, total=programs)

        yield report
