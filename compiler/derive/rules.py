"""How each op is carried over from one value to rows and positions.

A rule gets the op's node, its placed operands and the frame it is evaluated in, and yields the
placed result. Only here do masks exist: where an op reduces a ragged dimension, what the position
may not see is replaced by the identity of the reduction, unless it is known to be zero already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from ...ir.graph import Node
from ...ir.ops import OPS
from ...ir.ops.linear import split_subscripts
from ...ir.types import DTYPES, FLOATS, is_ragged
from .frames import Frame
from .placed import ANY, FINITE, ZERO, Maker, Placed, align, settle, stretch


@dataclass(frozen=True)
class Rule:
    """One application of an op: the node of the stream and where its copies are made."""

    node: Node
    frame: Frame
    make: Maker

    def shape(self) -> tuple[int, ...]:
        return settle(self.node.tensor.shape, self.frame.extent)

    def result(self, node: Node, lead: int, outside: str = FINITE) -> Placed:
        return Placed(node, lead, self.node.tensor.shape, outside)


Vectorise = Callable[[Rule, list[Placed]], Placed]

_KEEP_ZERO = {"negative", "absolute", "sqrt", "tanh", "sin", "erf", "floor", "cast", "bitcast"}
_KEEP_FINITE = _KEEP_ZERO | {
    "add", "subtract", "multiply", "maximum", "minimum", "where", "sigmoid", "cos",
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
    "logical_not", "logical_and", "logical_or",
}  # fmt: skip


def _outside(name: str, operands: list[Placed]) -> str:
    """What an elementwise result holds outside, from what its operands hold there."""
    if name not in _KEEP_FINITE or any(o.outside == ANY for o in operands):
        return ANY
    values = operands[1:] if name == "where" else operands
    zeros = [o.outside == ZERO for o in values]
    if name in _KEEP_ZERO or name in ("add", "subtract", "maximum", "minimum", "where"):
        return ZERO if all(zeros) else FINITE
    return ZERO if name == "multiply" and any(zeros) else FINITE


def elementwise(rule: Rule, operands: list[Placed]) -> Placed:
    lead = max(o.lead for o in operands)
    rank = max(len(o.shape) for o in operands)
    aligned = [align(rule.make, o, lead, rank) for o in operands]
    name = rule.node.op.name
    return rule.result(rule.make(name, *aligned, **rule.node.params), lead, _outside(name, operands))


def reshape(rule: Rule, operands: list[Placed]) -> Placed:
    (x,) = operands
    shape = x.node.tensor.static_shape[: x.lead] + rule.shape()
    return rule.result(rule.make("reshape", x.node, shape=shape), x.lead, x.outside)


def transpose(rule: Rule, operands: list[Placed]) -> Placed:
    (x,) = operands
    order = (*range(x.lead), *(axis + x.lead for axis in rule.node.params["permutation"]))
    return rule.result(rule.make("transpose", x.node, permutation=order), x.lead, x.outside)


def broadcast_to(rule: Rule, operands: list[Placed]) -> Placed:
    (x,) = operands
    shape = rule.shape()
    aligned = align(rule.make, x, x.lead, len(shape))
    node = rule.make("broadcast_to", aligned, shape=x.node.tensor.static_shape[: x.lead] + shape)
    return rule.result(node, x.lead, x.outside)


def concatenate(rule: Rule, operands: list[Placed]) -> Placed:
    lead = max(o.lead for o in operands)
    leading = (rule.frame.rows, rule.frame.size)[:lead]
    parts = []
    for o in operands:
        aligned = align(rule.make, o, lead, len(o.shape))
        own = o.node.tensor.static_shape[o.lead :]
        parts.append(rule.make.broadcast(aligned, (*leading, *own)))
    node = rule.make("concatenate", *parts, axis=rule.node.params["axis"] + lead)
    return rule.result(node, lead, _join(operands))


def _join(operands: list[Placed]) -> str:
    kinds = {o.outside for o in operands}
    return ANY if ANY in kinds else FINITE if FINITE in kinds else ZERO


def slice_part(rule: Rule, operands: list[Placed]) -> Placed:
    (x,) = operands
    leading = x.node.tensor.static_shape[: x.lead]
    starts = (0,) * x.lead + tuple(rule.node.params["starts"])
    ends = zip(rule.node.params["limits"], x.node.tensor.static_shape[x.lead :], strict=True)
    limits = leading + tuple(size if limit == -1 else limit for limit, size in ends)
    return rule.result(rule.make("slice", x.node, starts=starts, limits=limits), x.lead, x.outside)


# ---- reductions: where masks appear ----


def visible_along(rule: Rule, x: Placed, axis: int) -> Placed:
    """bool, aligned with ``x``: which slots along ``axis`` each position may see.

    The past differs from position to position (lead 2); a finished clock does not (lead 1).
    """
    mask = rule.frame.visible(x.shape[axis])
    lead = max(x.lead, mask.lead)
    shape = mask.node.tensor.static_shape
    leading = shape[: mask.lead] + (1,) * (lead - mask.lead)
    own = tuple(shape[-1] if i == axis else 1 for i in range(len(x.shape)))
    return Placed(rule.make.reshape(mask.node, leading + own, "mask"), lead, x.shape)


def hide(rule: Rule, x: Placed, axes: list[int], identity: float | int) -> Placed:
    """``x`` with ``identity`` in place of what its position may not see along ragged ``axes``."""
    fill = rule.make.constant(identity, x.node.tensor.dtype)
    for axis in axes:
        mask = visible_along(rule, x, axis)
        value = align(rule.make, x, mask.lead, len(x.shape))
        node = rule.make("where", mask.node, value, fill, label="visible")
        x = replace(x, node=node, lead=mask.lead)
    everywhere = len(axes) == len(_ragged(x, range(len(x.shape))))
    return replace(x, outside=ZERO) if axes and everywhere and identity == 0 else x


def _ragged(x: Placed, axes: Any) -> list[int]:
    return [axis for axis in axes if is_ragged(x.shape[axis])]


def _identity(name: str, dtype: str) -> float | int:
    if name == "sum":
        return 0
    if dtype in FLOATS:
        limits: Any = ml_dtypes.finfo(DTYPES[dtype])
        return float(limits.min if name == "max" else limits.max)
    integers = np.iinfo(DTYPES[dtype])
    return int(integers.min if name == "max" else integers.max)


def reduction(rule: Rule, operands: list[Placed]) -> Placed:
    (x,) = operands
    name, axes = rule.node.op.name, rule.node.params["axes"]
    ragged = _ragged(x, axes)
    if ragged and not (name == "sum" and x.outside == ZERO):
        x = hide(rule, x, ragged, _identity(name, x.node.tensor.dtype))
    outside = x.outside if name == "sum" or x.outside == ANY else FINITE
    node = rule.make(name, x.node, axes=tuple(axis + x.lead for axis in axes))
    return rule.result(node, x.lead, outside)


def softmax(rule: Rule, operands: list[Placed]) -> Placed:
    (x,) = operands
    axis = rule.node.params["axis"]
    ragged = _ragged(x, [axis])
    alone = ragged == _ragged(x, range(len(x.shape)))
    outside = ZERO if ragged and alone else ANY if x.outside == ANY else FINITE
    # The lowest float and not -inf: a padding row sees nothing, and must not become NaN.
    x = hide(rule, x, ragged, _identity("max", x.node.tensor.dtype))
    node = rule.make("softmax", x.node, axis=axis + x.lead)
    return rule.result(node, x.lead, outside)


def along_axis(rule: Rule, operands: list[Placed]) -> Placed:
    (x,) = operands
    node = rule.make(rule.node.op.name, x.node, axis=rule.node.params["axis"] + x.lead)
    return rule.result(node, x.lead, x.outside)


def top_k(rule: Rule, operands: list[Placed]) -> Placed:
    (x,) = operands
    return rule.result(rule.make("top_k", x.node, k=rule.node.params["k"]), x.lead, x.outside)


def routed_contraction(rule: Rule, operands: list[Placed]) -> Placed:
    """Padding is sent nowhere: it costs no expert's weights, and its results are zeros."""
    x, weights, index = operands
    rows, size = rule.frame.rows, rule.frame.size
    x, index = stretch(rule.make, x, rows, size), stretch(rule.make, index, rows, size)
    valid = rule.make.reshape(rule.frame.valid, (rows, size, *(1 for _ in index.shape)), "valid")
    nowhere = rule.make.constant(-1, index.node.tensor.dtype)
    sent = rule.make("where", valid, index.node, nowhere, label="sent")
    node = rule.make("routed_contraction", x.node, weights.node, sent, **rule.node.params)
    return rule.result(node, 2, _join([x]))


