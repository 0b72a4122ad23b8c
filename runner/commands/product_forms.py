"""The table of forms that products are written in, on the terminal: shown, or measured on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ...ir.errors import SystolicError
from .progress import progress_bar
from .table import aligned

if TYPE_CHECKING:
    from ...backends.contractions.table import Cell, FormTable


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
        if kept_table(backend.measured_on) != table:
            raise SystolicError(f"{file} could not be written, so that programs do not use what was measured")
    assert table is not None  # a CPU has one
    print(json.dumps(table.to_json(), indent=1) if as_json else forms_text(table))


def forms_text(table: FormTable) -> str:
    """The table to read: microseconds of one product in every form, and the fastest."""
    from ...backends.contractions.table import FORMS

    heading = ("weights", "kept as", "read from", "rows", "fastest", *(f"{form} µs" for form in FORMS))
    rows = aligned([heading, *map(_row, table.cells)])
    forms = "\n".join(f"{name}: {meaning}" for name, meaning in FORMS.items())
    caches = f"up to {table.near_bytes >> 20} MiB of weights stay in the caches"
    return f"{table.source}; {caches}\n\n{rows}\n\n{forms}"


def _row(cell: Cell) -> tuple[str, ...]:
    from ...backends.contractions.table import FORMS

    found = cell.setting
    shape = f"[{found.width}, {found.columns}]" if found.turned else f"[{found.columns}, {found.width}]"
    times = (f"{cell.seconds[form] * 1e6:,.1f}" if form in cell.seconds else "-" for form in FORMS)
    fastest = min(cell.seconds, key=cell.seconds.__getitem__)
    order = "in × out" if found.turned else "out × in"
    place = "caches" if found.near else "memory"
    return found.weights, f"{order} {shape}", place, str(found.rows), fastest, *times
