"""Ops that rearrange a value without computing: no element changes."""

from __future__ import annotations

import numpy as np

from ..op import TypeMismatch, define, moves_result
from ..types import Dim, Shape, TensorType, is_ragged
from .elementwise import broadcast_shapes

Array = np.ndarray


def _segments(shape: Shape) -> list[tuple[Dim | None, int]]:
    """The ragged or open dimensions in order, each with the product of the numbers before it."""
    segments: list[tuple[Dim | None, int]] = []
    product = 1
    for dim in shape:
        if isinstance(dim, int):
            product *= dim
        else:
            segments.append((dim, product))
            product = 1
    return [*segments, (None, product)]


def _reshape_type(x: TensorType, *, shape: Shape) -> TensorType:
    # A ragged dimension has no known length, so it can neither be split nor merged: the numbers
    # on each side of it must multiply to the same.
    if _segments(x.shape) != _segments(shape):
        raise TypeMismatch(f"{x} cannot be reshaped to [{','.join(map(str, shape))}]")
    return x.with_shape(shape)


@define(_reshape_type)
def reshape(x: Array, *, shape: Shape) -> Array:
    """the same elements in row-major order, in another shape; ragged dimensions stay as they are"""
    return np.reshape(x, [dim if isinstance(dim, int) else -1 for dim in shape])


def _transpose_type(x: TensorType, *, permutation: tuple[int, ...]) -> TensorType:
    if sorted(permutation) != list(range(x.rank)):
        raise TypeMismatch(f"{permutation} is not an order of the {x.rank} axes of {x}")
    return x.with_shape(tuple(x.shape[axis] for axis in permutation))


@define(_transpose_type, moves_result)
def transpose(x: Array, *, permutation: tuple[int, ...]) -> Array:
    """axis i of the result is axis permutation[i] of x"""
    return np.transpose(x, permutation)


def _broadcast_type(x: TensorType, *, shape: Shape) -> TensorType:
    if broadcast_shapes(x.shape, shape) != tuple(shape):
        raise TypeMismatch(f"{x} cannot be broadcast to [{','.join(map(str, shape))}]")
    return x.with_shape(shape)


@define(_broadcast_type)
def broadcast_to(x: Array, *, shape: Shape) -> Array:
    """x repeated along new leading dimensions and dimensions of size 1"""
    return np.broadcast_to(x, shape)  # type: ignore[arg-type]  # by now every dimension is a number


def _concatenate_type(*types: TensorType, axis: int) -> TensorType:
    first = types[0]
    if not 0 <= axis < first.rank:
        raise TypeMismatch(f"{first} has no axis {axis}")
    total = 0
    for type_ in types:
        dim = type_.shape[axis] if type_.rank == first.rank else None
        rest = (type_.shape[:axis], type_.shape[axis + 1 :], type_.dtype)
        if rest != (first.shape[:axis], first.shape[axis + 1 :], first.dtype) or not isinstance(dim, int):
            raise TypeMismatch(f"{first} and {type_} cannot be joined along axis {axis}")
        total += dim
    return first.with_shape((*first.shape[:axis], total, *first.shape[axis + 1 :]))


@define(_concatenate_type, moves_result)
def concatenate(*arrays: Array, axis: int) -> Array:
    """the operands, one after the other along ``axis``"""
    return np.concatenate(arrays, axis=axis)


def _slice_type(x: TensorType, *, starts: tuple[int, ...], limits: tuple[int, ...]) -> TensorType:
    if not len(starts) == len(limits) == x.rank:
        raise TypeMismatch(f"needs one start and one limit for each axis of {x}")
    shape: list[Dim] = []
    for dim, start, limit in zip(x.shape, starts, limits, strict=True):
        if is_ragged(dim) and (start, limit) == (0, -1):
            shape.append(dim)  # a limit of -1 means all of it
        elif isinstance(dim, int) and 0 <= start <= limit <= dim:
            shape.append(limit - start)
        else:
            raise TypeMismatch(f"{start}:{limit} is not a part of dimension {dim} of {x}")
    return x.with_shape(tuple(shape))


@define(_slice_type, moves_result)
def slice_(x: Array, *, starts: tuple[int, ...], limits: tuple[int, ...]) -> Array:
    """elements starts[i] up to limits[i] along axis i; a limit of -1 is all of a ragged dimension"""
    return x[tuple(slice(a, None if b == -1 else b) for a, b in zip(starts, limits, strict=True))]
