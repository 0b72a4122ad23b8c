"""Weights kept as small integers: one scale for each row of a matrix, or for each group within a row.

    %w: f32[n,d]                    →     %q: i8[n,G,d/G]   %s: bf16[n,G], or f32[n,1]
    ... read as %w                        ... read as reshape(cast(%q) * cast(%s), (n, d))

A weight is its integer times the scale of its group: symmetric, rounded to nearest. Scales of groups are
bf16, which spares a tenth of what is read with four bits in groups of 32. They are rounded up before weights
are divided by them, so that the largest one of a group is not cut off. Four-bit weights lie two in a byte
with 8 added to each; the lower halves of a group's bytes are its first half. Matrices that are looked up
(embeddings) are scaled after a row was chosen. What is no matrix, or no multiple of a group,
stays f32. Computed with as f32; ``backends/native`` reads the integers themselves for a few rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Node
from ..ir.types import DTYPES, TensorType
from .compact import Blocks, Making
from .weights import aligned_empty

VALUES, SCALES = ".integers", ".scales"  # what the two parameters of a matrix are called behind its name


@dataclass(frozen=True)
class Scheme:
    """``bits`` of an integer, and how many weights of a row share a scale (None: the whole row)."""

    bits: int
    group: int | None = None
    dtype: str = "f32"
    suffixes: tuple[str, ...] = (VALUES, SCALES)

    def groups(self, width: int) -> int:
        """How many scales a row of ``width`` weights has; 0 where it is no multiple of a group."""
        size = self.group or width
        return 0 if width % size or size * self.bits % 8 else width // size

    def quantise(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f32[n, d] as integers i8[n, G, d/G], or u8[n, G, d/G/2], and scales bf16[n, G], or f32[n, 1]."""
        rows, width = weights.shape
        grouped = weights.reshape(rows, self.groups(width), -1)
        most = np.float32(2 ** (self.bits - 1) - 1)
        scales = _largest(np.abs(grouped)) / most
        if scales.shape[1] > 1:
            scales = _rounded_up(scales)
        scaled = grouped / np.where(scales == 0, np.float32(1), scales.astype(np.float32))[..., None]
        np.clip(np.rint(scaled, out=scaled), -most, most, out=scaled)
        integers = scaled.astype(np.int8)
        return (_packed(integers) if self.bits == 4 else integers), scales

    def types(self, rows: int, width: int) -> tuple[TensorType, ...] | None:
        """Integers i8[n, G, d/G], or u8 of half as many, and scales [n, G]; None where d does not fit."""
        groups = self.groups(width)
        if not groups:
            return None
        size = width // groups * self.bits // 8
        integers = TensorType((rows, groups, size), "u8" if self.bits == 4 else "i8")
        return integers, TensorType((rows, groups), "bf16" if groups > 1 else "f32")

    def parts(self, name: str, rows: int, width: int, blocks: Blocks) -> tuple[np.ndarray, ...]:
        """Integers and scales, some rows at a time."""
        types = self.types(rows, width)
        assert types is not None
        integers, scales = (aligned_empty(type_.static_shape, DTYPES[type_.dtype]) for type_ in types)
        for where, block in blocks:
            integers[where], scales[where] = self.quantise(block)
        return integers, scales

    def dense(self, make: Making, parts: Sequence[Node]) -> Node:
        """f32[n, d]: integers times their scales."""
        return self._scaled(make, *parts)

    def chosen_rows(self, make: Making, parts: Sequence[Node], index: Node) -> Node:
        """Rows, scaled after the choice."""
        return self._scaled(make, *(make("take", part, index, axis=0) for part in parts))

    def _scaled(self, make: Making, values: Node, scales: Node) -> Node:
        """Integers [..., G, size] times scales [..., G] as f32[..., d]."""
        wide = _unpacked(make, values) if self.bits == 4 else make("cast", values, dtype="f32")
        if scales.tensor.dtype != "f32":
            scales = make("cast", scales, dtype="f32")
        spread = make("reshape", scales, shape=(*scales.tensor.shape, 1))
        product = make("multiply", wide, spread)
        *lead, groups, size = product.tensor.static_shape
        return make("reshape", product, shape=(*lead, groups * size))


def _rounded_up(scales: np.ndarray) -> np.ndarray:
    """f32 that are not negative, as the nearest bf16 that are not smaller."""
    bits = scales.view(np.uint32)
    raised = (bits >> 16) + (bits & 0xFFFF != 0)
    return raised.astype(np.uint16).view(DTYPES["bf16"])


def _unpacked(make: Making, packed: Node) -> Node:
    lower = make("bitwise_and", packed, make.number(np.uint8(15)))
    upper = make("shift_right", packed, make.number(np.uint8(4)))
    halves = [make("cast", half, dtype="f32") for half in (lower, upper)]
    joined = make("concatenate", *halves, axis=packed.tensor.rank - 1)
    return make("subtract", joined, make.number(np.float32(8)))


def _largest(magnitudes: np.ndarray) -> np.ndarray:
    """The maximum over the last axis, halving it: NumPy is slow where it reduces few numbers at a time."""
    while magnitudes.shape[-1] > 1 and magnitudes.shape[-1] % 2 == 0:
        half = magnitudes.shape[-1] // 2
        magnitudes = np.maximum(magnitudes[..., :half], magnitudes[..., half:])
    return magnitudes.max(axis=-1)


def _packed(integers: np.ndarray) -> np.ndarray:
    raised = (integers + 8).astype(np.uint8)
    first, second = np.split(raised, 2, axis=-1)
    return first | second << 4


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme(8),
    "int8-32": Scheme(8, 32),
    "int4-32": Scheme(4, 32),
    "int4-64": Scheme(4, 64),
}
