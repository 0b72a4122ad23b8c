"""Programs of nothing but products: what forms are measured and tested with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...compiler.program import Program
from ...ir.graph import Graph, Node, make_node
from ...ir.ops import OPS
from ...ir.ops.packing import BLOCK, PLACES, ROWS, TABLE, VALUES, block_bytes, pack_rows, packed_types
from ...ir.types import DTYPES, TensorType, dtype_name
from .table import Setting

Array = np.ndarray

GROUP = 32  # int4 weights that share a scale
SCALES = ".scales"  # what the name of a parameter ends with that is no matrix


def sample_program(setting: Setting, matrices: int = 1, steps: int = 1) -> Program:
    """``matrices`` products in a row, a bounded function behind each, and all that ``steps`` times.

    With several of either, matrices must be square. Weights are kept as ``models.quantised`` has them.
    """
    kept = [named for number in range(matrices) for named in _kept(setting, f"w{number}")]
    x = _source("input", "x", TensorType((setting.rows, setting.width), "f32"))
    parameters = [_source("parameter", name, type_) for name, type_ in kept]
    if steps == 1:
        y = _products(setting, x, parameters)
    else:
        first, *inside = [_source("input", node.name, node.tensor) for node in (x, *parameters)]
        outputs = {"y": _products(setting, first, inside)}
        body = Graph("step", (first, *inside), (), outputs).with_unique_names()
        loop = _make("loop", x, *parameters, body=body, carries=1, scanned=0, length=steps)
        y = _make("part", loop, index=0)
    graph = Graph("products", (x,), tuple(parameters), {"y": y}).with_unique_names()
    return Program("products", graph, (), setting.rows, 1, 1)


def sample_arrays(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values for the parameters and the input of a sample by name, such that sums are around 1."""
    random = np.random.default_rng(seed)
    (x,) = program.graph.inputs
    unit = x.tensor.static_shape[-1] ** -0.5  # of weights

    def draw(node: Node) -> np.ndarray:
        shape, dtype = node.tensor.static_shape, DTYPES[node.tensor.dtype]
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        if node.name.endswith(SCALES):
            largest = 128 if shape[1] == 1 else 8  # of int8, of int4
            return (unit / largest * random.uniform(1, 2, shape)).astype(dtype)
        return (unit * random.standard_normal(shape, np.float32)).astype(dtype)

    arrays = {node.name: draw(node) for node in (*program.graph.parameters, x)}
    for name in [name for name in arrays if name.endswith(ROWS)]:
        matrix, rows = name.removesuffix(ROWS), arrays[name]
        _draw_packed(random, rows, arrays[matrix + VALUES], arrays[matrix + PLACES])
    return arrays


def _draw_packed(random: np.random.Generator, rows: Array, values: Array, places: Array) -> None:
    """Packed floats that were drawn."""
    dtype = values.dtype
    width = (rows.shape[1] - TABLE) // block_bytes(dtype_name(dtype)) * BLOCK
    drawn = (width**-0.5 * random.standard_normal((len(rows), width), np.float32)).astype(dtype)
    outside = pack_rows(drawn, rows)
    places[:] = drawn.size
    places[: len(outside)] = outside
    values[: len(outside)] = drawn.reshape(-1)[outside]


def _kept(setting: Setting, name: str) -> Iterator[tuple[str, TensorType]]:
    """The parameters that a matrix is kept as."""
    columns, width = setting.columns, setting.width
    floats, _, packed = setting.weights.partition("-")
    if packed:
        types = packed_types(columns, width, floats)
        assert types is not None
        yield from zip((name + suffix for suffix in (ROWS, VALUES, PLACES)), types, strict=True)
        return
    if floats in ("f32", "bf16"):
        yield name, TensorType((width, columns) if setting.turned else (columns, width), setting.weights)
        return
    groups = width // GROUP if setting.weights == "int4" else 1
    per_group = width // groups
    is_packed = setting.weights == "int4"
    yield name, TensorType((columns, groups, per_group // (1 + is_packed)), "u8" if is_packed else "i8")
    yield name + SCALES, TensorType((columns, groups), "bf16" if groups > 1 else "f32")


def _products(setting: Setting, x: Node, kept: Sequence[Node]) -> Node:
    each = len(list(_kept(setting, "")))
    for at in range(0, len(kept), each):
        matrix = _widened(setting, *kept[at : at + each])
        subscripts = "md,dn->mn" if setting.turned else "md,nd->mn"
        x = _make("tanh", _make("contraction", x, matrix, subscripts=subscripts))
    return x


def _widened(setting: Setting, values: Node, *rest: Node) -> Node:
    """The matrix as f32, from what it is kept as."""
    if rest and not setting.weights.startswith("int"):
        outside, places = rest
        floats = _make("unpack", values, places, outside)
        return floats if floats.tensor.dtype == "f32" else _make("cast", floats, dtype="f32")
    if not rest:
        return values if setting.weights == "f32" else _make("cast", values, dtype="f32")
    if setting.weights == "int4":
        lower = _make("bitwise_and", values, _number(np.uint8(15)))
        upper = _make("shift_right", values, _number(np.uint8(4)))
        halves = [_make("cast", half, dtype="f32") for half in (lower, upper)]
        wide = _make("subtract", _make("concatenate", *halves, axis=2), _number(np.float32(8)))
    else:
        wide = _make("cast", values, dtype="f32")
    (scales,) = rest
    if scales.tensor.dtype != "f32":
        scales = _make("cast", scales, dtype="f32")
    spread = _make("reshape", scales, shape=(*scales.tensor.shape, 1))
    return _make("reshape", _make("multiply", wide, spread), shape=(setting.columns, setting.width))


def _source(op: str, name: str, type_: TensorType) -> Node:
    return make_node(OPS[op], (), {"type": type_}, name=name)


def _number(value: np.generic) -> Node:
    return _make("constant", value=np.asarray(value))


def _make(op: str, *sources: Node, **params: object) -> Node:
    return make_node(OPS[op], sources, params)
