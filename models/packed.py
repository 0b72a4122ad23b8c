"""Weights in fewer bytes without any loss, f32 in 28 bits and bf16 in 12: see ``ir.ops.packing``.

    %w: f32[n,d]                →     %r: u8[n,…]   %v: f32[n·d/256]   %p: i32[n·d/256]
    ... multiplied with %w            ... multiplied with unpack(%r, %p, %v)

What has no place in a row, one weight in some thousands, stands in a list beside the rows, which has room
for one in 256. Matrices that are looked up (embeddings) are also kept as they are: few of their rows are
ever read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.errors import SystolicError
from ..ir.graph import Node
from ..ir.ops.packing import OUTSIDE, PLACES, ROWS, VALUES, pack_rows, packed_types
from ..ir.types import DTYPES, TensorType
from .compact import Blocks, Making
from .weights import aligned_empty

_CHUNK = 1 << 20  # weights that are packed at once: what is made of them on the way stays in the caches


@dataclass(frozen=True)
class Packing:
    """Matrices of ``dtype``, f32 or bf16, as rows of bytes and a list of what does not fit."""

    dtype: str
    suffixes: tuple[str, ...] = (ROWS, VALUES, PLACES)

    def types(self, rows: int, width: int) -> tuple[TensorType, ...] | None:
        """Rows u8[n, …], and the list: values of the dtype [e], places i32[e]."""
        return packed_types(rows, width, self.dtype)

    def parts(self, name: str, rows: int, width: int, blocks: Blocks) -> tuple[np.ndarray, ...]:
        """Rows and list, some rows at a time; ``SystolicError`` that names the matrix if the list is full."""
        types = self.types(rows, width)
        assert types is not None
        packed, values, places = (aligned_empty(t.static_shape, DTYPES[t.dtype]) for t in types)
        places.fill(rows * width)
        values.fill(0)
        count, step = 0, max(1, _CHUNK // width)
        for where, block in blocks:
            first = where.start or 0
            for at in range(0, len(block), step):
                some, row = np.ascontiguousarray(block[at : at + step]), first + at
                outside = pack_rows(some, packed[row : row + len(some)])
                end = count + len(outside)
                if end > len(places):
                    raise SystolicError(
                        f"{name}: more than one in {OUTSIDE} of its weights has another size than those of "
                        f"its row; keep weights as {self.dtype}"
                    )
                places[count:end] = row * width + outside
                values[count:end] = some.reshape(-1)[outside]
                count = end
        return packed, values, places

    def dense(self, make: Making, parts: Sequence[Node]) -> Node:
        """f32[n, d], unpacked."""
        rows, values, places = parts
        matrix = make("unpack", rows, places, values)
        return matrix if self.dtype == "f32" else make("cast", matrix, dtype="f32")

    def chosen_rows(self, make: Making, parts: Sequence[Node], index: Node) -> None:
        """Not from parts: few rows of a table are ever looked up, and from a file no others are read."""


PACKINGS: Mapping[str, Packing] = {f"{dtype}-packed": Packing(dtype) for dtype in ("f32", "bf16")}
