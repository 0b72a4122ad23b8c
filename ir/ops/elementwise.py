"""Ops that act on each element alone. Shapes broadcast as in NumPy; element types must agree."""

from __future__ import annotations

import math

import numpy as np

from ..op import TypeMismatch, TypeRule, define, per_element
from ..types import DTYPES, FLOATS, INTEGERS, Dim, Shape, TensorType, is_ragged

Array = np.ndarray


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The common shape, aligned from the right as in NumPy; ``TypeMismatch`` if there is none."""
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = [1] * rank
    for shape in shapes:
        for axis, dim in enumerate(shape, start=rank - len(shape)):
            if result[axis] == 1:
                result[axis] = dim
            elif dim not in (1, result[axis]):
                shown = " and ".join(f"[{','.join(map(str, s))}]" for s in shapes)
                hint = ""
                if is_ragged(dim) and is_ragged(result[axis]):
                    hint = f": {dim} and {result[axis]} are different parts of time"
                raise TypeMismatch(f"shapes {shown} do not fit together{hint}")
    return tuple(result)


def _same_dtype(types: tuple[TensorType, ...]) -> str:
    dtypes = {t.dtype for t in types}
    if len(dtypes) > 1:
        shown = " and ".join(map(str, types))
        raise TypeMismatch(f"element types differ in {shown}; cast one of them")
    return types[0].dtype


def elementwise(allowed: tuple[str, ...] | None = None, result: str | None = None) -> TypeRule:
    """The type rule: broadcast shapes, equal dtypes out of ``allowed``, a fixed ``result`` dtype."""

    def infer(*types: TensorType) -> TensorType:
        dtype = _same_dtype(types)
        if allowed is not None and dtype not in allowed:
            raise TypeMismatch(f"takes {' or '.join(allowed)}, not {types[0]}")
        return TensorType(broadcast_shapes(*(t.shape for t in types)), result or dtype)

    return infer


_any = define(elementwise(), per_element(1), kind="elementwise")
_number = define(elementwise((*FLOATS, *INTEGERS)), per_element(1), kind="elementwise")
_float = define(elementwise(FLOATS), per_element(1), kind="elementwise")
_costly = define(elementwise(FLOATS), per_element(8), kind="elementwise")
_compare = define(elementwise(result="bool"), per_element(1), kind="elementwise")
_logic = define(elementwise(("bool",)), per_element(1), kind="elementwise")


@_number
def negative(x: Array) -> Array:
    """-x"""
    return np.negative(x)


@_number
def absolute(x: Array) -> Array:
    """|x|"""
    return np.absolute(x)


@_costly
def exp(x: Array) -> Array:
    """e to the power x"""
    return np.exp(x)


@_costly
def log(x: Array) -> Array:
    """natural logarithm"""
    return np.log(x)


@_costly
def log1p(x: Array) -> Array:
    """log(1 + x), accurate near zero"""
    return np.log1p(x)


@_float
def sqrt(x: Array) -> Array:
    """square root"""
    return np.sqrt(x)


@_float
def rsqrt(x: Array) -> Array:
    """1 / sqrt(x)"""
    return np.reciprocal(np.sqrt(x))


@_costly
def tanh(x: Array) -> Array:
    """hyperbolic tangent"""
    return np.tanh(x)


@_costly
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow for very negative x"""
    return (0.5 * (np.tanh(0.5 * x.astype(np.float64)) + 1.0)).astype(x.dtype)


@_costly
def sin(x: Array) -> Array:
    """sine of an angle in radians"""
    return np.sin(x)


@_costly
def cos(x: Array) -> Array:
    """cosine of an angle in radians"""
    return np.cos(x)


@_costly
def erf(x: Array) -> Array:
    """Gauss error function; NumPy has none, so Python's own is applied to each element"""
    return np.frompyfunc(math.erf, 1, 1)(x).astype(x.dtype)


@_float
def floor(x: Array) -> Array:
    """the largest whole number that is not above x"""
    return np.floor(x)


@_logic
def logical_not(x: Array) -> Array:
    """not x"""
    return np.logical_not(x)


@_logic
def logical_and(x: Array, y: Array) -> Array:
    """x and y"""
    return np.logical_and(x, y)


@_logic
def logical_or(x: Array, y: Array) -> Array:
    """x or y"""
    return np.logical_or(x, y)


@_number
def add(x: Array, y: Array) -> Array:
    """x + y"""
    return np.add(x, y)


@_number
def subtract(x: Array, y: Array) -> Array:
    """x - y"""
    return np.subtract(x, y)


@_number
def multiply(x: Array, y: Array) -> Array:
    """x * y"""
    return np.multiply(x, y)


@_float
def divide(x: Array, y: Array) -> Array:
    """x / y, for floats"""
    return np.divide(x, y)


@_number
def floor_divide(x: Array, y: Array) -> Array:
    """x // y, rounded towards minus infinity"""
    return np.floor_divide(x, y)


@_number
def remainder(x: Array, y: Array) -> Array:
    """x - y * (x // y): the sign follows y, as in Python"""
    return np.remainder(x, y)


@_costly
def power(x: Array, y: Array) -> Array:
    """x to the power y, for floats"""
    return np.power(x, y)


@_any
def maximum(x: Array, y: Array) -> Array:
    """the larger one"""
    return np.maximum(x, y)


@_any
def minimum(x: Array, y: Array) -> Array:
    """the smaller one"""
    return np.minimum(x, y)


@_compare
def equal(x: Array, y: Array) -> Array:
    """x == y"""
    return np.equal(x, y)


@_compare
def not_equal(x: Array, y: Array) -> Array:
    """x != y"""
    return np.not_equal(x, y)


@_compare
def less(x: Array, y: Array) -> Array:
    """x < y"""
    return np.less(x, y)


@_compare
def less_equal(x: Array, y: Array) -> Array:
    """x <= y"""
    return np.less_equal(x, y)


@_compare
def greater(x: Array, y: Array) -> Array:
    """x > y"""
    return np.greater(x, y)


@_compare
def greater_equal(x: Array, y: Array) -> Array:
    """x >= y"""
    return np.greater_equal(x, y)


def _where_type(condition: TensorType, x: TensorType, y: TensorType) -> TensorType:
    if condition.dtype != "bool":
        raise TypeMismatch(f"takes a bool condition, not {condition}")
    return TensorType(broadcast_shapes(condition.shape, x.shape, y.shape), _same_dtype((x, y)))


@define(_where_type, per_element(1), kind="elementwise")
def where(condition: Array, x: Array, y: Array) -> Array:
    """x where the condition holds, else y"""
    return np.where(condition, x, y)


def _cast_type(x: TensorType, *, dtype: str) -> TensorType:
    if dtype not in DTYPES:
        raise TypeMismatch(f"dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    return x.with_dtype(dtype)


@define(_cast_type, per_element(1), kind="elementwise")
def cast(x: Array, *, dtype: str) -> Array:
    """x converted to ``dtype``; floats become integers by truncation"""
    return x.astype(DTYPES[dtype])
