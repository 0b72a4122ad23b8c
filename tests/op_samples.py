"""One table of samples that drives every op on every backend.

A ``Sample`` is an op with operand values and parameters; what it must give is what the op's own NumPy body
gives. An ``ErrorSample`` is operands that the op must refuse, and words of the refusal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from programs_by_hand import (
    ending_body,
    input_node,
    program_from,
    recurrence_body,
    writing_body,
)

from systolic.compiler.program import Program
from systolic.ir.graph import Graph, Node, make_node
from systolic.ir.ops import OPS
from systolic.ir.types import TensorType, dtype_name
from systolic.models.packed import PACKINGS

F32, BF16 = np.float32, ml_dtypes.bfloat16


@dataclass(frozen=True)
class Sample:
    """An op applied to given values. ``reaches_backends`` is False for what only a graph with time has."""

    op: str
    label: str
    operands: tuple[np.ndarray, ...]
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.op}.{self.label}"

    def expected(self) -> tuple[np.ndarray, ...]:
        """What the op's own NumPy body gives; one array, or several for a loop."""
        with np.errstate(all="ignore"):
            result = OPS[self.op].numpy(*self.operands, **self.params)
        return result if isinstance(result, tuple) else (result,)


@dataclass(frozen=True)
class ErrorSample:
    """Operand types that an op refuses, and a pattern of the message."""

    op: str
    types: tuple[str, ...]
    params: Mapping[str, Any]
    message: str


def program_of(samples: Iterable[Sample], name: str = "samples") -> tuple[Program, dict[str, np.ndarray]]:
    """All samples as one program, with every operand as an input, and the values of these inputs."""
    inputs: list[Node] = []
    values: dict[str, np.ndarray] = {}
    outputs: dict[str, Node] = {}
    for sample in samples:
        operands = []
        for at, array in enumerate(sample.operands):
            node = input_node(f"{sample.name}.{at}", TensorType(array.shape, dtype_name(array.dtype)))
            operands.append(node)
            values[node.name] = array
        node = make_node(OPS[sample.op], operands, sample.params, name=sample.name, scope=sample.op)
        parts = [node]
        if isinstance(node.type, tuple):
            parts = [make_node(OPS["part"], [node], {"index": i}) for i in range(len(node.type))]
        outputs |= {f"{sample.name}.{i}": part for i, part in enumerate(parts)}
        inputs += operands
    return program_from(Graph(name, tuple(inputs), (), outputs)), values


def random(*shape: int, seed: int = 0, dtype: Any = F32) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(dtype)


