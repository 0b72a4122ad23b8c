"""StableHLO lowerings of the elementwise ops, by name.

Numbers are those of the NumPy semantics, also at the edges: the sign of a remainder follows the divisor, an
integer divided by zero is zero.
"""

from __future__ import annotations

from ..ir.graph import Node
from ..ir.types import FLOATS
from .stablehlo_text import Block, Lowering, Value


def _unary(name: str) -> Lowering:
    return lambda block, node, x: block.same(name, x)


def _binary(name: str) -> Lowering:
    return lambda block, node, x, y: block.same(name, *block.fitted(x, y))


def _comparison(direction: str) -> Lowering:
    return lambda block, node, x, y: block.compare(direction, *block.fitted(x, y))


def _absolute(block: Block, node: Node, x: Value) -> Value:
    return x if x.type.dtype.startswith("u") else block.same("abs", x)


def _erf(block: Block, node: Node, x: Value) -> Value:
    # The form in which XLA reads its own erf; unlike chlo.erf it survives as a portable artifact.
    attributes = "{mhlo.attributes = {}, mhlo.version = 1 : i64}"
    return block.call(f"stablehlo.custom_call @mhlo.erf({x}) {attributes}", (x,), x.type)


def _signs_differ(block: Block, rest: Value, divisor: Value) -> Value:
    """Where a truncated division left a rest whose sign is not the divisor's: one too far from below."""
    zero = block.number(0, rest.type)
    below = block.compare("NE", block.compare("LT", rest, zero), block.compare("LT", divisor, zero))
    return block.same("and", block.compare("NE", rest, zero), below)


def _floor_divide(block: Block, node: Node, x: Value, y: Value) -> Value:
    x, y = block.fitted(x, y)
    zero, one = block.number(0, x.type), block.number(1, x.type)
    by_zero = block.compare("EQ", y, zero)
    if x.type.dtype in FLOATS:
        rest = block.same("remainder", x, y)
        whole = block.same("divide", block.same("subtract", x, rest), y)
        whole = block.select(_signs_differ(block, rest, y), block.same("subtract", whole, one), whole)
        whole = block.same("round_nearest_even", whole)  # only rounding errors are left of a fraction
        return block.select(by_zero, block.same("divide", x, y), whole)
    quotient = block.same("divide", x, y)
    if not x.type.dtype.startswith("u"):
        rest = block.same("subtract", x, block.same("multiply", quotient, y))
        lower = block.same("subtract", quotient, one)
        quotient = block.select(_signs_differ(block, rest, y), lower, quotient)
    return block.select(by_zero, zero, quotient)


def _remainder(block: Block, node: Node, x: Value, y: Value) -> Value:
    x, y = block.fitted(x, y)
    rest = block.same("remainder", x, y)
    if not x.type.dtype.startswith("u"):
        rest = block.select(_signs_differ(block, rest, y), block.same("add", rest, y), rest)
    if x.type.dtype in FLOATS:
        return rest
    zero = block.number(0, x.type)
    return block.select(block.compare("EQ", y, zero), zero, rest)


def _where(block: Block, node: Node, condition: Value, x: Value, y: Value) -> Value:
    return block.select(*block.fitted(condition, x, y))


def _cast(block: Block, node: Node, x: Value) -> Value:
    if node.tensor.dtype == "bool" != x.type.dtype:
        return block.compare("NE", x, block.number(0, x.type))
    return block.convert(x, node.tensor.dtype)


def _bitcast(block: Block, node: Node, x: Value) -> Value:
    return block.call(f"stablehlo.bitcast_convert {x}", (x,), node.tensor)


ELEMENTWISE: dict[str, Lowering] = {
    "negative": _unary("negate"),
    "absolute": _absolute,
    "exp": _unary("exponential"),
    "log": _unary("log"),
    "log1p": _unary("log_plus_one"),
    "sqrt": _unary("sqrt"),
    "rsqrt": _unary("rsqrt"),
    "tanh": _unary("tanh"),
    "sigmoid": _unary("logistic"),
    "sin": _unary("sine"),
    "cos": _unary("cosine"),
    "erf": _erf,
    "floor": _unary("floor"),
    "logical_not": _unary("not"),
    "logical_and": _binary("and"),
    "logical_or": _binary("or"),
    "add": _binary("add"),
    "subtract": _binary("subtract"),
    "multiply": _binary("multiply"),
    "divide": _binary("divide"),
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "power": _binary("power"),
    "maximum": _binary("maximum"),
    "minimum": _binary("minimum"),
    "equal": _comparison("EQ"),
    "not_equal": _comparison("NE"),
    "less": _comparison("LT"),
    "less_equal": _comparison("LE"),
    "greater": _comparison("GT"),
    "greater_equal": _comparison("GE"),
    "where": _where,
    "cast": _cast,
    "bitcast": _bitcast,
}
