"""StableHLO of packed floats: see ``ir.ops.packing`` for their form."""

from __future__ import annotations

import numpy as np

from ..ir.graph import Node
from ..ir.ops.packing import BLOCK, TABLE
from ..ir.types import DTYPES, TensorType
from .stablehlo_order import scatter
from .stablehlo_text import Block, Lowering, Value

_WORDS = {"bf16": "u16", "f32": "u32"}


def _unpack(block: Block, node: Node, rows: Value, places: Value, values: Value) -> Value:
    """Words of lower bytes, with the bytes of a table that codes say on top."""
    count, width = node.tensor.static_shape
    word, lower = _WORDS[node.tensor.dtype], DTYPES[node.tensor.dtype].itemsize - 1
    shape = count, width // BLOCK
    blocks = _part(block, rows, TABLE, rows.type.static_shape[1])
    blocks = block.reshape(blocks, (*shape, blocks.type.static_shape[1] // shape[1]))
    table = _part(block, rows, 0, TABLE)
    words = _shifted(block, _looked_up(block, table, _codes(block, blocks, BLOCK * lower)), word, 8 * lower)
    bytes_ = block.reshape(_part(block, blocks, 0, BLOCK * lower), (*shape, BLOCK, lower))
    for number in range(lower):
        byte = block.reshape(_part(block, bytes_, number, number + 1), words.type.static_shape)
        words = block.same("or", words, _shifted(block, byte, word, 8 * number))
    type_ = TensorType((count * width,), node.tensor.dtype)
    floats = block.call(f"stablehlo.bitcast_convert {words}", (words,), words.type.with_dtype(type_.dtype))
    return block.reshape(
        scatter(block, "add", block.reshape(floats, type_.static_shape), places, values), (count, width)
    )


def _codes(block: Block, blocks: Value, first: int) -> Value:
    """The codes [n, G, 64] of blocks [n, G, …], which begin with byte ``first``."""
    pairs = _part(block, blocks, first, first + BLOCK // 2)
    lower = block.same("and", pairs, block.number(np.uint8(15), pairs.type))
    upper = block.same("shift_right_logical", pairs, block.number(np.uint8(4), pairs.type))
    type_ = pairs.type.with_shape((*pairs.type.static_shape[:2], BLOCK))
    return block.call(f"stablehlo.concatenate {lower}, {upper}, dim = 2", (lower, upper), type_)


def _looked_up(block: Block, table: Value, codes: Value) -> Value:
    """What rows of ``table`` [n, 16] have for codes [n, G, 64]: XLA gathers bytes one by one, but makes a
    single pass of choices."""
    shape = codes.type.static_shape
    found = block.spread(_column(block, table, 0), [0], shape)
    for code in range(1, TABLE):
        is_meant = block.compare("EQ", codes, block.number(np.uint8(code), codes.type))
        found = block.select(is_meant, block.spread(_column(block, table, code), [0], shape), found)
    return found


def _column(block: Block, table: Value, number: int) -> Value:
    return block.reshape(_part(block, table, number, number + 1), table.type.static_shape[:1])


def _shifted(block: Block, bytes_: Value, word: str, bits: int) -> Value:
    wide = block.convert(bytes_, word)
    return block.same("shift_left", wide, block.number(DTYPES[word].type(bits), wide.type)) if bits else wide


def _part(block: Block, x: Value, first: int, last: int) -> Value:
    """Elements ``first`` to ``last`` of the last axis."""
    *lead, _ = x.type.static_shape
    bounds = ", ".join([*(f"0:{size}" for size in lead), f"{first}:{last}"])
    return block.call(f"stablehlo.slice {x} [{bounds}]", (x,), x.type.with_shape((*lead, last - first)))


PACKING: dict[str, Lowering] = {"unpack": _unpack}
