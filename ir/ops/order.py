"""Ops that put elements in order, and add where an index says."""

from __future__ import annotations

import numpy as np

from ..op import Params, TypeMismatch, Work, define
from ..types import INTEGERS, TensorType, ValueType, is_ragged

Array = np.ndarray


def _sort_work(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
    """n log2 n comparisons along the axis."""
    (x,) = operands
    return Work(elementwise=x.size * max(1, x.static_shape[params["axis"]].bit_length()))


def _sort_type(x: TensorType, *, axis: int) -> TensorType:
    if not 0 <= axis < x.rank:
        raise TypeMismatch(f"{x} has no axis {axis}")
    if is_ragged(x.shape[axis]):
        raise TypeMismatch(f"axis {axis} of {x} is a part of time and cannot be put in order")
    return x


@define(_sort_type, _sort_work)
def sort(x: Array, *, axis: int) -> Array:
    """the elements along ``axis``, smallest first"""
    return np.sort(x, axis=axis)


def _argsort_type(x: TensorType, *, axis: int) -> TensorType:
    return _sort_type(x, axis=axis).with_dtype("i32")


@define(_argsort_type, _sort_work)
def argsort(x: Array, *, axis: int) -> Array:
    """the indices of the elements along ``axis``, smallest element first, equal ones in their order"""
    return np.argsort(x, axis=axis, kind="stable").astype(np.int32)


def _cut_type(x: TensorType, weights: TensorType, limit: TensorType) -> TensorType:
    if x.dtype != "f32" or not x.rank or is_ragged(x.shape[-1]):
        raise TypeMismatch(f"takes f32 along an axis, not {x}")
    if weights.shape != x.shape or limit != weights.with_shape(x.shape[:-1]) or weights.dtype == "bool":
        raise TypeMismatch(f"{weights} and {limit} are not the weights and a limit for {x}")
    return limit.with_dtype("f32")


def _cut_work(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
    return Work(elementwise=32 * operands[0].size)


@define(_cut_type, _cut_work)
def cut(x: Array, weights: Array, limit: Array) -> Array:
    """[…, V], […, V], […]: the largest element of x such that the weights of all smaller ones sum to at
    most ``limit``; with weights of 1 that is an element of a given rank"""
    order = np.argsort(x, axis=-1, kind="stable")
    ordered, weight = (np.take_along_axis(part, order, axis=-1) for part in (x, weights))
    wide = weight.astype(np.float64)
    is_allowed = np.cumsum(wide, axis=-1) - wide <= limit[..., None]
    return np.max(np.where(is_allowed, ordered, ordered[..., :1]), axis=-1)


def _add_type(x: TensorType, indices: TensorType, values: TensorType) -> TensorType:
    if indices.dtype not in INTEGERS or not x.rank or x.dtype == "bool" or is_ragged(x.shape[-1]):
        raise TypeMismatch(f"{indices} are not indices of the last axis of {x}")
    if values.dtype != x.dtype or values.shape != indices.shape or indices.shape[:-1] != x.shape[:-1]:
        raise TypeMismatch(f"{values} are not the values at {indices} of {x}")
    return x


def _add_work(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
    x, indices, _ = operands
    return Work(elementwise=indices.size, bytes_moved=2 * x.bytes)


@define(_add_type, _add_work)
def add_at(x: Array, indices: Array, values: Array) -> Array:
    """[…, V], […, n], […, n]: x with values[…, i] added at indices[…, i]; an index outside is dropped"""
    result = x.reshape(-1, x.shape[-1]).copy()
    flat, added = (part.reshape(len(result), -1) for part in (indices, values))
    row, column = np.nonzero((flat >= 0) & (flat < x.shape[-1]))
    np.add.at(result, (row, flat[row, column]), added[row, column])
    return result.reshape(x.shape)


@define(_add_type, _add_work)
def max_at(x: Array, indices: Array, values: Array) -> Array:
    """[…, V], […, n], […, n]: x with each element at an index raised to the largest value given for it"""
    result = x.reshape(-1, x.shape[-1]).copy()
    flat, given = (part.reshape(len(result), -1) for part in (indices, values))
    row, column = np.nonzero((flat >= 0) & (flat < x.shape[-1]))
    np.maximum.at(result, (row, flat[row, column]), given[row, column])
    return result.reshape(x.shape)
