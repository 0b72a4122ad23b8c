"""Loops over tiles as NumPy source: a contraction as it is scheduled for a target.

    # [16, 64] · [64, 172]: for n by 96, for k by 32; the sums stay on chip; ws, 2 buffers, …
    lhs, rhs = x.reshape(16, 64), w.T
    gate = np.empty((16, 172), np.float32)
    for n in range(0, 172, 96):
        sums = np.zeros((16, min(96, 172 - n)), np.float32)
        for k in range(0, 64, 32):
            sums += lhs[:, k:k + 32] @ rhs[k:k + 32, n:n + 96]
        gate[:, n:n + 96] = sums + bias[n:n + 96]

What is a tile is a slice; nothing is copied but what a target would bring on chip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from ..compiler.cost.program_schedule import Layout, MatmulNest, tile_axes
from ..compiler.cost.schedule import Schedule
from ..ir.graph import Node
from ..ir.types import show_type
from .numpy_contraction import grouped, ordered
from .numpy_literals import dtype_source, is_number, number_source
from .numpy_ops import EXPRESSIONS

if TYPE_CHECKING:
    from .numpy_source import Module

NAMES = frozenset(["m", "k", "n", "lhs", "rhs", "sums", "product"])
_STAYS = {"m": "rhs", "n": "lhs", "k": "the sums"}


def is_one_tile(nest: MatmulNest) -> bool:
    """Whether a contraction runs as it is: there is nothing to loop over."""
    return not list(nest.schedule.loops) and len(nest.products) == 1


def matmul_comment(nest: MatmulNest) -> list[str]:
    """Tile sizes, order, what stays on chip, and what limits it."""
    schedule = nest.schedule
    m, k, n = schedule.shape
    loops = list(schedule.loops)
    text = ", ".join(f"for {letter} by {tile:,}" for letter, _, tile in loops) or "one tile"
    times = nest.layout.size(nest.layout.batch)
    many = f"{times:,} × " if times > 1 else ""
    stays = f"; {_STAYS[loops[-1][0]]} stay{'s' * (loops[-1][0] != 'k')} on chip" if loops else ""
    buffers = f"{schedule.buffers} buffer{'s' * (schedule.buffers > 1)}"
    room = f"{schedule.on_chip:,} of {schedule.room:,} bytes"
    return [
        f"# {many}[{m}, {k}] · [{k}, {n}]: {text}{stays}; {schedule.dataflow}, {buffers}, {room} on chip",
        f"# limited by {schedule.limit()}",
    ]


def matmul_lines(module: Module, nest: MatmulNest) -> list[str]:
    """The loops; they define the names of what is read elsewhere."""
    layout, schedule, product = nest.layout, nest.schedule, nest.products[0]
    loops = [letter for letter, _, _ in schedule.loops]
    sums_leave = schedule.spills
    shape = (*(layout.sizes[c] for c in layout.batch), *schedule.shape[::2])
    is_whole = len(nest.products) == 1 and not sums_leave and layout.order == layout.result
    is_whole = is_whole and shape == product.tensor.static_shape
    at, tiles = _Index(layout, schedule), {product: "sums"}
    lines = [*matmul_comment(nest), *_operands(module, nest), *_epilogue_operands(module, nest, at, tiles)]
    out = module.name(nest.place) if is_whole else "product"
    dtype = dtype_source(_sum_dtype(product) if sums_leave else nest.place.tensor.dtype)
    lines.append(f"{out} = np.{'zeros' if sums_leave else 'empty'}({shape}, {dtype})")
    headers = loop_headers(layout, schedule.loops)
    inner = "    " * len(headers)
    lhs, rhs = (_widened(tile, product) for tile in (f"lhs[{at('bmk')}]", f"rhs[{at('bkn')}]"))
    if sums_leave:
        lines += [*headers, f"{inner}{out}[{at('bmn')}] += {lhs} @ {rhs}"]
    elif "k" in loops:
        tile = f"({_extent(schedule, 'm')}, {_extent(schedule, 'n')})"
        zeros = f"{inner[4:]}sums = np.zeros({tile}, {dtype_source(_sum_dtype(product))})"
        lines += [*headers[:-1], zeros, headers[-1], f"{inner}sums += {lhs} @ {rhs}"]
        lines += [f"{inner[4:]}{line}" for line in _finish(module, nest, out, at, tiles)]
    else:
        lines += [*headers, f"{inner}sums = {lhs} @ {rhs}"]
        lines += [f"{inner}{line}" for line in _finish(module, nest, out, at, tiles)]
    return lines if is_whole else [*lines, *_results(module, nest)]


def _sum_dtype(product: Node) -> str:
    """NumPy has no fast product of 16-bit floats; sums are kept in f32."""
    return "f32" if product.tensor.dtype in ("f16", "bf16") else product.tensor.dtype


def _widened(tile: str, product: Node) -> str:
    return f"{tile}.astype(np.float32)" if _sum_dtype(product) != product.tensor.dtype else tile


def counter(letter: str) -> str:
    """The variable that counts matmuls along an axis of the batch."""
    return f"batch_{letter}"


class _Index:
    """What stands between brackets: the tile's place on the given axes ("b" for all axes of the batch)."""

    def __init__(self, layout: Layout, schedule: Schedule) -> None:
        self._batch = [counter(letter) for letter in layout.batch]
        self._loops = {letter: tile for letter, _, tile in schedule.loops}

    def __call__(self, axes: str, full: str = "bmkn") -> str:
        parts = []
        for axis in axes:
            if axis == "b":
                parts += self._batch if "b" in full else ["0"] * len(self._batch)
            else:
                tile = self._loops.get(axis)
                parts.append(f"{axis}:{axis} + {tile}" if tile and axis in full else ":")
        return ", ".join(parts)