def integers(*shape: int, low: int = -9, high: int = 10, dtype: Any = np.int32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(low, high, shape).astype(dtype)


def _array(values: Any, dtype: Any = F32) -> np.ndarray:
    return np.array(values, dtype)


# ---- elementwise ----

_GRID = _array([-3.5, -1.0, -0.25, 0.0, 1e-6, 0.25, 1.0, 2.5, 20.0])
_POSITIVE = _array([1e-6, 0.25, 1.0, 2.5, 20.0])
_SIGNED = (_array([7, -7, 7, -7, 6, 0, 5, -5], np.int32), _array([3, 3, -3, -3, -3, 4, 0, 0], np.int32))
_SIGNED_FLOATS = (_array([7, -7, 7, -7, 6, 0.5, -0.5, 6e7]), _array([3, 3, -3, -3, -3, 0.25, 0.1, 7]))
_BOOLS = (_array([[True], [False]], bool), _array([True, False, True], bool))
_PAIR = (random(2, 1, 4), random(3, 1))  # both operands are repeated


def _elementwise_samples() -> list[Sample]:
    samples = [
        Sample(op, "grid", (_GRID,))
        for op in ("negative", "absolute", "exp", "tanh", "sigmoid", "sin", "cos", "erf", "floor")
    ]
    samples += [Sample(op, "positive", (_POSITIVE,)) for op in ("log", "sqrt", "rsqrt", "log1p")]
    samples += [Sample(op, "bf16", (_GRID.astype(BF16),)) for op in ("exp", "tanh", "sigmoid", "erf")]
    samples += [
        Sample("exp", "f16", (_GRID[:-1].astype(np.float16),)),
        Sample("exp", "f64", (_GRID.astype(np.float64),)),
        Sample("erf", "f64", (_GRID.astype(np.float64),)),
        Sample("sigmoid", "far", (_array([-200.0, -90.0, 90.0, 200.0]),)),
        Sample("exp", "no axes", (_array(0.5),)),
        Sample("negative", "i32", (integers(5),)),
        Sample("negative", "u8", (_array([0, 1, 255], np.uint8),)),
        Sample("absolute", "i8", (_array([-127, -1, 5], np.int8),)),
        Sample("absolute", "u32", (_array([0, 4000000000], np.uint32),)),
        Sample("logical_not", "bools", _BOOLS[:1]),
        Sample("logical_and", "bools", _BOOLS),
        Sample("logical_or", "bools", _BOOLS),
    ]
    arithmetic = ("add", "subtract", "multiply", "floor_divide", "remainder")
    comparisons = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
    extremes = ("maximum", "minimum")
    for op in (*arithmetic, *extremes, *comparisons):
        samples.append(Sample(op, "broadcast", _PAIR))
        samples.append(Sample(op, "signed", _SIGNED))
        samples.append(Sample(op, "unsigned", tuple(abs(x).astype(np.uint32) for x in _SIGNED)))
        samples.append(Sample(op, "signed floats", _SIGNED_FLOATS))
    samples += [Sample(op, "bools", _BOOLS) for op in (*extremes, *comparisons)]
    samples += [
        Sample(op, "f16", (random(4, dtype=np.float16), _array(0.5, np.float16))) for op in arithmetic
    ]
    samples += [Sample(op, "bf16", (random(4, dtype=BF16), _array([1.5] * 4, BF16))) for op in arithmetic]
    samples += [Sample(op, "i64", (_array([2**40, -5], np.int64), _array(3, np.int64))) for op in arithmetic]
    samples += [
        Sample("divide", "broadcast", _PAIR),
        Sample("divide", "by zero", (_array([1.0, -1.0]), _array(0.0))),
        Sample("floor_divide", "by zero", (_array([1.0, -1.0]), _array(0.0))),
        Sample("power", "positive", (_POSITIVE, _array(0.5))),
        Sample("power", "negative base", (_array([-2.0, 0.0, -1.5]), _array([3.0, 0.0, 2.0]))),
    ]
    return samples + _bit_samples() + _packed_samples() + _choice_samples()


def _bit_samples() -> list[Sample]:
    words = (_array([0, 1, 0x80000001, 0xFFFFFFFF], np.uint32), _array([5, 0xF0F0F0F0, 31, 32], np.uint32))
    signed = (_array([-9, 7, -1, 2**30], np.int32), _array([1, 2, 31, 3], np.int32))
    samples = []
    for op in ("bitwise_and", "bitwise_or", "bitwise_xor", "shift_left", "shift_right"):
        amounts = _array([0, 1, 31, 32], np.uint32) if op.startswith("shift") else words[1]
        samples.append(Sample(op, "u32", (words[0], amounts)))
        samples.append(Sample(op, "broadcast", (words[0][:, None], amounts)))
        samples.append(Sample(op, "i32", signed))
    return samples


def _packed_samples() -> list[Sample]:
    """Weights of which some are too small for the table of their row, and some rows without any such."""
    samples = []
    for kind, dtype in (("f32-packed", F32), ("bf16-packed", BF16)):
        weights = random(6, 128)
        weights[2, ::9] *= 1e-20
        weights[3] = 0
        rows, values, places = PACKINGS[kind].parts("w", 6, 128, ((slice(None), weights.astype(dtype)),))
        samples.append(Sample("unpack", kind, (rows, places, values)))
    return samples


def _choice_samples() -> list[Sample]:
    mask = _array([[True], [False]], bool)
    samples = [
        Sample("where", "broadcast", (mask, random(1, 3), _array(-np.inf))),
        Sample("where", "i32", (mask, integers(2, 3), integers(3))),
        Sample("where", "bools", (mask, _BOOLS[1], _array(False, bool))),
    ]
    floats, ints = _array([-2.75, -0.5, 0.0, 0.1, 2.75, 100.0]), _array([-7, 0, 1, 100], np.int32)
    for dtype in ("f64", "f32", "f16", "bf16", "i64", "i32", "i8", "bool"):
        samples.append(Sample("cast", f"f32 to {dtype}", (floats,), {"dtype": dtype}))
        samples.append(Sample("cast", f"i32 to {dtype}", (ints,), {"dtype": dtype}))
        samples.append(Sample("cast", f"bool to {dtype}", (_BOOLS[1],), {"dtype": dtype}))
    for dtype in ("u32", "u8"):
        samples.append(Sample("cast", f"f32 to {dtype}", (floats[2:],), {"dtype": dtype}))
        samples.append(Sample("cast", f"i32 to {dtype}", (ints,), {"dtype": dtype}))
    samples.append(Sample("cast", "f32 to u16", (floats[2:],), {"dtype": "u16"}))
    samples.append(Sample("bitcast", "bf16 as u16", (floats.astype(BF16),), {"dtype": "u16"}))
    words = _array([[0, 0x3F80, 0xC000]], np.uint16)
    samples.append(Sample("bitcast", "u16 as bf16", (words,), {"dtype": "bf16"}))
    samples.append(Sample("bitcast", "f32 as i32", (floats,), {"dtype": "i32"}))
    samples.append(Sample("cast", "bf16 to f32", (floats.astype(BF16),), {"dtype": "f32"}))
    samples.append(Sample("cast", "rounding", (random(64),), {"dtype": "bf16"}))
    samples.append(Sample("cast", "wrapping", (_array([300, -300], np.int32),), {"dtype": "i8"}))
    return samples


# ---- sources and shapes ----


def _source_and_shape_samples() -> list[Sample]:
    samples = [
        Sample("constant", f"{dtype} {array.shape}", (), {"value": array.astype(dtype)})
        for dtype in (F32, np.float16, BF16, np.float64, np.int32, np.int8, np.uint8, np.uint32, np.int64)
        for array in (np.array(3), np.array([[0.5, 100.0, 7.0]]), np.full((2, 2), 5), np.arange(90) / 7)
    ]
    samples += [
        Sample("constant", "bools", (), {"value": np.arange(70).reshape(2, 35) % 3 == 0}),
        Sample("constant", "true", (), {"value": np.array(True)}),
        Sample("constant", "not finite", (), {"value": _array([np.inf, -np.inf, 1e-30, 1e30])}),
        Sample("constant", "minus infinity", (), {"value": _array(-np.inf)}),
        Sample("constant", "not a number", (), {"value": _array([np.nan, 1.0], np.float64)}),
        Sample("arange", "i32", (), {"size": 5}),
        Sample("arange", "f32", (), {"size": 3, "dtype": "f32"}),
    ]
    x = random(2, 3, 4)
    return [
        *samples,
        Sample("reshape", "merge", (x,), {"shape": (6, 4)}),
        Sample("reshape", "to one", (random(1, 1),), {"shape": ()}),
        Sample("transpose", "three", (x,), {"permutation": (2, 0, 1)}),
        Sample("transpose", "same", (x,), {"permutation": (0, 1, 2)}),
        Sample("broadcast_to", "leading", (random(3, 1),), {"shape": (2, 3, 4)}),
        Sample("broadcast_to", "number", (_array(2, np.int32),), {"shape": (2, 2)}),
        Sample("concatenate", "two", (x, random(2, 1, 4)), {"axis": 1}),
        Sample("concatenate", "one", (x,), {"axis": 0}),
        Sample("concatenate", "three bools", (_BOOLS[1],) * 3, {"axis": 0}),
        Sample("slice", "part", (x,), {"starts": (0, 1, 2), "limits": (2, 3, 3)}),
    ]


# ---- contraction and reductions ----

_CONTRACTIONS = {
    "ab,bc->ac": ((3, 4), (4, 5)),
    "bcd,nd->bcn": ((2, 3, 4), (5, 4)),  # a projection with weights [out, in]
    "bcd,dn->bcn": ((1, 3, 4), (4, 5)),
    "bcd,hkd->bchk": ((2, 3, 4), (2, 3, 4)),  # into heads
    "bchk,dhk->bcd": ((2, 3, 2, 4), (5, 2, 4)),  # out of heads
    "bchgd,bshd->bchgs": ((2, 3, 2, 2, 4), (2, 5, 2, 4)),  # scores over keys
    "bchgs,bshd->bchgd": ((2, 3, 2, 2, 5), (2, 5, 2, 4)),  # values by scores
    "bchs,bshd->bchd": ((2, 1, 3, 5), (2, 5, 3, 4)),
    "hgd,phd->hgp": ((2, 3, 4), (5, 2, 4)),
    "bcd,bcd->bc": ((2, 3, 4), (2, 3, 4)),
    "a,b->ab": ((3,), (4,)),  # outer products
    "bi,bj->bij": ((2, 3), (2, 4)),
    "bij,bjk->kib": ((2, 3, 4), (2, 4, 5)),  # transposed results
    "ab,cb->ca": ((3, 4), (5, 4)),
    "ab,bc->c": ((3, 4), (4, 5)),  # letters that are summed in one operand only
    "ab,cd->ad": ((2, 3), (4, 5)),
    "bad,bed->be": ((2, 3, 4), (2, 5, 4)),
    "ab,ab->": ((3, 4), (3, 4)),
    "ab,b->a": ((3, 4), (4,)),
    "b,bc->c": ((4,), (4, 5)),
    "a,->a": ((3,), ()),
    "ab,ab->ba": ((2, 3), (2, 3)),  # nothing is summed
}


def _linear_samples() -> list[Sample]:
    samples = [
        Sample("contraction", subscripts, (random(*x), random(*y, seed=1)), {"subscripts": subscripts})
        for subscripts, (x, y) in _CONTRACTIONS.items()
    ]
    for dtype in (np.int32, np.float16, BF16, np.float64):
        for subscripts in ("bcd,nd->bcn", "bchgd,bshd->bchgs"):
            x, y = _CONTRACTIONS[subscripts]
            operands = (integers(*x, dtype=dtype), integers(*y, dtype=dtype))
            label = f"{np.dtype(dtype).name} {subscripts}"
            samples.append(Sample("contraction", label, operands, {"subscripts": subscripts}))
    x, ties = random(2, 3, 4), _array([[1, 3, 3, 0], [2, 2, 1, 2], [-1, -1, -1, -1]])
    for op in ("sum", "max", "min"):
        for axes in ((1,), (0, 2), (0, 1, 2), ()):
            samples.append(Sample(op, f"{axes}", (x,), {"axes": axes}))
        for dtype in (np.int32, np.int8, np.uint8, np.int64, np.float16):
            samples.append(
                Sample(op, np.dtype(dtype).name, (integers(3, 4, low=0, dtype=dtype),), {"axes": (0,)})
            )
        samples.append(Sample(op, "bf16", (integers(3, 4, dtype=BF16),), {"axes": (1,)}))
        samples.append(Sample(op, "negative", (-abs(x),), {"axes": (1,)}))
    samples += [
        Sample("argmax", "ties", (ties,), {"axis": 1}),
        Sample("argmax", "first axis", (ties,), {"axis": 0}),
        Sample("argmax", "minus infinity", (np.full((2, 3), -np.inf, F32),), {"axis": 1}),
        Sample("argmax", "i32", (ties.astype(np.int32),), {"axis": 1}),
        Sample("argmax", "bools", (ties > 1,), {"axis": 1}),
        Sample("top_k", "ties", (ties,), {"k": 3}),
        Sample("top_k", "all of one", (random(2, 3, 1),), {"k": 1}),
        Sample("top_k", "all", (x,), {"k": 4}),
        Sample("top_k", "zeros", (_array([0.0, -0.0, -1.0, 0.0, -0.0]),), {"k": 4}),
        Sample("top_k", "minus infinity", (_array([-np.inf, 1.0, -np.inf, -np.inf]),), {"k": 3}),
        Sample("top_k", "bf16", (integers(3, 9, dtype=BF16),), {"k": 5}),
        *_routed_samples(),
        Sample("softmax", "last", (x * 10,), {"axis": 2}),
        Sample("softmax", "first", (x,), {"axis": 0}),
        Sample("softmax", "large", (_array([[1000.0, 999.0, -np.inf]]),), {"axis": 1}),
        Sample("softmax", "bf16", (x.astype(BF16),), {"axis": 1}),
        Sample("cumulative_sum", "middle", (random(2, 7, 3),), {"axis": 1}),
        Sample("cumulative_sum", "i32", (integers(2, 9),), {"axis": 1}),
        Sample("cumulative_sum", "u8", (integers(5, low=0, dtype=np.uint8),), {"axis": 0}),
        Sample("cumulative_sum", "one", (random(1, 3),), {"axis": 0}),
    ]
    return samples + _row_samples()


def _order_samples() -> list[Sample]:
    ties = _array([[1, 3, 3, 0], [2, -np.inf, 1, 2], [-1, -1, -1, np.inf]])
    index, outside = integers(2, 3, 5, low=0, high=4), _array([[0, 7, -1], [3, 3, 3]], np.int32)
    samples = [
        Sample("add_at", "counts", (np.zeros((2, 3, 4), np.int32), index, np.ones_like(index))),
        Sample("add_at", "outside", (random(2, 4), outside, random(2, 3))),
        Sample("add_at", "one row", (random(4), outside[1], random(3))),
        Sample("max_at", "i32", (integers(2, 3, 4), index, integers(2, 3, 5))),
        Sample("max_at", "outside", (random(2, 4), outside, random(2, 3))),
    ]
    wide, shares = random(3, 2, 50, seed=4) * 9, abs(random(3, 2, 50, seed=5))
    samples += [
        Sample("cut", "rank", (ties, np.ones_like(ties, np.int32), _array([2, 0, 3], np.int32))),
        Sample("cut", "everything", (ties, np.ones_like(ties), np.full(3, 9, F32))),
        Sample("cut", "mass", (wide, shares, shares.sum(-1) * 0.3)),
        Sample("cut", "one row", (-abs(wide[0, 0]), shares[0, 0], _array(7.3))),
    ]
    for op in ("sort", "argsort"):
        samples += [
            Sample(op, "ties", (ties,), {"axis": 1}),
            Sample(op, "first axis", (ties,), {"axis": 0}),
            Sample(op, "middle", (random(2, 7, 3),), {"axis": 1}),
            Sample(op, "i32", (integers(2, 9),), {"axis": 1}),
            Sample(op, "u32", (_array([2**31, 1, 5], np.uint32),), {"axis": 0}),
        ]
    return samples


def _routed_samples() -> list[Sample]:
    """Few rows and many, of tokens and of choices, of matrices stored both ways; some are sent nowhere."""
    samples = []
    for rows, k, matrices in ((1, 1, 1), (2, 3, 5), (5, 2, 2), (40, 2, 3)):
        index = integers(rows, k, low=-1, high=matrices + 1)
        x = {"tokens": random(rows, 6), "choices": random(rows, k, 6)}
        for axes, stack in (("nd", (matrices, 4, 6)), ("dn", (matrices, 6, 4))):
            for label, each in x.items():
                operands = (each, random(*stack, seed=1), index)
                label = f"{label} {axes} {rows} {matrices}"
                samples.append(Sample("routed_contraction", label, operands, {"axes": axes}))
    x, stack, index = random(2, 5, 6), random(3, 4, 6), integers(2, 5, 2, low=0, high=3)
    kept = stack.astype(BF16)
    empty = np.full((30, 2), 9, np.int32)
    return [
        *samples,
        Sample("routed_contraction", "two axes", (x, stack, index), {"axes": "nd"}),
        Sample("routed_contraction", "bf16 stack", (x, kept, index), {"axes": "nd"}),
        Sample("routed_contraction", "bf16 few", (x[0, :1], kept, index[0, :1]), {"axes": "nd"}),
        Sample("routed_contraction", "bf16", (x.astype(BF16), kept, index), {"axes": "nd"}),
        Sample("routed_contraction", "i8", (x, stack, index.astype(np.int8)), {"axes": "nd"}),
        Sample("routed_contraction", "nowhere", (random(30, 6), stack, empty), {"axes": "nd"}),
        Sample("routed_contraction", "one each", (random(4, 6), stack, empty[:4, 0] % 2), {"axes": "nd"}),
    ]


def _row_samples() -> list[Sample]:
    table, index = random(5, 3), _array([[0, 4], [-1, 9]], np.int32)
    state, rows = random(2, 6, 3, 2), _array([[0, 5, -3], [9, 6, 2]], np.int32)
    samples = [
        Sample("take", "first axis", (table, index), {"axis": 0}),
        Sample("take", "last axis", (table, index), {"axis": 1}),
        Sample("take", "one", (table, _array(2, np.int32)), {"axis": 0}),
        Sample("take", "wide table", (random(300, 2), _array([-100, 3, 127], np.int8)), {"axis": 0}),
        Sample("take", "u8", (random(200, 2), _array([150, 255], np.uint8)), {"axis": 0}),
        Sample("take", "i64", (table, _array([2**40, -(2**40)], np.int64)), {"axis": 0}),
        Sample("take", "u32", (table, _array([4000000000, 1], np.uint32)), {"axis": 0}),
        Sample("take", "bools", (_array([True, False], bool), _array([1, 0, 1], np.int32)), {"axis": 0}),
        Sample("read_rows", "outside", (state, rows)),
        Sample("read_rows", "flat", (random(2, 6), rows)),
        Sample("read_rows", "bools", (random(2, 6) > 0, rows)),
        Sample("write_rows", "outside", (state, random(2, 3, 3, 2), rows)),
        Sample("write_rows", "one", (state, random(2, 1, 3, 2), rows[:, 2:])),
        Sample("write_rows", "inside", (random(2, 3, 6, 2), random(2, 3, 3, 2), rows), {"axis": 2}),
        Sample("write_rows", "last", (random(2, 3, 6), random(2, 3, 3), rows), {"axis": 2}),
        Sample("write_rows", "flat", (integers(2, 6), integers(2, 3), rows)),
        Sample("write_rows", "i8", (random(2, 300), random(2, 2), rows[:, 1:].astype(np.int8))),
        Sample("write_rows", "u8", (random(1, 300), random(1, 2), _array([[200, 255]], np.uint8))),
        Sample("read_rows", "i8", (random(2, 300), rows.astype(np.int8))),
        Sample("write_rows", "f16", (state.astype(np.float16), random(2, 3, 3, 2, dtype=np.float16), rows)),
        Sample("write_rows", "bf16", (state.astype(BF16), random(2, 3, 3, 2, dtype=BF16), rows)),
        Sample("write_rows", "bools", (random(2, 6) > 0, random(2, 3) > 0, rows)),
    ]
    return samples


# ---- loops ----


def _loop_samples() -> list[Sample]:
    start, count = random(2, 3), _array(5, np.int32)
    operands = (start, count, random(2, 4, 3), integers(2, 4), random(3, 3))
    slots = _array([[0, 5, 5, 0], [2, -1, 6, 0]], np.int32)
    return [
        Sample("loop", "recurrence", operands, _loop_params(recurrence_body(), 2, 2, 4)),
        Sample(
            "loop",
            "one position",
            (*operands[:2], operands[2][:, :1], operands[3][:, :1], operands[4]),
            _loop_params(recurrence_body(), 2, 2, 1),
        ),
        Sample(
            "loop",
            "writing",
            (random(2, 6, 3), random(2, 4, 3), slots),
            _loop_params(writing_body(), 1, 2, 4),
        ),
        Sample(
            "loop",
            "early",
            (_array(True, bool), np.full((2, 3), -0.6, F32), operands[2]),  # it ends after the second
            _loop_params(ending_body(), 2, 1, 4) | {"early": True},
        ),
        *(
            Sample("linear_scan", str(n), (random(2, n, 3), random(2, n, 3), random(2, 3)))
            for n in (1, 2, 3, 4, 7, 8)
        ),
        Sample("linear_scan", "scalars", (random(1, 5), random(1, 5), random(1))),
        *(
            Sample(
                "linear_scan",
                f"maximum {n}",
                (random(2, n, 3), random(2, n, 3), random(2, 3)),
                {"join": "maximum"},
            )
            for n in (1, 2, 5, 8)
        ),
    ]


def _loop_params(body: Graph, carries: int, scanned: int, length: int) -> dict[str, Any]:
    return {"body": body, "carries": carries, "scanned": scanned, "length": length}


SAMPLES: tuple[Sample, ...] = (
    *_elementwise_samples(),
    *_source_and_shape_samples(),
    *_linear_samples(),
    *_order_samples(),
    *_loop_samples(),
)

TIME_OPS = frozenset(name for name, op in OPS.items() if op.kind == "time")
# Without values of their own: the samples' operands are inputs, and every loop sample has parts.
SAMPLED_THROUGH_OTHERS = frozenset({"input", "parameter", "part"})

ERRORS: tuple[ErrorSample, ...] = (
    ErrorSample("add", ("f32[2]", "f32[3]"), {}, r"add: shapes \[2\] and \[3\] do not fit together"),
    ErrorSample("add", ("f32[2]", "i32[2]"), {}, "element types differ"),
    ErrorSample("add", ("bool[2]", "bool[2]"), {}, "not bool"),
    ErrorSample("negative", ("bool[]",), {}, "negative: takes"),
    ErrorSample("add", ("f32[past]", "f32[past3]"), {}, "different parts of time"),
    ErrorSample("exp", ("i32[2]",), {}, r"exp: takes f64 or f32 or f16 or bf16, not i32\[2\]"),
    ErrorSample("divide", ("i32[]", "i32[]"), {}, "divide: takes f64"),
    ErrorSample("logical_not", ("i32[]",), {}, "takes bool"),
    ErrorSample("where", ("i32[]", "f32[]", "f32[]"), {}, "a bool condition"),
    ErrorSample("where", ("bool[]", "f32[]", "i32[]"), {}, "element types differ"),
    ErrorSample("cast", ("f32[]",), {"dtype": "f8"}, "'f8' is unknown"),
    ErrorSample("reshape", ("f32[2,3]",), {"shape": (5,)}, "cannot be reshaped"),
    ErrorSample("transpose", ("f32[2,3]",), {"permutation": (0, 0)}, "not an order"),
    ErrorSample("broadcast_to", ("f32[2,3]",), {"shape": (3,)}, "cannot be broadcast"),
    ErrorSample("concatenate", ("f32[2,3]", "f32[2,4]"), {"axis": 0}, "cannot be joined"),
    ErrorSample("concatenate", ("f32[2]",), {"axis": 1}, "has no axis 1"),
    ErrorSample("slice", ("f32[2]",), {"starts": (0,), "limits": (3,)}, "not a part of"),
    ErrorSample("slice", ("f32[2]",), {"starts": (), "limits": ()}, "one start and one limit"),
    ErrorSample("contraction", ("f32[2]", "f32[2]"), {"subscripts": "a,a"}, "not of the form"),
    ErrorSample("contraction", ("f32[2]", "f32[3]"), {"subscripts": "a,a->a"}, "is both 2 and 3"),
    ErrorSample("contraction", ("f32[2]", "f32[3]"), {"subscripts": "a,b->c"}, "letters of the operands"),
    ErrorSample("contraction", ("f32[2,2]", "f32[2]"), {"subscripts": "aa,a->a"}, "each once"),
    ErrorSample("contraction", ("f32[2]", "i32[2]"), {"subscripts": "a,a->"}, "cannot be multiplied"),
    ErrorSample("sum", ("f32[2]",), {"axes": (1,)}, "are not axes"),
    ErrorSample("max", ("bool[2]",), {"axes": (0,)}, "cast it first"),
    ErrorSample("argmax", ("f32[past]",), {"axis": 0}, "a part of time"),
    ErrorSample("top_k", ("f32[2,3]",), {"k": 4}, r"4 elements cannot be chosen along the last axis"),
    ErrorSample("top_k", ("f32[past]",), {"k": 1}, "cannot be chosen"),
    ErrorSample("top_k", ("i32[3]",), {"k": 1}, "takes floats"),
    ErrorSample("routed_contraction", ("f32[3]", "f32[4,3]", "i32[2]"), {"axes": "nd"}, "no stack"),
    ErrorSample("routed_contraction", ("f32[3]", "f32[2,4,3]", "f32[2]"), {"axes": "nd"}, "does not choose"),
    ErrorSample("routed_contraction", ("f32[3]", "f32[2,4,3]", "i32[2]"), {"axes": "dn"}, "does not fit"),
    ErrorSample("softmax", ("i32[2]",), {"axis": 0}, "takes floats"),
    ErrorSample("cumulative_sum", ("f32[past]",), {"axis": 0}, "cannot be taken along axis 0"),
    ErrorSample("bitwise_xor", ("f32[2]", "f32[2]"), {}, "takes i64"),
    ErrorSample("sort", ("f32[past]",), {"axis": 0}, "cannot be put in order"),
    ErrorSample("argsort", ("f32[2]",), {"axis": 1}, "has no axis 1"),
    ErrorSample("cut", ("f64[2]", "f32[2]", "f32[]"), {}, "takes f32"),
    ErrorSample("cut", ("f32[2]", "f32[2]", "i32[]"), {}, "not the weights and a limit"),
    ErrorSample("add_at", ("f32[2]", "f32[3]", "f32[3]"), {}, "are not indices"),
    ErrorSample("add_at", ("f32[2]", "i32[3]", "f32[4]"), {}, "are not the values at"),
    ErrorSample("take", ("f32[2]", "f32[]"), {"axis": 0}, "indices must be integers"),
    ErrorSample("take", ("f32[past]", "i32[]"), {"axis": 0}, "a part of time"),
    ErrorSample("linear_scan", ("f32[2,3]", "f32[2,3]", "f32[3]"), {}, "cannot start with"),
    ErrorSample("linear_scan", ("f32[2,3]", "f32[2,4]", "f32[2]"), {}, "factors and terms"),
    ErrorSample("linear_scan", ("f32[2,3]", "f32[2,3]", "f32[2]"), {"join": "minimum"}, "joins its terms"),
    ErrorSample("read_rows", ("f32[2,3]", "i32[1,3]"), {}, "does not index the rows"),
    ErrorSample("write_rows", ("f32[2,3]", "f32[2,2]", "i32[2,1]"), {}, "are not the values"),
    ErrorSample("write_rows", ("f32[2,3]", "f32[2,1]", "i32[2,1]"), {"axis": 2}, "no axis 2"),
    ErrorSample("part", ("f32[2]",), {"index": 0}, "no part 0"),
    ErrorSample("loop", ("f32[2,3]", "f32[2,3]"), _loop_params(writing_body(), 1, 1, 3), "cannot loop over"),
    ErrorSample(
        "loop", ("f32[2,3]",), _loop_params(writing_body(), 1, 0, 3) | {"early": True}, "carries bool"
    ),
    ErrorSample("delay", ("f32[2]", "f32[2]"), {"steps": 0}, "only the past can be read"),
    ErrorSample("delay", ("f32[2]", "f32[3]"), {"steps": 1}, "cannot start with"),
    ErrorSample("history", ("f32[past]",), {}, "itself a part of time"),
    ErrorSample("history", ("f32[]",), {"window": 0}, "holds nothing"),
    ErrorSample("whole", ("f32[past]",), {}, "itself a part of time"),
)
