"""Floats in fewer bytes, and exactly the same floats: the upper bytes of a row are few, and lie in a table.

The upper byte of a float is its sign and the most part of its exponent. Weights of a row are of like sizes,
so 16 upper bytes cover nearly all of them, and 4 bits say which; the lower bytes, which hold the mantissa,
have no such order and stay as they are. f32 takes 28 bits then, bf16 12. That exponents of weights hold
about 3 bits is known from lossless formats such as DFloat11 (Zhang et al. 2025), which code them in a
variable number of bits; here it is 4 for all, so that any weight can be read where it lies.

A row of d floats of s bytes is ``16 + d/64 · (64(s-1) + 32)`` bytes: its table, and blocks of 64 floats,
each with the lower bytes of all of them, little-endian, and their codes, two in a byte: those of the first
32 floats in lower halves.

A table has eight upper bytes without their sign, from some size downwards, each with both signs: 16 powers
of two. From where, is chosen for each row such that few floats are larger or smaller. These are zero in
their row, and stand in a list beside the rows, which has room for one in 256.
"""

from __future__ import annotations

import numpy as np

from ..op import TypeMismatch, define, per_element
from ..types import DTYPES, TensorType

Array = np.ndarray

TABLE, BLOCK = 16, 64  # bytes in front of a row, floats in a block
ROWS, VALUES, PLACES = ".rows", ".values", ".places"  # what parameters are called behind a matrix's name
OUTSIDE = 256  # one float among so many may lie in the list
_SIZES = TABLE // 2  # upper bytes without a sign that a table has
_ZERO = TABLE - 1  # where a table has the byte of zero, if not all floats of a row are in it
_MOST = 2**31 - 1  # floats of a matrix: places are i32


def block_bytes(dtype: str) -> int:
    """Bytes of a block of floats, f32 or bf16."""
    return BLOCK * (DTYPES[dtype].itemsize - 1) + BLOCK // 2


def _unpack_type(rows: TensorType, places: TensorType, values: TensorType) -> TensorType:
    if values.dtype not in ("f32", "bf16") or values.rank != 1 or places != values.with_dtype("i32"):
        raise TypeMismatch(f"{places} and {values} are no places and what f32 or bf16 is there")
    size = block_bytes(values.dtype)
    if rows.dtype != "u8" or rows.rank != 2 or (rows.static_shape[1] - TABLE) % size:
        raise TypeMismatch(f"{rows} are no rows of {TABLE} bytes and blocks of {size}")
    count, width = rows.static_shape
    return TensorType((count, (width - TABLE) // size * BLOCK), values.dtype)


@define(_unpack_type, per_element(4))
def unpack(rows: Array, places: Array, values: Array) -> Array:
    """u8[n, …], i32[e], f32[e] or bf16[e]: the floats [n, d] that rows hold, with ``values`` added at
    ``places`` of [n · d]; each place once, and what is outside is dropped"""
    lower = values.dtype.itemsize - 1
    blocks = rows[:, 16:].reshape(len(rows), -1, 64 * lower + 32)
    halves = blocks[..., 64 * lower :]
    codes = np.concatenate([halves & 15, halves >> 4], axis=-1).reshape(len(rows), -1)
    upper = np.take_along_axis(rows[:, :16], codes.astype(np.intp), axis=1)
    low = blocks[..., : 64 * lower].reshape(*upper.shape, lower)
    whole = np.concatenate([low, upper[..., None]], axis=-1).view(values.dtype).reshape(-1)
    inside = places < whole.size
    whole[places[inside]] += values[inside]
    return whole.reshape(upper.shape)


def packed_types(rows: int, width: int, dtype: str) -> tuple[TensorType, TensorType, TensorType] | None:
    """The rows of a matrix [rows, width], and the list of values and places; None where it has none."""
    if width % BLOCK or rows * width > _MOST:
        return None
    outside = max(BLOCK, rows * width // OUTSIDE)
    size = TABLE + width // BLOCK * block_bytes(dtype)
    return TensorType((rows, size), "u8"), TensorType((outside,), dtype), TensorType((outside,), "i32")


def pack_rows(floats: Array, to: Array) -> Array:
    """Packs f32[n, d] or bf16[n, d] into ``to``, u8[n, …] as ``packed_types`` has it; the places i64[e] in
    [n · d] of those floats that are zero there, sorted.

    In a row that has any, or zeros, the last code stands for bytes that are zero.
    """
    rows, width = floats.shape
    size = floats.dtype.itemsize
    whole = floats.view(np.uint8).reshape(rows, width, size)
    upper = np.ascontiguousarray(whole[..., -1])
    magnitude = upper & 127
    highest = _highest(magnitude)
    below = highest[:, None] - magnitude.view(np.int8)  # how far down the table; below 0 is above it
    outside = (below < 0) | (below >= _SIZES)
    has_outside: Array = np.logical_or.reduce(outside, axis=1)
    codes = (below << 1).view(np.uint8) | upper >> 7
    outside |= has_outside[:, None] & (codes == _ZERO)
    codes[outside] = _ZERO
    places = np.flatnonzero(outside)
    places = places[floats.reshape(-1)[places] != 0]  # -0 becomes 0
    steps = highest[:, None] - np.arange(_SIZES, dtype=np.int8)
    table = np.repeat(np.maximum(steps, 0).view(np.uint8), 2, axis=1)
    table[:, 1::2] |= 128
    table[has_outside, _ZERO] = 0
    to[:, :TABLE] = table
    blocks = to[:, TABLE:].reshape(rows, width // BLOCK, -1)
    lower = blocks[..., : -BLOCK // 2].reshape(rows, width // BLOCK, BLOCK, size - 1)
    row, column = np.divmod(places, width)
    for byte in range(size - 1):
        lower[..., byte] = whole[..., byte].reshape(lower.shape[:-1])
        lower[row, column // BLOCK, column % BLOCK, byte] = 0
    pairs = codes.reshape(rows, width // BLOCK, 2, BLOCK // 2)
    blocks[..., -BLOCK // 2 :] = pairs[:, :, 0] | pairs[:, :, 1] << 4
    return places


def _highest(magnitude: Array) -> Array:
    """i8[n]: the upper byte at which the table of a row begins, such that most floats are in it."""
    count, sizes = len(magnitude), 1 << 7
    bins = np.arange(0, count * sizes, sizes, dtype=np.int32)[:, None] + magnitude
    up_to = np.bincount(bins.reshape(-1), minlength=count * sizes).reshape(count, sizes).cumsum(axis=1)
    inside = up_to.copy()  # floats in a table that begins at a byte
    inside[:, _SIZES:] -= up_to[:, :-_SIZES]
    return inside.argmax(axis=1).astype(np.int8)  # the lowest of such bytes, where fewest are at the end
