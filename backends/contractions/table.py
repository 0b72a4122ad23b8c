"""Which form of a product is fastest: a table of measured seconds, and the choice that follows from it.

A table belongs to a machine. ``systolic targets --forms --calibrate`` measures one; where there is none, a
packaged one of its kind is used: there are those of a processor with AVX-512, and of one with AVX2, which all
other kinds are given, too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

FORMS: Mapping[str, str] = {
    "kernel": "our own kernel, which reads weights once and as they are kept",
    "dot": "one product as written, of weights widened to f32",
    "swapped": "the same with the weights as the first operand",
    "apart": "a product for each vector",
    "split": "vectors as two of fewer bits each, multiplied in the numbers that weights are kept in",
    "rounded": "vectors rounded to the numbers that weights are kept in",
}
WEIGHTS = ("f32", "bf16", "int8", "int4", "f32-packed", "bf16-packed")  # how they are kept
USUAL = ("kernel", "dot")  # what is taken where nothing else is known to be faster
MARGIN = 0.95  # of its time: two runs of one program differ by as much
PACKAGED = Path(__file__).parent / "measured"  # a file for each kind of machine (``backends.processor``)
MOST = "avx2"  # the kind of most machines
MANY = 64  # rows from which on it does not matter where weights are
FORMAT = 1
_UNLIKE = 100.0  # of distance: farther than any number of rows or weights


@dataclass(frozen=True, slots=True)
class Setting:
    """``rows`` vectors of ``width`` numbers times a matrix with ``columns`` results.

    ``weights`` is how they are kept, of ``WEIGHTS``; ``turned``: as [width, columns]
    and not [columns, width]; ``near``: they are still in the caches from the last time they were read.
    """

    weights: str
    turned: bool
    near: bool
    rows: int
    width: int
    columns: int


@dataclass(frozen=True)
class Cell:
    """What one product took in each form that was tried, in seconds."""

    setting: Setting
    seconds: Mapping[str, float]

    def fastest(self, has_kernels: bool) -> float:
        """Seconds of the fastest form that was tried."""
        tried = [seconds for form, seconds in self.seconds.items() if has_kernels or form != "kernel"]
        return min(tried or self.seconds.values())


@dataclass(frozen=True)
class FormTable:
    """Measured products. ``near_bytes``: weights of that many bytes stay in the caches from one use to the
    next. ``source`` says on what it was measured."""

    cells: tuple[Cell, ...]
    near_bytes: int
    source: str

    @cached_property
    def digest(self) -> str:
        """A name for what programs depend on."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()[:12]

    def nearest(self, setting: Setting) -> Cell | None:
        """The cell that is most like ``setting``, of weights that are kept alike; None without any."""
        alike = [cell for cell in self.cells if cell.setting.weights == setting.weights]
        return min(alike, key=lambda cell: _distance(cell.setting, setting), default=None)

    def choose(self, setting: Setting, available: Collection[str]) -> str:
        """The fastest of the ``available`` forms in the nearest cell. The usual one where none was tried, or
        where others are hardly faster."""
        cell = self.nearest(setting)
        usual = next(form for form in USUAL if form in available)
        tried = {} if cell is None else {f: s for f, s in cell.seconds.items() if f in available}
        if not tried:
            return usual
        fastest = min(tried, key=tried.__getitem__)
        return fastest if tried[fastest] < MARGIN * tried.get(usual, math.inf) else usual

    def seconds(self, setting: Setting, *, has_kernels: bool) -> float:
        """Predicted of a product in its fastest form: between measured numbers of rows on a straight line,
        and in proportion to the rows beyond them. Needs a cell of weights that are kept alike."""
        by_rows = self._seconds_by_rows(setting, has_kernels)
        rows = sorted(by_rows)
        above = next((i for i, measured in enumerate(rows) if measured >= setting.rows), None)
        if above is None:
            return by_rows[rows[-1]] * setting.rows / rows[-1]
        high = rows[above]
        low = rows[above - 1] if above else high
        share = (setting.rows - low) / (high - low) if high > low else 0.0
        return by_rows[low] + share * (by_rows[high] - by_rows[low])

    def _seconds_by_rows(self, setting: Setting, has_kernels: bool) -> dict[int, float]:
        """Of so many weights, by the numbers of rows that were measured: a weight takes as long as one of the
        two matrices next to it in size, or in between; a row no longer than in a product of fewer, since such
        a product could be read as several; and a product no longer than one of more rows, which could be
        empty."""
        alike = [cell for cell in self.cells if cell.setting.weights == setting.weights]
        alike = [cell for cell in alike if cell.setting.turned == setting.turned] or alike
        count, found = setting.width * setting.columns, {}
        for number in {cell.setting.rows for cell in alike}:
            cells = [cell for cell in alike if cell.setting.rows == number]
            cells = [cell for cell in cells if cell.setting.near == setting.near] or cells
            pairs = sorted((c.setting.width * c.setting.columns, c.fastest(has_kernels)) for c in cells)
            sizes = [size for size, _ in pairs]
            each = [seconds / size for size, seconds in pairs]
            found[number] = count * float(np.interp(math.log(count), np.log(sizes), each))
        rows = sorted(found)
        each_row = np.minimum.accumulate([found[r] / r for r in rows])
        seconds = np.minimum.accumulate((np.array(rows) * each_row)[::-1])[::-1]
        return dict(zip(rows, seconds.tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        cells = [{**asdict(cell.setting), "seconds": dict(cell.seconds)} for cell in self.cells]
        return {"format": FORMAT, "source": self.source, "near_bytes": self.near_bytes, "cells": cells}

    def to_text(self) -> str:
        """The same as text, a line for each cell."""
        found = self.to_json()
        lines = ",\n  ".join(map(json.dumps, found.pop("cells")))
        head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in found.items())
        return f'{{\n{head} "cells": [\n  {lines}\n ]\n}}\n'


def _distance(a: Setting, b: Setting) -> float:
    """How unlike two products are: doublings of rows, and of weights at half of that; another place or
    orientation is always further, but for many rows all places are alike."""
    is_elsewhere = a.near != b.near and max(a.rows, b.rows) < MANY
    unlike = _UNLIKE * (a.turned != b.turned) + 2 * _UNLIKE * is_elsewhere
    rows = abs(math.log2(a.rows / b.rows))
    return unlike + rows + abs(math.log2(a.width * a.columns / (b.width * b.columns))) / 2


def parse_table(text: str) -> FormTable:
    """What ``to_text`` wrote; ``ValueError`` or ``KeyError`` for anything else."""
    found = json.loads(text)
    if found["format"] != FORMAT:
        raise ValueError(f"a table of format {found['format']}, not {FORMAT}")
    cells = []
    for cell in found["cells"]:
        seconds = cell.pop("seconds")
        cells.append(Cell(Setting(**cell), seconds))
    return FormTable(tuple(cells), found["near_bytes"], found["source"])


def forced_table(form: str) -> FormTable:
    """A table with which every product is written in one form, if it has that."""
    cells = tuple(Cell(Setting(weights, False, False, 1, 1, 1), {form: 0.0}) for weights in WEIGHTS)
    return FormTable(cells, 0, f"{form} always")


@cache
def packaged_table(kind: str = MOST) -> FormTable:
    """The table of a kind of machine that comes with this package; that of most where it has none."""
    file = PACKAGED / f"{kind}.json"
    return parse_table((file if file.exists() else PACKAGED / f"{MOST}.json").read_text(encoding="utf-8"))
