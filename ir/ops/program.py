"""Ops that only programs contain: rows of a state read and written, and loops over positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..evaluate import evaluate
from ..op import Params, TypeMismatch, Work, define, moves_result, per_element
from ..types import FLOATS, INTEGERS, TensorType, ValueType

if TYPE_CHECKING:
    from ..graph import Graph

Array = np.ndarray


def _index_checked(x: TensorType, index: TensorType) -> None:
    if index.rank != 2 or index.dtype not in INTEGERS or x.rank < 2 or x.shape[0] != index.shape[0]:
        raise TypeMismatch(f"{index} does not index the rows of {x}")


def _read_type(x: TensorType, index: TensorType) -> TensorType:
    _index_checked(x, index)
    return x.with_shape((*index.shape, *x.shape[2:]))


@define(_read_type, moves_result, kind="program")
def read_rows(x: Array, index: Array) -> Array:
    """[B, S, …], [B, n] → [B, n, …]: x[b, index[b, i]]; an index outside is moved to the nearest inside"""
    rows = np.arange(x.shape[0])[:, None]
    return x[rows, np.clip(index, 0, x.shape[1] - 1)]


def _write_type(x: TensorType, values: TensorType, index: TensorType, *, axis: int = 1) -> TensorType:
    _index_checked(x, index)
    if not 1 <= axis < x.rank:
        raise TypeMismatch(f"{x} has no axis {axis} of slots")
    if values != x.with_shape((*index.shape, *x.shape[1:axis], *x.shape[axis + 1 :])):
        raise TypeMismatch(f"{values} are not the values at {index} of {x}")
    return x


def _write_work(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
    return Work(bytes_moved=2 * operands[1].bytes)


@define(_write_type, _write_work, kind="program")
def write_rows(x: Array, values: Array, index: Array, *, axis: int = 1) -> Array:
    """x with slot index[b, i] of row b, on ``axis``, set to values[b, i]; an index outside is dropped"""
    result = x.copy()
    row, column = np.nonzero((index >= 0) & (index < x.shape[axis]))
    np.moveaxis(result, axis, 1)[row, index[row, column]] = values[row, column]
    return result


# Recurrences whose steps can be combined in any order, by the op that joins what flows in to what was
# there, and the op that scales what was there: the scale distributes over the join.
SCALES = {"add": "multiply", "maximum": "add"}


def _scan_type(decay: TensorType, inflow: TensorType, start: TensorType, *, join: str = "add") -> TensorType:
    if join not in SCALES:
        raise TypeMismatch(f"a recurrence joins its terms by one of {', '.join(SCALES)}, not {join!r}")
    if decay != inflow or decay.rank < 2 or decay.dtype not in FLOATS:
        raise TypeMismatch(f"{decay} and {inflow} are not the factors and terms of one recurrence")
    if start != decay.with_shape((decay.shape[0], *decay.shape[2:])):
        raise TypeMismatch(f"a recurrence over {decay} cannot start with {start}")
    return decay


@define(_scan_type, per_element(4), kind="program")
def linear_scan(decay: Array, inflow: Array, start: Array, *, join: str = "add") -> Array:
    """h with h[:, t] = decay[:, t] * h[:, t - 1] + inflow[:, t] for [B, n, …], and ``start`` [B, …] before

    With ``join`` "maximum", h[:, t] = maximum(decay[:, t] + h[:, t - 1], inflow[:, t]). Backends may
    combine positions in any order, since the composition of such steps is associative.
    """
    joined, scaled = (np.maximum, np.add) if join == "maximum" else (np.add, np.multiply)
    state, states = start, np.empty_like(inflow)
    for t in range(inflow.shape[1]):
        state = joined(scaled(decay[:, t], state), inflow[:, t])
        states[:, t] = state
    return states


def _loop_type(
    *types: TensorType, body: Graph, carries: int, scanned: int, length: int, early: bool = False
) -> ValueType:
    if early and types[:1] != (TensorType((), "bool"),):
        raise TypeMismatch("a loop that may end early carries bool[] first")
    expected = []
    for position, type_ in enumerate(types):
        is_scanned = carries <= position < carries + scanned
        expected.append(type_.with_shape((type_.shape[0], 1, *type_.shape[2:])) if is_scanned else type_)
        if is_scanned and type_.shape[1] != length:
            raise TypeMismatch(f"{type_} has not the {length} positions of the loop on axis 1")
    declared = [node.type for node in body.inputs]
    if declared != expected:
        raise TypeMismatch(f"a body over {declared} cannot loop over {expected}")
    results = [node.tensor for node in body.outputs.values()]
    if results[:carries] != list(types[:carries]):
        raise TypeMismatch("what the body carries changes its type")
    stacked = [t.with_shape((t.shape[0], length, *t.shape[2:])) for t in results[carries:]]
    return (*types[:carries], *stacked)


def _loop_work(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
    total = Work()
    for node in params["body"].nodes:
        total = total + node.op.work(tuple(s.tensor for s in node.sources), node.type, node.params)
    n = params["length"]
    return Work(n * total.multiply_adds, n * total.elementwise, n * total.bytes_moved)


@define(_loop_type, _loop_work, kind="program")
def loop(
    *arrays: Array, body: Graph, carries: int, scanned: int, length: int, early: bool = False
) -> tuple[Array, ...]:
    """runs ``body`` for each of ``length`` positions, in order

    The first ``carries`` operands are carried from step to step; of the next ``scanned`` operands
    ``[B, length, …]`` the body sees one position ``[B, 1, …]`` at a time; the rest it sees whole.
    The body yields the carried values and then values ``[B, 1, …]``, which are joined on axis 1. With
    ``early`` it ends after the position that carries False on as its first value; what is joined is
    filled up with zeros.
    """
    carried, steps = list(arrays[:carries]), []
    names = [node.name for node in body.inputs]
    for i in range(length):
        sliced = [array[:, i : i + 1] for array in arrays[carries : carries + scanned]]
        values = dict(zip(names, [*carried, *sliced, *arrays[carries + scanned :]], strict=True))
        results = list(evaluate(body, values).values())
        carried = results[:carries]
        steps.append(results[carries:])
        if early and not carried[0]:
            break
    steps += [[np.zeros_like(part) for part in steps[-1]]] * (length - len(steps))
    return (*carried, *(np.concatenate(parts, axis=1) for parts in zip(*steps, strict=True)))


def _part_type(x: ValueType, *, index: int) -> TensorType:
    if isinstance(x, TensorType) or not 0 <= index < len(x):
        raise TypeMismatch(f"there is no part {index}")
    return x[index]


@define(_part_type, kind="program")
def part(x: tuple[Array, ...], *, index: int) -> Array:
    """one of the several values of a loop"""
    return x[index]
