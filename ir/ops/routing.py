"""Ops of routed models: which of many, and the weights of those alone."""

from __future__ import annotations

import numpy as np

from ..op import Params, TypeMismatch, Work, define
from ..types import FLOATS, TensorType, ValueType

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
