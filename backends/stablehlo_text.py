"""StableHLO text, line by line: types, constants, locations, and the lines of one region.

A ``Block`` collects lines. A lowering asks it for operations and gets ``Value`` objects back; a node's
result carries the node's own name (``%layers.0.attn.q``), what is computed on the way carries the name
with a number (``%layers.0.attn.q$1``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..ir.graph import Node
from ..ir.ops.elementwise import broadcast_shapes
from ..ir.types import DTYPES, FLOATS, TensorType

if TYPE_CHECKING:
    from .contractions.table import FormTable
    from .native import Kernels
    from .tpu_selection import TpuKernels

ELEMENT_TYPES = {
    **{name: name for name in DTYPES},
    "u32": "ui32",
    "u16": "ui16",
    "u8": "ui8",
    "bool": "i1",
}
_LISTED_ELEMENTS = 16  # constants beyond this are written as bytes, not as numbers


@dataclass(frozen=True, slots=True)
class Value:
    """The result of an operation: its SSA name and type. Prints as the name."""

    name: str
    type: TensorType

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class PerLayer(Value):
    """What each layer has its own of, inside a loop over layers: of ``members``, number ``index`` is meant.

    Only kernels can read it; its name is that of no value.
    """

    index: Value
    members: tuple[Value, ...]

    @staticmethod
    def of(index: Value, members: Sequence[Value]) -> PerLayer:
        return PerLayer("%of_each_layer", members[0].type, index, tuple(members))


Results = Value | tuple[Value, ...]
Lowering = Callable[..., Results]  # (block, node, *operand values)


def mlir_type(type_: TensorType) -> str:
    """``tensor<2x3xf32>``."""
    dims = "".join(f"{dim}x" for dim in type_.static_shape)
    return f"tensor<{dims}{ELEMENT_TYPES[type_.dtype]}>"


def mlir_types(values: Iterable[Value]) -> str:
    return ", ".join(mlir_type(value.type) for value in values)


def quoted(text: str) -> str:
    """An MLIR string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'


def location_text(node: Node) -> str:
    """``loc("layers.0.attn.q"("llama.py":12:0))``: the node's name and the user's source line."""
    name = quoted(node.name or node.op.name)
    if node.location is None:
        return f"loc({name})"
    return f"loc({name}({quoted(node.location.file)}:{node.location.line}:0))"


def number_text(value: np.generic) -> str:
    """A number as MLIR reads it back exactly."""
    if value.dtype == np.bool_:
        return "true" if value else "false"
    if value.dtype.kind in "iu":
        return str(int(value))
    if not np.isfinite(value):
        return "0x" + value.tobytes()[::-1].hex().upper()
    mantissa, exponent, power = repr(float(value)).partition("e")
    return (mantissa if "." in mantissa else mantissa + ".0") + exponent + power


def dense_text(array: np.ndarray) -> str:
    """``dense<…>``: one number for all elements, a list, or the bytes of a large array."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if not flat.size:
        return "dense<>"
    if flat.size == 1 or flat.tobytes() == flat[:1].tobytes() * flat.size:
        return f"dense<{number_text(flat[0])}>"
    if flat.size > _LISTED_ELEMENTS and array.dtype != np.bool_:
        return f'dense<"0x{flat.tobytes().hex().upper()}">'
    elements = [number_text(element) for element in flat]
    for size in reversed(array.shape):
        elements = [f"[{', '.join(elements[i : i + size])}]" for i in range(0, len(elements), size)]
    return f"dense<{elements[0]}>"


def lowest(dtype: str) -> float | np.generic:
    """The value that no element of the type is below: where a maximum starts."""
    return DTYPES[dtype].type(-np.inf) if dtype in FLOATS else np.iinfo(DTYPES[dtype]).min


def highest(dtype: str) -> float | np.generic:
    """The value that no element of the type is above: where a minimum starts."""
    return DTYPES[dtype].type(np.inf) if dtype in FLOATS else np.iinfo(DTYPES[dtype]).max


@dataclass
class Names:
    """The SSA names in use in one function."""

    taken: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """The name, or the name with a number where it is in use already."""
        chosen = name
        while chosen in self.taken:
            self.counts[name] = self.counts.get(name, 0) + 1
            chosen = f"{name}.{self.counts[name]}"
        self.taken.add(chosen)
        return chosen

    def numbered(self, name: str) -> str:
        """``name$1``, ``name$2`` …: no node's name contains a dollar."""
        key = f"{name}$"
        self.counts[key] = self.counts.get(key, 0) + 1
        return f"{key}{self.counts[key]}"


