"""The forms that products are written in, on the terminal: as they were measured, and those of a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from ...ir.errors import SystolicError
from .progress import progress_bar
from .table import aligned

if TYPE_CHECKING:
    from ...backends.contractions.table import Cell, FormTable, Setting
    from ..stages import Stages


def show_forms(*, calibrate: bool, as_json: bool) -> None:
    """Prints the table that this machine uses; with ``calibrate`` it is measured first, and kept."""
    from ...backends.contractions.kept import keep_table, kept_table
    from ...backends.contractions.measure import measured_forms
    from ...backends.xla import XlaBackend

    backend = XlaBackend("cpu")
    table = backend.forms
    if calibrate:
        with progress_bar("measuring") as report:
            table = measured_forms(report)
        file = keep_table(table, backend.measured_on)
        if kept_table(backend.measured_on, backend.processor.kind) != table:
            raise SystolicError(f"{file} could not be written, so that programs do not use what was measured")
    assert table is not None  # a CPU has one
    print(table.to_text().strip() if as_json else forms_text(table))


def forms_text(table: FormTable) -> str:
    """The table to read: microseconds of one product in every form, and the fastest."""
    from ...backends.contractions.table import FORMS

    heading = ("weights", "kept as", "read from", "rows", "fastest", *(f"{form} µs" for form in FORMS))
    rows = aligned([heading, *map(_row, table.cells)])
    forms = "\n".join(f"{name}: {meaning}" for name, meaning in FORMS.items())
    caches = f"up to {table.near_bytes >> 20} MiB of weights stay in the caches"
    return f"{table.source}; {caches}\n\n{rows}\n\n{forms}"


def model_forms(stages: Stages, as_json: bool) -> str:
    """The products of a model's prefill and decode programs as they run on this machine's CPU: a table, or
    JSON."""
    from ...backends.contractions.selection import forms_of_program
    from ...backends.xla import XlaBackend

    backend = XlaBackend("cpu")
    table, has_kernels = backend.forms, backend.kernels is not None
    assert table is not None  # a CPU has one
    found: dict[tuple[str, int, Setting, str], int] = {}
    run = stages.on(backend)
    for name in ("prefill", "decode"):
        for choice in forms_of_program(run.program(name).graph, has_kernels, table):
            like = (name, len(choice.products), choice.setting, choice.form)
            found[like] = found.get(like, 0) + 1
    records = [
        {"program": name, "times": times, "products": together, **asdict(setting), "form": form}
        for (name, together, setting, form), times in found.items()
    ]
    if as_json:
        return json.dumps({"source": table.source, "forms": records}, indent=1)
    heading = ("program", "times", "products at once", "weights", "kept as", "read from", "rows", "form")
    rows = [
        (name, f"{times} ×", str(together), *_described(setting), form)
        for (name, together, setting, form), times in found.items()
    ]
    return f"{table.source}\n\n{aligned([heading, *rows])}"


def _row(cell: Cell) -> tuple[str, ...]:
    from ...backends.contractions.table import FORMS

    times = (f"{cell.seconds[form] * 1e6:,.1f}" if form in cell.seconds else "-" for form in FORMS)
    return *_described(cell.setting), min(cell.seconds, key=cell.seconds.__getitem__), *times


def _described(setting: Setting) -> tuple[str, str, str, str]:
    """Weights, what they are kept as, where they are read from, and rows."""
    width, columns = setting.width, setting.columns
    kept = f"in × out [{width}, {columns}]" if setting.turned else f"out × in [{columns}, {width}]"
    return setting.weights, kept, "caches" if setting.near else "memory", str(setting.rows)