def contraction(rule: Rule, operands: list[Placed]) -> Placed:
    x, y = operands
    x_term, y_term, result = split_subscripts(rule.node.params["subscripts"])
    for letter in dict.fromkeys(x_term + y_term):
        if letter not in result:
            x, y = _hide_letter(rule, x, y, x_term.find(letter), y_term.find(letter))
    lead = max(x.lead, y.lead)
    letters = "BC"
    text = f"{letters[: x.lead]}{x_term},{letters[: y.lead]}{y_term}->{letters[:lead]}{result}"
    node = rule.make("contraction", x.node, y.node, subscripts=text)
    return rule.result(node, lead, _join([x, y]) if ANY in (x.outside, y.outside) else FINITE)


def _hide_letter(rule: Rule, x: Placed, y: Placed, i: int, j: int) -> tuple[Placed, Placed]:
    """Hides what may not be seen along a summed letter, at axis i of x and j of y (-1: not there)."""
    in_x, in_y = i >= 0 and is_ragged(x.shape[i]), j >= 0 and is_ragged(y.shape[j])
    if not in_x and not in_y:
        return x, y
    x_zero, y_zero = in_x and x.outside == ZERO, in_y and y.outside == ZERO
    x_any, y_any = in_x and x.outside == ANY, in_y and y.outside == ANY
    # One factor has to be zero outside and the other finite. Hide in the one that has positions.
    if not x_zero and not y_zero:
        hide_x = in_x and (not in_y or x_any or (x.lead >= y.lead and not y_any))
        if hide_x:
            x = hide(rule, x, [i], 0)
        else:
            y = hide(rule, y, [j], 0)
        x_zero, y_zero = hide_x, not hide_x
    if x_zero and y_any:
        y = hide(rule, y, [j], 0)
    if y_zero and x_any and not x_zero:
        x = hide(rule, x, [i], 0)
    return x, y


