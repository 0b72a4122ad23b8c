"""Tilings of a matmul: tile sizes and loop order, the bytes that each moves and the room that it takes.

All of them at once, as arrays: a search is one evaluation of a cost over every candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .analytic import ACCUMULATOR_BYTES, Traffic, ceil_div
from .targets import DTYPE_BYTES, RESULT_BYTES

Array = np.ndarray
# From the outermost loop to the innermost. With k innermost a result is finished before the next begins;
# otherwise its sums may have to leave the chip and come back.
ORDERS = ("nmk", "mnk", "nkm", "mkn", "knm", "kmn")
FINISHING = 2  # so many of them have k innermost
LARGEST_PIECES = 12  # up to this every number of pieces is tried, then half powers of two, then granules


@dataclass(frozen=True, slots=True)
class Tilings:
    """Candidates for one matmul [m, k] · [k, n]: int64 arrays of one length."""

    shape: tuple[int, int, int]
    m: Array
    k: Array
    n: Array
    order: Array

    def __len__(self) -> int:
        return len(self.m)

    def __getitem__(self, chosen: Array) -> Tilings:
        return Tilings(self.shape, *(getattr(self, f.name)[chosen] for f in fields(self)[1:]))

    def within_shape(self) -> Tilings:
        """The same, with tiles that are larger than the matmul cut to its size."""
        m, k, n = (np.minimum(getattr(self, x), size) for x, size in zip("mkn", self.shape, strict=True))
        return Tilings(self.shape, m, k, n, self.order)

    @property
    def pieces(self) -> tuple[Array, Array, Array]:
        """How many tiles there are along m, k and n."""
        m, k, n = self.shape
        return ceil_div(m, self.m), ceil_div(k, self.k), ceil_div(n, self.n)

    @property
    def steps(self) -> Array:
        """Steps of the pipeline: one tile of lhs times one of rhs each."""
        return np.prod(self.pieces, axis=0)

    def describe(self, index: int) -> dict[str, int | str]:
        """One of them as JSON: tile sizes, loop order (outermost first) and number of steps."""
        tile: dict[str, int | str] = {name: int(getattr(self, name)[index]) for name in ("m", "k", "n")}
        return tile | {"order": ORDERS[int(self.order[index])], "steps": int(self.steps[index])}


def candidates(
    shape: tuple[int, int, int], granules: tuple[int, int, int], orders: int = FINISHING
) -> Tilings:
    """Tilings of [m, k] · [k, n] in whole granules, each dimension cut evenly, in the first ``orders`` loop
    orders; of orders that differ only in loops that run once, the first."""
    sizes = [tile_sizes(total, granule) for total, granule in zip(shape, granules, strict=True)]
    m, k, n, order = (grid.ravel() for grid in np.meshgrid(*sizes, np.arange(orders), indexing="ij"))
    found = Tilings(shape, m, k, n, order)
    loops = np.sum([(pieces > 1) << bit for bit, pieces in enumerate(found.pieces)], axis=0)
    return found[_first_of_its_kind()[loops, found.order]]


def _first_of_its_kind() -> Array:
    """[which of m, k, n are loops, as bits; order] → whether no earlier order moves the same: it runs these
    loops in the same order, or has k as the innermost loop, inside of which every tile changes."""
    table = np.zeros((8, len(ORDERS)), bool)
    for bits in range(8):
        loops = ["".join(x for x in order if bits >> "mkn".index(x) & 1) for order in ORDERS]
        kinds = ["k" if loop.endswith("k") else loop for loop in loops]
        table[bits] = [kinds.index(kind) == i for i, kind in enumerate(kinds)]
    return table


def tile_sizes(total: int, granule: int) -> Array:
    """Sizes in whole granules that cut ``total`` evenly; the largest may be more than ``total``."""
    units = ceil_div(total, granule)
    halves = 2.0 ** (np.arange(2 * LARGEST_PIECES.bit_length() - 1, 2 * units.bit_length()) / 2)
    pieces = np.concatenate([np.arange(1, LARGEST_PIECES + 1), np.round(halves).astype(int), [units]])
    return np.unique(ceil_div(units, pieces[pieces <= units])) * granule


def repeats(tilings: Tilings, operand: str) -> Array:
    """How often the whole of an operand ("mk", "kn", or the result "mn") passes: a tile stays while it does
    not change, so a loop over the third dimension repeats what changes inside of it."""
    pieces = dict(zip("mkn", tilings.pieces, strict=True))
    (other,) = set("mkn") - set(operand)
    changes = np.array(
        [
            np.any([pieces[x] > 1 for x in order[order.index(other) + 1 :]] or [pieces["m"] < 0], axis=0)
            for order in ORDERS
        ]
    )
    return np.where(changes[tilings.order, np.arange(len(tilings))], pieces[other], 1)


def traffic(tilings: Tilings, dtype: str) -> Traffic:
    """Bytes to and from main memory per operand, with k innermost; tiles at the edges are moved whole."""
    size = DTYPE_BYTES[dtype]
    pieces_m, pieces_k, pieces_n = tilings.pieces
    lhs = size * pieces_m * tilings.m * pieces_k * tilings.k * repeats(tilings, "mk")
    rhs = size * pieces_k * tilings.k * pieces_n * tilings.n * repeats(tilings, "kn")
    m, _, n = tilings.shape
    return Traffic(lhs, rhs, np.full(len(tilings), RESULT_BYTES[dtype] * m * n))


def window_bytes(tilings: Tilings, dtype: str) -> Array:
    """Room for the operands' tiles: two of each, one if it never changes."""
    pieces_m, pieces_k, pieces_n = tilings.pieces
    lhs = np.where(pieces_m * pieces_k * repeats(tilings, "mk") > 1, 2, 1) * tilings.m * tilings.k
    rhs = np.where(pieces_k * pieces_n * repeats(tilings, "kn") > 1, 2, 1) * tilings.k * tilings.n
    return DTYPE_BYTES[dtype] * (lhs + rhs)


def on_chip_bytes(tilings: Tilings, dtype: str) -> Array:
    """Room for everything: the operands' tiles, result tiles, and sums where k takes several steps."""
    pieces_m, pieces_k, pieces_n = tilings.pieces
    result = RESULT_BYTES[dtype] * np.where(pieces_m * pieces_n > 1, 2, 1)
    sums = np.where((pieces_k > 1) & (RESULT_BYTES[dtype] < ACCUMULATOR_BYTES), ACCUMULATOR_BYTES, 0)
    return window_bytes(tilings, dtype) + (result + sums) * tilings.m * tilings.n
