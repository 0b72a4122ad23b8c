"""The forms of a product that plain StableHLO has.

All give the same numbers up to rounding: sums are f32 in every one, ``split`` keeps vectors to 16 bits, and
``rounded``, as kernels for as many vectors, to the 8 of bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...ir.graph import Node
from ..native.calls import Selected
from ..stablehlo_text import Block, Value
from .products import Product

FEW = 4  # vectors: for more, weights are not read again for each of them
KEPT_WHOLE = 8  # vectors that are never rounded to the 8 bits of bf16, by kernels neither


def available_forms(product: Product, *, has_kernels: bool) -> tuple[str, ...]:
    """The forms that this product can be written in."""
    rows, stored = product.rows, product.stored
    fits = {
        "kernel": has_kernels,
        "dot": True,
        "swapped": rows > 1,
        "apart": 1 < rows <= FEW,
        "split": product.weights == "bf16" or (product.weights == "int8" and stored[1].tensor.shape[1] == 1),
        "rounded": product.weights == "bf16" and rows > KEPT_WHOLE,
    }
    return tuple(form for form, is_one in fits.items() if is_one)


def select_form(product: Product, form: str) -> Selected | None:
    """The product in a form of plain StableHLO; None for ``dot``, which is how it is written anyway."""
    if form == "dot":
        return None
    if form in _OF_WIDENED:
        return Selected((product.x, product.matrix), _in_rows(product, _OF_WIDENED[form]))
    multiply = _OF_KEPT[form, product.weights]
    return Selected((product.x, *product.stored), _in_rows(product, multiply))


def _in_rows(product: Product, multiply: Callable[..., Value]) -> Callable[..., Value]:
    """Vectors [..., d] as rows [m, d] for ``multiply``, and its results as the product has them."""

    def lower(block: Block, node: Node, x: Value, *weights: Value) -> Value:
        rows = block.reshape(x, (product.rows, product.width))
        results = multiply(block, rows, *weights, turned=product.turned)
        return block.reshape(results, node.tensor.static_shape)

    return lower


# ---- forms over widened weights ----


def _dot(block: Block, x: Value, w: Value, turned: bool, dtype: str = "f32") -> Value:
    """x[m, d] · w[n, d], or w[d, n]: [m, n], summed up in ``dtype``."""
    shape = x.type.shape[0], w.type.shape[1 if turned else 0]
    text = f"stablehlo.dot_general {x}, {w}, contracting_dims = [1] x [{0 if turned else 1}]"
    return block.call(text, (x, w), x.type.with_shape(shape).with_dtype(dtype))


def _swapped(block: Block, x: Value, w: Value, *, turned: bool) -> Value:
    shape = w.type.shape[1 if turned else 0], x.type.shape[0]
    text = f"stablehlo.dot_general {w}, {x}, contracting_dims = [{0 if turned else 1}] x [1]"
    return block.transpose(block.call(text, (w, x), x.type.with_shape(shape)), [1, 0])


def _apart(block: Block, x: Value, w: Value, *, turned: bool) -> Value:
    count = x.type.static_shape[0]
    parts = [_dot(block, _rows(block, x, row, row + 1), w, turned) for row in range(count)]
    names = ", ".join(part.name for part in parts)
    type_ = parts[0].type.with_shape((count, *parts[0].type.static_shape[1:]))
    return block.call(f"stablehlo.concatenate {names}, dim = 0", parts, type_)


_OF_WIDENED: Mapping[str, Callable[..., Value]] = {"swapped": _swapped, "apart": _apart}


# ---- forms over weights as they are kept ----


def _rounded(block: Block, x: Value, w: Value, *, turned: bool) -> Value:
    return _dot(block, block.convert(x, "bf16"), w, turned)


def _split_beside_bf16(block: Block, x: Value, w: Value, *, turned: bool) -> Value:
    """x as the sum of two bf16, both multiplied in one go."""
    rounding = f"stablehlo.reduce_precision {x}, format = e8m7"
    high = block.call(rounding, (x,), x.type)
    both = block.convert(_stacked(block, high, block.same("subtract", x, high)), "bf16")
    return _halves_added(block, _dot(block, both, w, turned))


def _split_beside_int8(block: Block, x: Value, integers: Value, scales: Value, *, turned: bool) -> Value:
    """x as integers of 16 bits with a scale for each row, and these as 256 · upper + lower of 8 bits."""
    rows, width = x.type.static_shape
    columns = integers.type.static_shape[0]
    largest = block.reduce(block.same("abs", x), [1], "maximum", 0)
    largest = block.same("maximum", largest, block.number(1e-30, largest.type))
    most = block.number(127 * 256, largest.type)  # an upper half of 127
    inverse = block.spread(block.same("divide", most, largest), [0], (rows, width))
    whole = block.same("round_nearest_even", block.same("multiply", x, inverse))
    # Lower halves are -128 to 127, as they are kept.
    raised = block.same("add", whole, block.number(128, x.type))
    upper = block.same("floor", block.same("multiply", raised, block.number(1 / 256, x.type)))
    shifted = block.same("multiply", upper, block.number(256, x.type))
    lower = block.same("subtract", whole, shifted)
    both = block.convert(_stacked(block, upper, lower), "i8")
    sums = _dot(block, both, block.reshape(integers, (columns, width)), turned, "i32")
    wide = block.convert(sums, "f32")
    high, low = _rows(block, wide, 0, rows), _rows(block, wide, rows, 2 * rows)
    total = block.same("add", block.same("multiply", high, block.number(256, high.type)), low)
    unit = block.spread(block.same("divide", largest, most), [0], (rows, columns))
    scale = block.spread(block.reshape(scales, (columns,)), [1], (rows, columns))
    return block.same("multiply", block.same("multiply", total, unit), scale)


def _rows(block: Block, x: Value, first: int, last: int) -> Value:
    width = x.type.static_shape[1]
    text = f"stablehlo.slice {x} [{first}:{last}, 0:{width}]"
    return block.call(text, (x,), x.type.with_shape((last - first, width)))


def _stacked(block: Block, first: Value, second: Value) -> Value:
    rows, width = first.type.static_shape
    text = f"stablehlo.concatenate {first}, {second}, dim = 0"
    return block.call(text, (first, second), first.type.with_shape((2 * rows, width)))


def _halves_added(block: Block, both: Value) -> Value:
    rows = both.type.static_shape[0] // 2
    return block.same("add", _rows(block, both, 0, rows), _rows(block, both, rows, 2 * rows))


_OF_KEPT: Mapping[tuple[str, str], Callable[..., Value]] = {
    ("split", "bf16"): _split_beside_bf16,
    ("split", "int8"): _split_beside_int8,
    ("rounded", "bf16"): _rounded,
}
