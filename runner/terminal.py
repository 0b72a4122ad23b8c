"""Showing a long text: plain in a pipe; on a terminal in colour, and paged where it is long."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys

from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.text import Text
from rich.theme import Theme

STYLES = {
    "dump.comment": "dim",
    "dump.keyword": "bold",
    "dump.type": "cyan",
    "dump.op": "blue",
    "dump.access": "bold green",
    "dump.number": "magenta",
    "dump.added": "green",
    "dump.removed": "red",
}


class DumpHighlighter(RegexHighlighter):
    """Colours the printed form of graphs, and differences between them."""

    base_style = "dump."
    highlights = [  # noqa: RUF012  # as rich declares it
        r"^\s*(?P<keyword>graph|scope|repeat|input|param|feedback|output)\b",
        r"(?P<type>\b(?:f64|f32|f16|bf16|i64|i32|i8|u32|u8|bool)\[[^\]]*\])",
        r"= (?P<op>\w+)\(",
        r"(?P<access>\[(?::|(?:(?:0|t(?:-\d+)?):)?t(?:-\d+)?)\])",
        r"(?P<number>\{\w+(?:[+-]\d+)?\})",
        r"^\s*(?P<added>\+ .*)$",
        r"^\s*(?P<removed>- .*)$",
        r"(?P<comment>#.*)$",
    ]


def show(text: str) -> None:
    """Prints a text as it suits where it goes: NO_COLOR, PAGER and LESS are heeded."""
    if not sys.stdout.isatty():
        print(text)
        return
    console = Console()
    if not console.no_color and not console.is_dumb_terminal:
        text = colour(text, console.color_system or "standard")
    is_long = text.count("\n") >= shutil.get_terminal_size().lines
    if not (is_long and sys.stdin.isatty() and _page(text)):
        print(text)


def _page(text: str) -> bool:
    """Whether a pager was there to show the text."""
    command = shlex.split(os.environ.get("PAGER", "less"))
    if not command or shutil.which(command[0]) is None:
        return False
    environment = {"LESS": "FRSX", **os.environ}  # colours, lines cut at the edge, the screen left as it is
    subprocess.run(command, input=f"{text}\n", text=True, env=environment, check=False)
    return True


def colour(text: str, color_system: str) -> str:
    """The text with the codes of a terminal."""
    highlighter = DumpHighlighter()
    out = Console(file=io.StringIO(), theme=Theme(STYLES), force_terminal=True, color_system=color_system)  # type: ignore[arg-type]
    with out.capture() as captured:
        for line in text.split("\n"):
            styled = Text(line)
            highlighter.highlight(styled)
            out.print(styled, soft_wrap=True)
    return captured.get().removesuffix("\n")
