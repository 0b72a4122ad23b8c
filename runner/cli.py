"""The command line: commands, and how every mistake ends in one sentence and exit status 2."""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import Annotated

import typer

from ..ir.errors import SystolicError
from .commands.chat import chat
from .commands.check import check
from .commands.compile import compile_model
from .commands.cost import cost
from .commands.graph import graph
from .commands.models import models
from .commands.run import run
from .commands.score import score
from .commands.serve import serve
from .commands.targets import targets
from .commands.view import view
from .interrupted import INTERRUPTED_STATUS, end_interrupted

BAD_INPUT_STATUS = 2
ALLOCATIONS = 50_000  # between two searches for garbage: importing jax alone makes half a million objects

app = typer.Typer(
    name="systolic",
    help="A compiler for autoregressive models: causal graphs in, KV caches and decode loops derived.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(chat)
app.command()(serve)
app.command()(check)
app.command()(graph)
app.command("compile")(compile_model)
app.command()(score)
app.command()(models)
app.command()(cost)
app.command()(targets)
app.command()(view)


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"systolic {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that come before a command."""


def main() -> None:
    """The entry point of ``systolic``: exit 0, 1 for a leak, 2 for bad input, 130 for Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character
    try:
        try:
            gc.set_threshold(ALLOCATIONS)
            app()
        except SystemExit as end:
            sys.stdout.flush()  # while a closed pipe can still be told from a bug
            if end.code == INTERRUPTED_STATUS:
                end_interrupted()
            raise
    except KeyboardInterrupt:  # once more, while the first one unwound what ran
        end_interrupted()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except SystolicError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(message: str) -> None:
    print(f"systolic: error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT_STATUS)