def loop_headers(layout: Layout, loops: Iterable[tuple[str, int, int]]) -> list[str]:
    """One loop in the other: over the batch, then over (variable, size, tile)."""
    headers = [f"for {counter(letter)} in range({layout.sizes[letter]}):" for letter in layout.batch]
    headers += [f"for {name} in range(0, {size}, {tile}):" for name, size, tile in loops]
    return ["    " * depth + header for depth, header in enumerate(headers)]


def _extent(schedule: Schedule, letter: str) -> str:
    """The size of a tile as source; the last one of a loop may be cut."""
    at = "mkn".index(letter)
    size, tile = schedule.shape[at], schedule.tile[at]
    if size <= tile:
        return str(size)
    return str(tile) if size % tile == 0 else f"min({tile}, {size} - {letter})"


def _operands(module: Module, nest: MatmulNest) -> list[str]:
    """``lhs`` and ``rhs`` as stacks of matrices; weights that share lhs side by side."""
    layout, product = nest.layout, nest.products[0]
    lhs, rhs = layout.lhs, layout.rhs
    left = _matrices(module.operand(product.sources[lhs[0]]), lhs[1], layout, (layout.m, layout.k))
    if len(nest.products) == 1:
        right = _matrices(module.operand(product.sources[rhs[0]]), rhs[1], layout, (layout.k, layout.n))
        return [f"lhs = {left}", f"rhs = {right}"]
    names = [module.operand(node.sources[1 - _lhs_index(nest, node)]) for node in nest.products]
    turned = [f"{name}.T" if rhs[1][0] not in layout.k else name for name in names]
    return [f"lhs = {left}", f"rhs = np.concatenate(({', '.join(turned)}), axis=1)"]


def _lhs_index(nest: MatmulNest, node: Node) -> int:
    return 0 if node.sources[0] is nest.products[0].sources[nest.layout.lhs[0]] else 1


