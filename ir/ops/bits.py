"""Ops on bits: random numbers from counters are made of them. Shapes broadcast."""

from __future__ import annotations

import numpy as np

from ..op import TypeMismatch, define, no_work, per_element
from ..types import DTYPES, INTEGERS, TensorType
from .elementwise import elementwise

Array = np.ndarray

_integer = define(elementwise(INTEGERS), per_element(1), kind="elementwise")


@_integer
def bitwise_and(x: Array, y: Array) -> Array:
    """the bits that are set in x and in y"""
    return np.bitwise_and(x, y)


@_integer
def bitwise_or(x: Array, y: Array) -> Array:
    """the bits that are set in x or in y"""
    return np.bitwise_or(x, y)


@_integer
def bitwise_xor(x: Array, y: Array) -> Array:
    """the bits that are set in one of x and y"""
    return np.bitwise_xor(x, y)


@_integer
def shift_left(x: Array, y: Array) -> Array:
    """x times 2 to the power y, what does not fit cut off; 0 where y is as large as the type is wide"""
    return np.left_shift(x, y)


@_integer
def shift_right(x: Array, y: Array) -> Array:
    """x divided by 2 to the power y and rounded down: a signed x keeps its sign"""
    return np.right_shift(x, y)


def _bitcast_type(x: TensorType, *, dtype: str) -> TensorType:
    if dtype not in DTYPES:
        raise TypeMismatch(f"dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    if DTYPES[dtype].itemsize != DTYPES[x.dtype].itemsize or "bool" in (dtype, x.dtype):
        raise TypeMismatch(f"the bits of {x} are no {dtype}: both need as many")
    return x.with_dtype(dtype)


@define(_bitcast_type, no_work, kind="elementwise")
def bitcast(x: Array, *, dtype: str) -> Array:
    """the bits of x, read as a ``dtype`` of as many bits"""
    return x.view(DTYPES[dtype])
