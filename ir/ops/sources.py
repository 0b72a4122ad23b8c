"""Ops without operands, and the ops of time: where values come from."""

from __future__ import annotations

import numpy as np

from ..op import TypeMismatch, define
from ..time import NOW, Access, delay_access, window_access
from ..time import WHOLE as WHOLE_ACCESS
from ..types import DTYPES, MAIN, Past, TensorType, Whole, dtype_name, is_ragged

Array = np.ndarray


def _declared_type(*, type: TensorType, clock: str | None = None) -> TensorType:
    return type


@define(_declared_type, kind="source")
def input_(*, type: TensorType, clock: str | None = None) -> Array:
    """a value that the caller gives: one for each position of ``clock``, without a clock one for the text"""
    raise ValueError("an input has no value of its own")


@define(_declared_type, kind="source")
def parameter(*, type: TensorType) -> Array:
    """a weight: the same at every position"""
    raise ValueError("a parameter has no value of its own")


def _constant_type(*, value: Array) -> TensorType:
    return TensorType(value.shape, dtype_name(value.dtype))


@define(_constant_type, kind="source")
def constant(*, value: Array) -> Array:
    """a value known when the model is traced"""
    return value


def _arange_type(*, size: int, dtype: str = "i32") -> TensorType:
    return TensorType((size,), dtype)


@define(_arange_type, kind="source")
def arange(*, size: int, dtype: str = "i32") -> Array:
    """0, 1, … size - 1"""
    return np.arange(size, dtype=DTYPES[dtype])


def _position_type(*, clock: str = MAIN) -> TensorType:
    return TensorType((), "i32")


def _check_settled(x: TensorType) -> None:
    if any(is_ragged(dim) for dim in x.shape):
        raise TypeMismatch(
            f"cannot read other positions of {x}, which is itself a part of time; reduce it first"
        )


@define(_position_type, kind="time")
def position(*, clock: str = MAIN) -> Array:
    """t: how many values of ``clock`` came before this one"""
    raise ValueError("a position is known only while a clock ticks")


def _history_type(x: TensorType, *, window: int | None = None, clock: str = MAIN) -> TensorType:
    _check_settled(x)
    if window is not None and window < 1:
        raise TypeMismatch(f"a window of {window} holds nothing")
    return x.with_shape((Past(clock, window), *x.shape))


def _history_access(*, window: int | None = None, clock: str = MAIN) -> tuple[Access, ...]:
    return (window_access(window),)


@define(_history_type, kind="time", accesses=_history_access)
def history(x: Array, *, window: int | None = None, clock: str = MAIN) -> Array:
    """the values of x up to now, oldest first: all of them, or the last ``window``"""
    raise ValueError("a history is known only while a clock ticks")


def _delay_type(x: TensorType, initial: TensorType, *, steps: int) -> TensorType:
    _check_settled(x)
    if x != initial:
        raise TypeMismatch(f"a stream of {x} cannot start with {initial}")
    if steps < 1:
        raise TypeMismatch(f"delays by {steps} steps: only the past can be read")
    return x


def _delay_access(*, steps: int) -> tuple[Access, ...]:
    return (delay_access(steps), NOW)


@define(_delay_type, kind="time", accesses=_delay_access)
def delay(x: Array, initial: Array, *, steps: int) -> Array:
    """the value that x had ``steps`` positions ago; ``initial`` before the start"""
    raise ValueError("a delay is known only while a clock ticks")


def _whole_type(x: TensorType, *, clock: str = MAIN) -> TensorType:
    _check_settled(x)
    return x.with_shape((Whole(clock), *x.shape))


def _whole_access(*, clock: str = MAIN) -> tuple[Access, ...]:
    return (WHOLE_ACCESS,)


@define(_whole_type, kind="time", accesses=_whole_access)
def whole(x: Array, *, clock: str = MAIN) -> Array:
    """the values of x at every position of its clock, past and future"""
    raise ValueError("a whole sequence is known only when its clock has ended")


def _feedback_type(initial: TensorType, *, clock: str = MAIN) -> TensorType:
    _check_settled(initial)
    return initial


@define(_feedback_type, kind="time")
def feedback(initial: Array, *, clock: str = MAIN) -> Array:
    """the value that the stream closed onto this node had at t-1; ``initial`` at the start"""
    raise ValueError("a feedback is known only while a clock ticks")
