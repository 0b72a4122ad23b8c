"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "shakespeare"

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A checkpoint directory, a config.json, a compiled directory, a known name, "
        "or a function in a Python file (path/to/file.py:function)."
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="Where programs run: xla or numpy; numpy:TARGET runs loops over the tiles of a target."
    ),
]
State = Annotated[str | None, typer.Option(help="How states are chosen: auto, sources or tokens.")]
StateDtype = Annotated[
    str | None,
    typer.Option(help="How the past is kept: f32 (default), bf16, f16, int8. Recurrent states stay f32."),
]
Roll = Annotated[
    str,
    typer.Option(
        help="Layers that repeat as one loop body, compiled once: auto (where it saves time), always (where "
        "it is possible) or never."
    ),
]
Capacity = Annotated[
    int | None, typer.Option(help="Positions that a text can have (default: the model's, at most 1024).")
]
Batch = Annotated[int | None, typer.Option(help="Rows that run side by side (default: 1).")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="How weights are kept: f32 (default), bf16, f16; the same numbers in fewer bytes, f32-packed or "
        "bf16-packed; or rounded to integers: int8, int8-32, int4-32, int4-64."
    ),
]
Adapter = Annotated[
    list[Path] | None,
    typer.Option(help="A directory with a peft adapter: LoRA, merged, or a learned prompt; can be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