def take(rule: Rule, operands: list[Placed]) -> Placed:
    x, indices = operands
    axis = rule.node.params["axis"]
    if x.lead and indices.lead:
        return _take_rows(rule, x, indices, axis)
    node = rule.make("take", x.node, indices.node, axis=axis + x.lead)
    if indices.lead and axis:  # the leading axes of the indices have to come first
        lead = tuple(range(axis, axis + indices.lead))
        rest = (i for i in range(node.tensor.rank) if i not in lead)
        node = rule.make("transpose", node, permutation=(*lead, *rest))
    return rule.result(node, max(x.lead, indices.lead), _join([x]))


def _take_rows(rule: Rule, x: Placed, indices: Placed, axis: int) -> Placed:
    """Both vary: each row and position gathers from its own value of x."""
    make, rows, size = rule.make, rule.frame.rows, rule.frame.size
    x, indices = stretch(make, x, rows, size), stretch(make, indices, rows, size)
    own = x.node.tensor.static_shape[2:]
    order = (0, 1, axis + 2, *(i + 2 for i in range(len(own)) if i != axis))
    rest = tuple(dim for i, dim in enumerate(own) if i != axis)
    table = make("transpose", x.node, label="table", permutation=order)
    table = make.reshape(table, (rows * size, own[axis], *rest), "table")
    wanted = indices.node.tensor.static_shape[2:]
    flat = make.reshape(indices.node, (rows * size, int(np.prod(wanted, dtype=int))), "rows")
    node = make("read_rows", table, flat)
    node = make.reshape(node, (rows, size, *wanted, *rest))
    count, at = len(wanted), axis + 2
    gathered = list(range(2, 2 + count))
    others = list(range(2 + count, 2 + count + len(rest)))
    order = (0, 1, *others[: at - 2], *gathered, *others[at - 2 :])
    if order != tuple(range(len(order))):
        node = make("transpose", node, permutation=order)
    return rule.result(node, 2, _join([x]))


def _alike(rule: Rule, operands: list[Placed]) -> tuple[list[Node], int]:
    """The operands with the same leading axes, and how many these are."""
    lead = max(o.lead for o in operands)
    leading = (rule.frame.rows, rule.frame.size)[:lead]
    fitted = []
    for o in operands:
        own = o.node.tensor.static_shape[o.lead :]
        fitted.append(rule.make.broadcast(align(rule.make, o, lead, len(o.shape)), (*leading, *own)))
    return fitted, lead


def cut(rule: Rule, operands: list[Placed]) -> Placed:
    fitted, lead = _alike(rule, operands)
    return rule.result(rule.make("cut", *fitted), lead)


def join_at(rule: Rule, operands: list[Placed]) -> Placed:
    """Nothing is added at the indices that a position may not see."""
    x, indices, values = operands
    name = rule.node.op.name
    identity = _identity("sum" if name == "add_at" else "max", x.node.tensor.dtype)
    values = hide(rule, values, _ragged(values, range(len(values.shape))), identity)
    fitted, lead = _alike(rule, [x, indices, values])
    return rule.result(rule.make(name, *fitted), lead, x.outside)


def of_parameters(rule: Rule, operands: list[Placed]) -> Placed:
    """What is the same for all rows and positions."""
    return rule.result(rule.make(rule.node.op.name, *(o.node for o in operands), **rule.node.params), 0)


RULES: dict[str, Vectorise] = {
    **{name: elementwise for name, op in OPS.items() if op.kind == "elementwise"},
    "reshape": reshape,
    "transpose": transpose,
    "broadcast_to": broadcast_to,
    "concatenate": concatenate,
    "slice": slice_part,
    "contraction": contraction,
    "sum": reduction,
    "max": reduction,
    "min": reduction,
    "softmax": softmax,
    "argmax": along_axis,
    "cumulative_sum": along_axis,
    "sort": along_axis,
    "argsort": along_axis,
    "cut": cut,
    "add_at": join_at,
    "max_at": join_at,
    "take": take,
    "top_k": top_k,
    "routed_contraction": routed_contraction,
    "unpack": of_parameters,
}
