"""Types of values: the shape and element type of *one* value of a stream, without batch or time.

A dimension is an ``int``, a named size that the user leaves open, or ragged: ``Past`` is as long as
the part of the past that a history reads (t + 1 at position t, at most the window), ``Whole`` as
long as the whole sequence of a clock.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import ml_dtypes
import numpy as np

MAIN = "main"  # the clock of a model that has only one
TEXT = "text"  # a clock without inputs, over when the text begins: as long as the text will be

DTYPES: dict[str, np.dtype] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i8": np.dtype(np.int8),
    "u32": np.dtype(np.uint32),
    "u16": np.dtype(np.uint16),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("f64", "f32", "f16", "bf16")
INTEGERS = ("i64", "i32", "i8", "u32", "u16", "u8")


def dtype_name(dtype: np.dtype | type) -> str:
    """The short name (``f32``) of a NumPy dtype; ``TypeError`` for one that no stream can have."""
    name = _NAMES.get(np.dtype(dtype))
    if name is None:
        raise TypeError(f"no stream can have dtype {np.dtype(dtype)}; known: {', '.join(DTYPES)}")
    return name


@dataclass(frozen=True, slots=True)
class Past:
    """The ragged dimension of a history: the last ``window`` positions of ``clock``, or all."""

    clock: str = MAIN
    window: int | None = None

    def __str__(self) -> str:
        at = "" if self.clock == MAIN else f"@{self.clock}"
        return f"past{self.window or ''}{at}"


@dataclass(frozen=True, slots=True)
class Whole:
    """The ragged dimension of ``whole``: every position of ``clock``."""

    clock: str = MAIN

    def __str__(self) -> str:
        return "whole" if self.clock == MAIN else f"whole@{self.clock}"


@dataclass(frozen=True, slots=True)
class Size:
    """A named size that is left open: equal to itself only, until ``Graph.bind`` gives a number."""

    name: str

    def __str__(self) -> str:
        return f"${self.name}"


Dim = int | Size | Past | Whole
Shape = tuple[Dim, ...]


def is_ragged(dim: Dim) -> bool:
    """Whether the dimension is a part of time: as long as the past, or as a whole sequence."""
    return isinstance(dim, (Past, Whole))


def parse_dim(text: str) -> Dim:
    """The inverse of ``str`` on a dimension; ``ValueError`` when it is none."""
    match = re.fullmatch(r"(\d+)|\$(\w+)|past(\d*)(?:@(\w+))?|whole(?:@(\w+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is not a dimension")
    number, size, window, past_clock, whole_clock = match.groups()
    if number:
        return int(number)
    if size:
        return Size(size)
    if text.startswith("past"):
        return Past(past_clock or MAIN, int(window) if window else None)
    return Whole(whole_clock or MAIN)


@dataclass(frozen=True, slots=True)
class TensorType:
    """The type of one value of a stream, printed like ``f32[past,4,8]``."""

    shape: Shape
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(dim, int) for dim in self.shape)

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape as numbers; ``ValueError`` while a dimension is ragged or open."""
        if not self.is_static:
            raise ValueError(f"{self} has a dimension that is not a number")
        return tuple(dim for dim in self.shape if isinstance(dim, int))

    @property
    def size(self) -> int:
        """Number of elements of a static type."""
        return math.prod(self.static_shape)

    @property
    def bytes(self) -> int:
        """Bytes of one value of a static type."""
        return self.size * DTYPES[self.dtype].itemsize

    def with_shape(self, shape: Shape) -> TensorType:
        return TensorType(tuple(shape), self.dtype)

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(self.shape, dtype)


ValueType = TensorType | tuple[TensorType, ...]  # a loop yields several values


def parse_type(text: str) -> TensorType:
    """The inverse of ``str`` on a type; ``ValueError`` when it is none."""
    match = re.fullmatch(r"(\w+)\[([^\]]*)\]", text.strip())
    if match is None or match[1] not in DTYPES:
        raise ValueError(f"{text!r} is not a type like f32[4,8]")
    dims = [dim.strip() for dim in match[2].split(",")] if match[2].strip() else []
    return TensorType(tuple(parse_dim(dim) for dim in dims), match[1])


def show_type(type_: ValueType) -> str:
    """``f32[4]``, or ``(f32[4], i32[2])`` for several values."""
    if isinstance(type_, TensorType):
        return str(type_)
    return "(" + ", ".join(map(str, type_)) + ")"