def _matrices(x: str, letters: str, layout: Layout, groups: tuple[str, str]) -> str:
    rows, columns = groups
    order = [*layout.batch, *rows, *columns]
    parts = (list(layout.batch), list(rows), list(columns))
    return grouped(ordered(x, letters, order), parts, dict(layout.sizes))


def _epilogue_operands(module: Module, nest: MatmulNest, at: _Index, tiles: dict[Node, str]) -> list[str]:
    """Values that the epilogue reads, as the result's matrices are; ``tiles`` gets the tile of each."""
    own, lines = set(nest.covered), []
    sources = dict.fromkeys(source for node in nest.epilogue for source in node.sources)
    for source in sources:
        if source in own or is_number(source):
            continue
        axes, name = tile_axes(source, nest.layout) or "", module.operand(source)
        if axes == "n" and source.tensor.rank == 1:
            tiles[source] = f"{name}[{at('n')}]"
            continue
        matrices = _as_result(name, source, nest.layout)
        if matrices != name:
            name = module.unique(f"{name}_matrix")
            lines.append(f"{name} = {matrices}")
        tiles[source] = f"{name}[{at('bmn', axes)}]"
    return lines


def _as_result(name: str, source: Node, layout: Layout) -> str:
    """A value with axes for the batch, rows and columns of the result, of one element where it has none."""
    shape = source.tensor.static_shape
    padded = (1,) * (len(layout.result) - len(shape)) + shape
    sizes = dict(zip(layout.result, padded, strict=True))
    groups = [math.prod(sizes[c] for c in letters) for letters in (*layout.batch, layout.m, layout.n)]
    is_matrix = groups == [sizes[c] for c in layout.order]
    text = name if padded == shape else f"{name}.reshape({', '.join(map(str, padded))})"
    if layout.order == layout.result:
        return name if is_matrix and padded == shape else f"{name}.reshape({', '.join(map(str, groups))})"
    turned = ordered(text, layout.result, list(layout.order))
    return turned if is_matrix else f"{turned}.reshape({', '.join(map(str, groups))})"


def _finish(module: Module, nest: MatmulNest, out: str, at: _Index, tiles: dict[Node, str]) -> Iterator[str]:
    """The epilogue on one tile, and its way to the result."""
    product = nest.products[0]
    if nest.epilogue and _sum_dtype(product) != product.tensor.dtype:
        yield f"sums = sums.astype({dtype_source(product.tensor.dtype)})"
    for node in nest.epilogue[:-1]:
        tiles[node] = module.name(node)
        yield f"{tiles[node]} = {tile_expression(module, node, tiles)}"
    last = tile_expression(module, nest.place, tiles) if nest.epilogue else "sums"
    yield f"{out}[{at('bmn')}] = {last}"


def tile_expression(module: Module, node: Node, tiles: Mapping[Node, str]) -> str:
    """A node of elements as source, of the tiles of what it reads."""
    operands = (number_source(s, node) if is_number(s) else tiles[s] for s in node.sources)
    return EXPRESSIONS[node.op.name](module.emission, node, *operands)


def _results(module: Module, nest: MatmulNest) -> Iterator[str]:
    """From matrices to the result's own axes; what was side by side is cut apart."""
    layout, start = nest.layout, 0
    for node in nest.products if len(nest.products) > 1 else (nest.place,):
        part, shape = "product", tuple(layout.sizes[c] for c in layout.order)
        if len(nest.products) > 1:
            shape = node.tensor.static_shape
            width = shape[-1]
            part, start = f"product[:, {start}:{start + width}]", start + width
        text = ordered(f"{part}.reshape({', '.join(map(str, shape))})", layout.order, list(layout.result))
        is_wide = node in nest.products and _sum_dtype(node) != node.tensor.dtype
        text += f".astype({dtype_source(node.tensor.dtype)})" if is_wide else ""
        yield f"{module.name(node)} = {text}  # {show_type(node.type)}"
