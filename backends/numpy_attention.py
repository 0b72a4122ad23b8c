"""Attention as NumPy source: loops over queries and positions with an online softmax.

for batch_B in range(2):
    for query in range(0, 64, 16):
        queries = …                                       # a tile of queries stays
        for position in range(0, 512, 128):
            scores = queries @ keys[…].T                  # a tile of scores, never written
            higher = np.maximum(highest, np.max(scores, axis=-1, keepdims=True))
            …                                             # what was summed is rescaled
        out[…] = mixed / total
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..compiler.cost.program_schedule import AttentionNest, Layout
from ..ir.graph import Node
from ..ir.types import show_type
from .numpy_contraction import ordered
from .numpy_literals import is_number
from .numpy_tiles import counter, loop_headers, tile_expression

if TYPE_CHECKING:
    from .numpy_source import Module

NAMES = frozenset(["query", "position", "queries", "highest", "higher", "total", "mixed", "share", "kept"])


def attention_lines(module: Module, nest: AttentionNest) -> list[str]:
    """The loops, with what they are and what limits them; they define the name of the mix."""
    layout, mix_layout, schedule = nest.scores_layout, nest.mix_layout, nest.schedule
    tiled = _tiled_axes(nest)
    out, loops = module.name(nest.mix), []
    if schedule.queries > schedule.tile[0]:
        loops.append(("query", schedule.queries, schedule.tile[0]))
    headers = loop_headers(layout, loops)
    outer = "    " * len(headers)
    queries = _picked(module, nest.scores, layout.lhs, tiled, layout.m + layout.k)
    keys = _picked(module, nest.scores, layout.rhs, tiled, layout.k + layout.n)
    values = _picked(module, nest.mix, mix_layout.rhs, tiled, mix_layout.k + mix_layout.n)
    start = [
        f"queries = {queries}",
        "highest = np.full((*queries.shape[:-1], 1), np.finfo(np.float32).min, np.float32)",
        "total = np.zeros_like(highest)",
        f"mixed = np.zeros((*queries.shape[:-1], {mix_layout.sizes[mix_layout.n]}), np.float32)",
    ]
    step = [
        f"{module.name(nest.scores)} = queries @ {keys}",
        *_between(module, nest, tiled),
        *_online_softmax(module.name(nest.softmax.sources[0]), values),
    ]
    if schedule.positions > schedule.tile[1]:
        header = f"for position in range(0, {schedule.positions}, {schedule.tile[1]}):"
        step = [header, *(f"    {line}" for line in step)]
    body = [*start, *step, f"{out}[{_place(mix_layout.result, tiled)}] = mixed / total"]
    shape = nest.mix.tensor.static_shape
    first = f"{out} = np.empty({shape}, np.float32)  # {show_type(nest.mix.type)}"
    return [*_comment(nest), first, *headers, *(f"{outer}{line}" for line in body)]


def _comment(nest: AttentionNest) -> list[str]:
    schedule = nest.schedule
    queries, positions = schedule.tile
    group = f" of {schedule.group} heads each" if schedule.group > 1 else ""
    many = f"{schedule.batch:,} × {schedule.queries:,} queries{group} over {schedule.positions:,} positions"
    room = f"{schedule.on_chip:,} of {schedule.room:,} bytes on chip"
    return [
        f"# attention, {many}: queries by {queries:,}, positions by {positions:,}; {room}",
        f"# scores never leave the chip, 2 buffers for keys and values; limited by {schedule.limit()}",
    ]


def _online_softmax(scores: str, values: str) -> list[str]:
    return [
        f"higher = np.maximum(highest, np.max({scores}, axis=-1, keepdims=True))",
        f"share, kept = np.exp({scores} - higher), np.exp(highest - higher)",
        "total = total * kept + np.sum(share, axis=-1, keepdims=True)",
        f"mixed = mixed * kept + share @ {values}",
        "highest = higher",
    ]


def _tiled_axes(nest: AttentionNest) -> dict[str, str]:
    """What stands between brackets for each letter that is not whole: a counter, or a slice."""
    layout, schedule = nest.scores_layout, nest.schedule
    tiled = {letter: counter(letter) for letter in layout.batch}
    if schedule.queries > schedule.tile[0]:
        tiled[layout.m[0]] = f"query:query + {schedule.tile[0]}"
    if schedule.positions > schedule.tile[1]:
        tiled[layout.n] = f"position:position + {schedule.tile[1]}"
    return tiled


def _place(letters: str, tiled: Mapping[str, str]) -> str:
    return ", ".join(tiled.get(letter, ":") for letter in letters)


def _picked(
    module: Module, node: Node, operand: tuple[int, str], tiled: Mapping[str, str], order: str
) -> str:
    """A tile of an operand, with its remaining axes in the given order."""
    at, letters = operand
    rest = [letter for letter in letters if letter in order]
    return ordered(f"{module.operand(node.sources[at])}[{_place(letters, tiled)}]", rest, list(order))


def _between(module: Module, nest: AttentionNest, tiled: Mapping[str, str]) -> Iterator[str]:
    """What is computed from a tile of scores: scaled, bounded, masked."""
    tiles = {nest.scores: module.name(nest.scores)}
    for node in nest.between:
        for source in node.sources:
            if source not in tiles and not is_number(source):
                tiles[source] = _broadcast_tile(module.operand(source), source, nest.scores_layout, tiled)
        tiles[node] = module.name(node)
        yield f"{tiles[node]} = {tile_expression(module, node, tiles)}"


def _broadcast_tile(x: str, source: Node, layout: Layout, tiled: Mapping[str, str]) -> str:
    """The part of a value that a tile of scores meets; axes of one element stay as they are."""
    shape = source.tensor.static_shape
    letters = layout.result[len(layout.result) - len(shape) :]
    parts = [
        ("0" if letter in layout.batch else ":") if size == 1 else tiled.get(letter, ":")
        for letter, size in zip(letters, shape, strict=True)
    ]
    return f"{x}[{', '.join(parts)}]" if parts else x