@dataclass
class Block:
    """The lines of one region: what they may refer to, and where the next one comes from.

    ``arguments`` are the region's values by name; ``names`` are shared by all regions of one function.
    """

    indent: str
    arguments: Mapping[str, Value]
    names: Names
    kernels: Kernels | TpuKernels | None = None  # compute some nodes, where there are any
    roll: str = "never"  # whether layers that repeat become a loop
    forms: FormTable | None = None  # of products
    near: frozenset[str] = frozenset()  # names of arguments that stay in the caches from one use to the next
    lines: list[str] = field(default_factory=list)
    _pending: list[tuple[str, str]] = field(default_factory=list)  # names and operations of this node
    _base: str = "%v"
    _location: str = ""

    def begin(self, node: Node) -> None:
        """The following lines compute ``node``."""
        self._base = identifier(node.name or node.op.name)
        self._location = location_text(node)

    def finish(self, result: Results) -> Results:
        """Writes the node's lines; the last one takes the node's own name if it is the result."""
        if isinstance(result, Value) and self._pending and self._pending[-1][0] == result.name:
            result = Value(self.names.unique(self._base), result.type)
            self._pending[-1] = (result.name, self._pending[-1][1])
        for name, operation in self._pending:
            self.lines.append(f"{self.indent}{name} = {operation} {self._location}")
        self._pending.clear()
        return result

    def fresh(self) -> str:
        """A new name under the name of the current node."""
        return self.names.numbered(self._base)

    def nested(self) -> Block:
        """An empty region inside this one."""
        return Block(self.indent + "    ", {}, self.names, self.kernels, self.roll, self.forms)

    def leave(self, operation: str, values: Sequence[Value]) -> None:
        """The last line: what the region or function yields."""
        names = ", ".join(value.name for value in values)
        self.lines.append(f"{self.indent}{operation} {names} : {mlir_types(values)}")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def emit(self, operation: str, type_: TensorType) -> Value:
        """One operation, written out with its types."""
        value = Value(self.fresh(), type_)
        self._pending.append((value.name, operation))
        return value

    def emit_many(self, operation: str, types: Sequence[TensorType]) -> tuple[Value, ...]:
        """One operation with several results."""
        name = self.fresh()
        self._pending.append((f"{name}:{len(types)}", operation))
        return tuple(Value(f"{name}#{i}", type_) for i, type_ in enumerate(types))

    def call(self, operation: str, operands: Sequence[Value], type_: TensorType) -> Value:
        """An operation followed by its signature: ``operation : (operand types) -> type``."""
        return self.emit(f"{operation} : ({mlir_types(operands)}) -> {mlir_type(type_)}", type_)

    def same(self, name: str, *operands: Value) -> Value:
        """An operation whose operands and result have one type."""
        names = ", ".join(operand.name for operand in operands)
        return self.emit(f"stablehlo.{name} {names} : {mlir_type(operands[0].type)}", operands[0].type)

    def beside(self, x: Value, other: Value) -> Value:
        """``x`` as if it depended on ``other``.

        XLA's CPU backend reads parts of a bf16 array by converting all of it, and does that before a loop,
        for each call, unless the array seems to differ from step to step: then it is fused into the reading.
        """
        types = (x.type, other.type)
        return self.emit_many(
            f"stablehlo.optimization_barrier {x}, {other} : {mlir_types((x, other))}", types
        )[0]

    def constant(self, array: np.ndarray | np.generic, type_: TensorType) -> Value:
        """The array, or one number for every element of ``type_``."""
        dense = dense_text(np.asarray(array, DTYPES[type_.dtype]))
        return self.emit(f"stablehlo.constant {dense} : {mlir_type(type_)}", type_)

    def number(self, value: float | np.generic, like: TensorType) -> Value:
        """A constant of a type in which every element is ``value``."""
        return self.constant(np.asarray(value, DTYPES[like.dtype]), like)

    def compare(self, direction: str, x: Value, y: Value) -> Value:
        """``EQ NE LT LE GT GE`` of two values of one type."""
        kind = "FLOAT" if x.type.dtype in FLOATS else "UNSIGNED"
        if x.type.dtype.startswith("i"):
            kind = "SIGNED"
        operation = f"stablehlo.compare {direction}, {x}, {y}, {kind}"
        return self.call(operation, (x, y), x.type.with_dtype("bool"))

    def select(self, condition: Value, x: Value, y: Value) -> Value:
        """``x`` where the condition holds, else ``y``; all of one shape."""
        types = f"{mlir_type(condition.type)}, {mlir_type(x.type)}"
        return self.emit(f"stablehlo.select {condition}, {x}, {y} : {types}", x.type)

    def convert(self, x: Value, dtype: str) -> Value:
        return (
            x
            if x.type.dtype == dtype
            else self.call(f"stablehlo.convert {x}", (x,), x.type.with_dtype(dtype))
        )

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        if tuple(shape) == x.type.shape:
            return x
        if isinstance(x, PerLayer):
            return PerLayer.of(x.index, [self.reshape(member, shape) for member in x.members])
        return self.call(f"stablehlo.reshape {x}", (x,), x.type.with_shape(tuple(shape)))

    def transpose(self, x: Value, permutation: Sequence[int]) -> Value:
        if list(permutation) == sorted(permutation):
            return x
        type_ = x.type.with_shape(tuple(x.type.shape[axis] for axis in permutation))
        return self.call(f"stablehlo.transpose {x}, dims = {list(permutation)}", (x,), type_)

    def spread(self, x: Value, axes: Sequence[int], shape: Sequence[int]) -> Value:
        """``x`` repeated to ``shape``; its axis i becomes axis ``axes[i]``."""
        if tuple(shape) == x.type.shape:
            return x
        operation = f"stablehlo.broadcast_in_dim {x}, dims = {list(axes)}"
        return self.call(operation, (x,), x.type.with_shape(tuple(shape)))

    def broadcast(self, x: Value, shape: Sequence[int]) -> Value:
        """``x`` repeated to ``shape``, aligned from the right as in NumPy."""
        return self.spread(x, range(len(shape) - x.type.rank, len(shape)), shape)

    def fitted(self, *values: Value) -> list[Value]:
        """The values, broadcast to their common shape."""
        shape = broadcast_shapes(*(value.type.shape for value in values))
        return [self.broadcast(value, shape) for value in values]  # type: ignore[arg-type]

    def reduce(self, x: Value, axes: Sequence[int], operation: str, initial: float | np.generic) -> Value:
        """``x`` combined by ``add``, ``maximum`` or ``minimum`` along ``axes``, which disappear."""
        if not axes:
            return x
        type_ = x.type.with_shape(tuple(dim for i, dim in enumerate(x.type.shape) if i not in axes))
        start = self.number(initial, TensorType((), x.type.dtype))
        text = f"stablehlo.reduce({x} init: {start}) applies stablehlo.{operation}"
        return self.call(f"{text} across dimensions = {sorted(axes)}", (x, start), type_)


def identifier(name: str) -> str:
    """An SSA name that looks like ``name``."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return f"%{cleaned}" if cleaned[:1].isalpha() else f"%_{cleaned}"
