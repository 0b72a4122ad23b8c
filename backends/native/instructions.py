"""Instructions of ``fuse.h``: small operations on f32 values, with their loops and places in memory.

A value is where its elements lie: a buffer, and an array of their places in it, which NumPy slices, turns and
repeats without moving any of them. So nothing is computed for a slice, a reshape or a broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Node
from ..contractions.products import scalar
from ..stablehlo_text import number_text

AXES, OPERANDS = 4, 4  # of an instruction: its loops, and what it writes and reads
SCRATCH, NUMBERS, FIRST = 0, 1, 2  # buffers: what instructions make, scalars, then operands and results
# The operations of ``fuse.h`` in its order; those that are no ops of programs have a name in brackets.
_CODES = (
    *("(copy)", "(widen)", "(bool)", "negative", "absolute", "exp", "log1p", "sqrt", "rsqrt", "tanh"),
    *("sigmoid", "erf", "add", "subtract", "multiply", "divide", "maximum", "minimum", "where", "sum"),
    *("max", "min"),
)
CODES = {name: code for code, name in enumerate(_CODES)}
REDUCTIONS = {"sum": (0.0, "add"), "max": (-np.inf, "maximum"), "min": (np.inf, "minimum")}
OPERATIONS = {name for name in CODES if not name.startswith("(")} | {"cast", "concatenate"}


@dataclass(frozen=True)
class Places:
    """Where the elements of a value lie: ``at`` is i64[shape], in elements of the buffer."""

    buffer: int
    at: np.ndarray

    @property
    def strides(self) -> tuple[int, ...]:
        """Along each axis, zero where it has one element."""
        each = zip(self.at.strides, self.at.shape, strict=True)
        return tuple(stride // self.at.itemsize if size > 1 else 0 for stride, size in each)

    @property
    def order(self) -> list[int]:
        """The axes, those first along which elements are farthest apart."""
        return sorted(range(self.at.ndim), key=lambda axis: -self.strides[axis])

    @property
    def repeats(self) -> bool:
        """Whether an element stands for several."""
        return any(stride == 0 < size - 1 for stride, size in zip(self.strides, self.at.shape, strict=True))


class Code:
    """The instructions of a fusion, while they are written."""

    def __init__(self, operands: Sequence[Node], outputs: Sequence[Node]) -> None:
        self._instructions: list[int] = []
        self._numbers: list[float] = [0.0]
        self._scratch = 0
        self._places = {node: _all(FIRST + i, node) for i, node in enumerate(operands)}
        behind = FIRST + len(operands)
        self._results = {node: _all(behind + i, node) for i, node in enumerate(outputs)}
        for node in operands:
            if node.tensor.dtype != "f32":
                self._widen(node)

    @property
    def attributes(self) -> str:
        """What the kernel is given beside operands, in the form of StableHLO."""
        numbers = ", ".join(number_text(np.float32(number)) for number in self._numbers)
        code = ", ".join(map(str, self._instructions))
        return f"code = array<i64: {code}>, numbers = array<f32: {numbers}>, scratch = {self._scratch} : i64"

    def compute(self, node: Node) -> None:
        """Instructions for a node, whose sources are operands, views, or computed already."""
        sources = [self._place(source) for source in node.sources]
        name, shape = node.op.name, node.tensor.static_shape
        if name == "cast":  # operands are floats already
            self._places[node] = sources[0]
            return
        to = self._places[node] = self._results.get(node) or self._room(shape, sources)
        if name == "concatenate":
            axis, start = node.params["axis"], 0
            for source in sources:
                part = [slice(None)] * len(shape)
                part[axis] = slice(start, start := start + source.at.shape[axis])
                self._move(source, Places(to.buffer, to.at[tuple(part)]))
        elif name in REDUCTIONS:
            self._reduce(name, node.params["axes"], sources[0], to)
        else:
            self._write(
                name, to.order, to, *(Places(x.buffer, np.broadcast_to(x.at, shape)) for x in sources)
            )

    def finish(self) -> None:
        """Copies results that are views of others."""
        for node, to in self._results.items():
            if node not in self._places or self._places[node] is not to:
                self._move(self._place(node), to)

    def _place(self, node: Node) -> Places:
        way: list[Node] = []  # of views, down to what has a place
        while node not in self._places:
            number = scalar(node)
            if number is not None:
                self._places[node] = self._number(number, node.tensor.static_shape)
                break
            way.append(node)
            (node,) = node.sources
        place = self._places[node]
        for view in reversed(way):
            place = self._places[view] = self._view(view, place)
        return place

    def _number(self, number: float, shape: tuple[int, ...]) -> Places:
        self._numbers.append(number)
        return Places(NUMBERS, np.broadcast_to(np.int64(len(self._numbers) - 1), shape))

    def _view(self, node: Node, source: Places) -> Places:
        at, shape, params = source.at, node.tensor.static_shape, node.params
        if node.op.name == "slice":
            at = at[tuple(map(slice, params["starts"], params["limits"]))]
        elif node.op.name == "transpose":
            at = at.transpose(params["permutation"])
        elif node.op.name == "broadcast_to":
            at = np.broadcast_to(at, shape)
        else:
            at = at.reshape(shape)
            if not np.may_share_memory(at, source.at):  # elements that lie apart become one axis
                moved = self._room(source.at.shape)
                self._move(source, moved)
                at, source = moved.at.reshape(shape), moved
        return Places(source.buffer, at)

    def _room(self, shape: tuple[int, ...], like: Sequence[Places] = ()) -> Places:
        """Scratch memory; its axes are in the order of the first value of that shape: loops follow both."""
        order = list(range(len(shape)))
        full = (x for x in like if x.at.shape == shape and not x.repeats)
        if (same := next(full, None)) is not None:
            order.sort(key=lambda axis: -same.strides[axis])
        size = math.prod(shape)
        first, self._scratch = self._scratch, self._scratch + size
        at = np.arange(first, first + size).reshape([shape[axis] for axis in order])
        return Places(SCRATCH, at.transpose(np.argsort(order)))

    def _widen(self, node: Node) -> None:
        """An operand of another kind as floats."""
        kept, to = self._places[node], self._room(node.tensor.static_shape)
        name = "(bool)" if node.tensor.dtype == "bool" else "(widen)"
        self._write(name, range(kept.at.ndim), to, kept)
        self._places[node] = to

    def _move(self, source: Places, to: Places) -> None:
        self._write("(copy)", to.order, to, source)

    def _reduce(self, name: str, axes: Sequence[int], source: Places, to: Places) -> None:
        """By an instruction where what is reduced lies side by side, else part after part."""
        kept = [axis for axis in range(source.at.ndim) if axis not in axes]
        if any(source.strides[axis] == 1 for axis in kept):
            initial, join = REDUCTIONS[name]
            self._move(self._number(initial, to.at.shape), to)
            inner = sorted(kept, key=lambda axis: -source.strides[axis])
            whole = Places(to.buffer, np.broadcast_to(np.expand_dims(to.at, tuple(axes)), source.at.shape))
            self._write(join, [*axes, *inner], whole, whole, source)
            return
        turned = source.at.transpose([*kept, *axes])
        shape = (*turned.shape[: len(kept)], math.prod(turned.shape[len(kept) :]))
        lines = turned.reshape(shape)
        if not np.may_share_memory(lines, source.at):
            moved = self._room(turned.shape)
            self._move(Places(source.buffer, turned), moved)
            lines, source = moved.at.reshape(shape), moved
        whole = Places(to.buffer, np.broadcast_to(to.at[..., None], shape))
        self._write(name, range(len(shape)), whole, Places(source.buffer, lines), keeps_last=True)

    def _write(self, name: str, order: Sequence[int], *places: Places, keeps_last: bool = False) -> None:
        """An instruction: ``places`` of one shape, the first is written, with loops in ``order``, outermost
        first. Axes that lie behind each other everywhere are one loop."""
        loops: list[tuple[int, list[int]]] = []
        for axis in order:
            size, strides = places[0].at.shape[axis], [place.strides[axis] for place in places]
            if size == 1 and not (keeps_last and axis == order[-1]):
                continue
            if loops and not (keeps_last and axis == order[-1]):
                before, outer = loops[-1]
                if outer == [stride * size for stride in strides]:
                    loops[-1] = before * size, strides
                    continue
            loops.append((size, strides))
        loops = [(1, [0] * len(places))] * (AXES - len(loops)) + loops
        self._instructions += [CODES[name], *(size for size, _ in loops)]
        for at in range(OPERANDS):
            place = places[min(at, len(places) - 1)]
            strides = [strides[min(at, len(places) - 1)] for _, strides in loops]
            self._instructions += [place.buffer, int(place.at.flat[0]), *strides]


def _all(buffer: int, node: Node) -> Places:
    return Places(buffer, np.arange(node.tensor.size).reshape(node.tensor.static_shape))
