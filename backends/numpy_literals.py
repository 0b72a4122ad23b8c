"""Types and constants as NumPy source. A number reads back as the same number of the same type."""

from __future__ import annotations

import json

import numpy as np

from ..ir.graph import Node
from ..ir.types import DTYPES, dtype_name

_TYPE_SOURCES = {"bf16": "bfloat16", "bool": "np.bool_"}
_LISTED_ELEMENTS = 64  # arrays beyond this are written as bytes, not as numbers
_WEAK_DTYPES = ("f64", "f32", "f16", "i64", "i32", "i8", "u32", "u16", "u8")  # bf16 * 0.5 would become f32


def quoted(text: str) -> str:
    """A string literal, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def dtype_source(dtype: str) -> str:
    """``np.float32``."""
    return _TYPE_SOURCES.get(dtype) or f"np.{DTYPES[dtype].name}"


def is_number(node: Node) -> bool:
    """Whether the node is a constant of one number, which is written where it is used."""
    return node.op.name == "constant" and node.tensor.rank == 0


def number_source(node: Node, user: Node | None = None) -> str:
    """A constant number: ``np.float32(0.5)``, or ``0.5`` where another operand decides the type."""
    value, dtype = node.params["value"][()], node.tensor.dtype
    if value.dtype == np.bool_:
        return f"np.{bool(value)}_"
    text = _digits(value)
    if user is not None and dtype in _WEAK_DTYPES and _type_is_decided(user, dtype):
        return text
    return f"{dtype_source(dtype)}({text})"


def _digits(value: np.generic) -> str:
    if value.dtype.kind in "iu":
        return str(int(value))
    if not np.isfinite(value):
        return {"inf": "np.inf", "-inf": "-np.inf"}.get(str(float(value)), "np.nan")
    short = str(value)  # the shortest digits that give this value in its own type
    return short if type(value)(float(short)) == value else repr(float(value))


def _type_is_decided(user: Node, dtype: str) -> bool:
    """Whether an operand that is no bare number gives a binary operation this element type."""
    others = [source for source in user.sources if not is_number(source)]
    return user.op.kind == "elementwise" and any(other.tensor.dtype == dtype for other in others)


def array_source(array: np.ndarray) -> str:
    """A constant array: a list, one repeated value, or bytes."""
    type_, flat = dtype_source(dtype_name(array.dtype)), array.reshape(-1)
    if flat.size > 1 and flat.tobytes() == flat[:1].tobytes() * flat.size:
        digits = str(bool(flat[0])) if array.dtype == np.bool_ else _digits(flat[0])
        return f"np.full({array.shape}, {digits}, {type_})"
    if flat.size > _LISTED_ELEMENTS:
        return f'np.frombuffer(bytes.fromhex("{array.tobytes().hex()}"), {type_}).reshape({array.shape})'
    if array.dtype == np.bool_:
        elements = [str(bool(element)) for element in flat]
    else:
        elements = [_digits(element) for element in flat]
    for size in reversed(array.shape):
        elements = [f"[{', '.join(elements[i : i + size])}]" for i in range(0, len(elements), max(size, 1))]
    return f"np.array({elements[0]}, {type_})"
