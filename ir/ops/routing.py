"""Ops of routed models: which of many, and the weights of those alone."""

from __future__ import annotations

import math
from typing import cast

import numpy as np

from ..op import Params, TypeMismatch, Work, define
from ..types import FLOATS, INTEGERS, TensorType, ValueType

Array = np.ndarray


def _top_k_type(x: TensorType, *, k: int) -> TensorType:
    if x.dtype not in FLOATS or not x.rank:
        raise TypeMismatch(f"takes floats along an axis, not {x}")
    size = x.shape[-1]
    if not isinstance(size, int) or not 1 <= k <= size:
        raise TypeMismatch(f"{k} elements cannot be chosen along the last axis of {x}")
    return TensorType((*x.shape[:-1], k), "i32")


def _top_k_work(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
    return Work(elementwise=4 * params["k"] * operands[0].size)


@define(_top_k_type, _top_k_work)
def top_k(x: Array, *, k: int) -> Array:
    """the indices of the k largest elements along the last axis, largest first; of equal ones the lower"""
    return np.argsort(-x, axis=-1, kind="stable")[..., :k].astype(np.int32)


def _routed_type(x: TensorType, weights: TensorType, index: TensorType, *, axes: str) -> TensorType:
    if axes not in ("nd", "dn") or weights.rank != 3 or {x.dtype, weights.dtype} - set(FLOATS):
        raise TypeMismatch(f"{weights} is no stack of matrices of floats, stored as nd or as dn, for {x}")
    if index.dtype not in INTEGERS or x.shape[:-1] not in (index.shape, index.shape[:-1]):
        raise TypeMismatch(f"{index} does not choose matrices for the rows of {x}")
    if x.shape[-1:] != (weights.shape[1 + axes.index("d")],):
        raise TypeMismatch(f"{x} does not fit the matrices of {weights}, stored as {axes}")
    return x.with_shape((*index.shape, weights.shape[1 + axes.index("n")]))


def _routed_work(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
    _, weights, index = operands
    return Work(multiply_adds=index.size * math.prod(cast(tuple[int, int], weights.shape[1:])))


@define(_routed_type, _routed_work)
def routed_contraction(x: Array, weights: Array, index: Array, *, axes: str) -> Array:
    """[…, d] or […, k, d], [E, n, d], […, k] → […, k, n]: each row times the matrix that its index chooses

    The matrices are stored as [n, d] or [d, n], as ``axes`` says, maybe in a narrower type than x. An index
    outside chooses none, and its result is zeros.
    """
    rows = x if x.ndim > index.ndim else x[..., None, :]
    rows = np.broadcast_to(rows, (*index.shape, x.shape[-1])).astype(np.result_type(x.dtype, np.float32))
    result = np.zeros((*index.shape, weights.shape[1 + axes.index("n")]), rows.dtype)
    for chosen in np.unique(index):
        if 0 <= chosen < len(weights):
            matrix = weights[chosen].astype(rows.dtype, copy=False)
            result[index == chosen] = rows[index == chosen] @ (matrix.T if axes == "nd" else matrix)
    return result.astype(x.dtype, copy=False)
