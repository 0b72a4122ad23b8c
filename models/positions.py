"""Positions that are added to the token's embedding (learned, or sines and cosines), and distances that
are added to the scores of attention."""

from __future__ import annotations

import math

import numpy as np

from ..compiler.language import (
    absolute,
    concatenate,
    constant,
    cos,
    feedback,
    minimum,
    parameter,
    position,
    sin,
    take,
    transpose,
    whole,
    zeros,
)
from ..compiler.stream import Stream
from ..ir.graph import Graph, postorder
from ..ir.types import MAIN

UNLIMITED = 2**31 - 1  # the context of a model that has no positions: they are counted in i32


def learned_positions(name: str, count: int, width: int, *, offset: int = 0, clock: str = MAIN) -> Stream:
    """Row t + ``offset`` of the table ``name``.weight [count, width]: f32[width]."""
    table, row = parameter(f"{name}.weight", (count, width)), position(clock)
    return take(table, row + offset if offset else row)


def looks_positions_up(graph: Graph) -> bool:
    """Whether a table of learned positions ends somewhere, so that no text can be longer: a row of a
    parameter is chosen by a number that is counted and not given."""
    indices = [node.sources[1] for node in graph.nodes if node.op.name == "take"]
    tables = [node.sources[0].op.name == "parameter" for node in graph.nodes if node.op.name == "take"]
    chosen = [
        index for index, is_table in zip(indices, tables, strict=True) if is_table and not index.tensor.rank
    ]
    counted = postorder((i for i in chosen if i.op.name != "input"), lambda node: node.sources)
    return any(node.op.name in ("position", "feedback") for node in counted)


def sinusoidal_positions(width: int, *, base: float = 10000.0, clock: str = MAIN) -> Stream:
    """Sines of t * base^(-2i/width) in the first half, cosines in the second: f32[width]."""
    return sinusoids(position(clock), base ** (-np.arange(0, width, 2) / width))[:width]


def sinusoids(place: Stream, frequencies: np.ndarray) -> Stream:
    """Sines of ``place`` i32[] times each of ``frequencies`` [n], and behind them cosines: f32[2 * n]."""
    angles = place.cast("f32") * frequencies.astype(np.float32)
    return concatenate([sin(angles), cos(angles)])


def learned_positions_of_text(name: str, count: int, width: int, token: Stream, padding: int) -> Stream:
    """Row ``padding`` + n of the table ``name``.weight [count, width] for the n-th token (from 1) that is
    not the token ``padding``, and row ``padding`` for that one: f32[width]."""
    return take(parameter(f"{name}.weight", (count, width)), count_of_text(token, padding) + padding)


def count_of_text(token: Stream, padding: int) -> Stream:
    """How many tokens up to this one are not the token ``padding``; 0 for that one itself: i32[]."""
    is_text = (token != padding).cast("i32")
    count = feedback(zeros((), "i32"), str(token.node.clock))
    return count.close(count + is_text) * is_text


def gains_of_buckets(name: str, shape: tuple[int, int], buckets: Stream) -> Stream:
    """What each head's scores gain by the bucket of each position that is read, from the table
    ``name``.weight [buckets, H]: [H, 1, positions]."""
    gains = take(parameter(f"{name}.weight", shape), buckets)
    return transpose(gains)[:, None].named("distances")


def two_sided_buckets(count: int, farthest: int, clock: str = MAIN) -> Stream:
    """The bucket of each position of the whole text: what is ahead has the second half of ``count``."""
    half = count // 2
    ahead = whole(position(clock)) - position(clock)
    return buckets_of(absolute(ahead), half, farthest) + (ahead > 0).cast("i32") * half


def buckets_of(distance: Stream, count: int, farthest: int) -> Stream:
    """Which of ``count`` buckets holds a distance: all alike from ``farthest`` on."""
    return take(constant(bucket_of_distances(count, farthest)), minimum(distance, farthest))


def bucket_of_distances(count: int, farthest: int) -> np.ndarray:
    """For each distance up to ``farthest`` its bucket, i32[farthest + 1]: half of the buckets hold one
    distance each, the others grow like the logarithm."""
    exact = count // 2
    distance = np.arange(farthest + 1, dtype=np.float32)
    growth = np.log(np.maximum(distance, 1) / np.float32(exact)) / np.float32(math.log(farthest / exact))
    far = exact + (growth * np.float32(count - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(far, count - 1)).astype(np.int32)
