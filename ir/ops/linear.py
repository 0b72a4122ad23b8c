"""Contraction, reductions and gathers: the ops that read many elements for one."""

from __future__ import annotations

import math
from typing import cast

import numpy as np

from ..op import Params, TypeMismatch, Work, define, moves_result, per_element
from ..types import FLOATS, INTEGERS, Dim, TensorType, ValueType, is_ragged

Array = np.ndarray


def split_subscripts(subscripts: str) -> tuple[str, str, str]:
    """``"hd,pd->hp"`` as its three terms; ``TypeMismatch`` when it is not of that form."""
    operands, arrow, result = subscripts.partition("->")
    terms = operands.split(",")
    if not arrow or len(terms) != 2 or not (operands.replace(",", "") + (result or "a")).isalpha():
        raise TypeMismatch(f"subscripts {subscripts!r} are not of the form 'ab,bc->ac'")
    return terms[0], terms[1], result


def letter_sizes(subscripts: str, x: TensorType, y: TensorType) -> dict[str, Dim]:
    """The dimension that each letter stands for; ``TypeMismatch`` when two disagree."""
    sizes: dict[str, Dim] = {}
    for term, type_ in zip(split_subscripts(subscripts)[:2], (x, y), strict=True):
        if len(term) != type_.rank or len(set(term)) != len(term):
            raise TypeMismatch(f"{term!r} does not name the axes of {type_}, each once")
        for letter, dim in zip(term, type_.shape, strict=True):
            if sizes.setdefault(letter, dim) != dim:
                raise TypeMismatch(f"{letter!r} is both {sizes[letter]} and {dim} in {x} and {y}")
    return sizes


def _contraction_type(x: TensorType, y: TensorType, *, subscripts: str) -> TensorType:
    if x.dtype != y.dtype or x.dtype == "bool":
        raise TypeMismatch(f"{x} and {y} cannot be multiplied; cast one of them")
    sizes = letter_sizes(subscripts, x, y)
    result = split_subscripts(subscripts)[2]
    if len(set(result)) != len(result) or not set(result) <= set(sizes):
        raise TypeMismatch(f"result {result!r} of {subscripts!r} needs letters of the operands, each once")
    return TensorType(tuple(sizes[letter] for letter in result), x.dtype)


def _contraction_work(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
    sizes = letter_sizes(params["subscripts"], *operands)
    return Work(multiply_adds=math.prod(cast(int, dim) for dim in sizes.values()))


@define(_contraction_type, _contraction_work)
def contraction(x: Array, y: Array, *, subscripts: str) -> Array:
    """the sum over every letter that the result does not name, as in einsum with two operands"""
    return np.einsum(subscripts, x, y, optimize=True).astype(x.dtype, copy=False)  # bf16 comes out as f32


def _axes_checked(x: TensorType, axes: tuple[int, ...]) -> None:
    if len(set(axes)) != len(axes) or not all(0 <= axis < x.rank for axis in axes):
        raise TypeMismatch(f"{axes} are not axes of {x}")


def _reduce_type(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    _axes_checked(x, axes)
    if x.dtype == "bool":
        raise TypeMismatch(f"{x} cannot be reduced; cast it first")
    return x.with_shape(tuple(dim for axis, dim in enumerate(x.shape) if axis not in axes))


@define(_reduce_type, per_element(1))
def sum_(x: Array, *, axes: tuple[int, ...]) -> Array:
    """the sum over ``axes``, which disappear"""
    return np.sum(x, axis=axes, dtype=x.dtype)


@define(_reduce_type, per_element(1))
def max_(x: Array, *, axes: tuple[int, ...]) -> Array:
    """the largest element along ``axes``, which disappear"""
    return np.max(x, axis=axes)


@define(_reduce_type, per_element(1))
def min_(x: Array, *, axes: tuple[int, ...]) -> Array:
    """the smallest element along ``axes``, which disappear"""
    return np.min(x, axis=axes)


def _argmax_type(x: TensorType, *, axis: int) -> TensorType:
    _axes_checked(x, (axis,))
    if is_ragged(x.shape[axis]):
        raise TypeMismatch(f"axis {axis} of {x} is a part of time, where an index has no fixed meaning")
    return TensorType(x.shape[:axis] + x.shape[axis + 1 :], "i32")


@define(_argmax_type, per_element(1))
def argmax(x: Array, *, axis: int) -> Array:
    """the first index of the largest element along ``axis``"""
    return np.argmax(x, axis=axis).astype(np.int32)


def _softmax_type(x: TensorType, *, axis: int) -> TensorType:
    _axes_checked(x, (axis,))
    if x.dtype not in FLOATS:
        raise TypeMismatch(f"takes floats, not {x}")
    return x


@define(_softmax_type, per_element(12))
def softmax(x: Array, *, axis: int) -> Array:
    """exp(x) normalised to sum 1 along ``axis``, shifted by the maximum so that it cannot overflow"""
    shifted = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return shifted / np.sum(shifted, axis=axis, keepdims=True)


def _cumulative_type(x: TensorType, *, axis: int) -> TensorType:
    _axes_checked(x, (axis,))
    if x.dtype == "bool" or is_ragged(x.shape[axis]):
        raise TypeMismatch(f"cannot be taken along axis {axis} of {x}")
    return x


@define(_cumulative_type, per_element(1))
def cumulative_sum(x: Array, *, axis: int) -> Array:
    """element i is the sum of elements 0 … i along ``axis``"""
    return np.cumsum(x, axis=axis, dtype=x.dtype)


def _take_type(x: TensorType, indices: TensorType, *, axis: int) -> TensorType:
    _axes_checked(x, (axis,))
    if indices.dtype not in INTEGERS:
        raise TypeMismatch(f"indices must be integers, not {indices}")
    if is_ragged(x.shape[axis]):
        raise TypeMismatch(
            f"axis {axis} of {x} is a part of time, where an index has no fixed meaning; "
            "read one position with delay(x, steps)"
        )
    return x.with_shape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@define(_take_type, moves_result)
def take(x: Array, indices: Array, *, axis: int) -> Array:
    """the elements at ``indices`` along ``axis``; an index outside is moved to the nearest inside"""
    return np.take(x, indices, axis=axis, mode="clip")
