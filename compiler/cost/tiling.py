"""Tilings of a matmul: tile sizes and loop order, the bytes that each moves and the room that it takes.

All of them at once, as arrays: a search is one evaluation of a cost over every candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .analytic import ACCUMULATOR_BYTES, Traffic, ceil_div
from .targets import DTYPE_BYTES, RESULT_BYTES

Array = np.ndarray
ORDERS = ("nmk", "mnk")  # from the outermost loop to the innermost; k is always innermost
LARGEST_PIECES = 12  # up to this every number of pieces is tried, then only half powers of two


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


def candidates(shape: tuple[int, int, int], granules: tuple[int, int, int]) -> Tilings:
    """Tilings of [m, k] · [k, n] in whole granules, each dimension cut evenly; both orders if they differ."""
    sizes = [_tile_sizes(total, granule) for total, granule in zip(shape, granules, strict=True)]
    m, k, n, order = (grid.ravel() for grid in np.meshgrid(*sizes, np.arange(len(ORDERS)), indexing="ij"))
    found = Tilings(shape, m, k, n, order)
    pieces_m, pieces_k, pieces_n = found.pieces
    return found[(order == 0) | ((pieces_k == 1) & (pieces_m > 1) & (pieces_n > 1))]


def _tile_sizes(total: int, granule: int) -> Array:
    units = ceil_div(total, granule)
    halves = 2.0 ** (np.arange(2 * LARGEST_PIECES.bit_length() - 1, 2 * units.bit_length()) / 2)
    pieces = np.concatenate([np.arange(1, LARGEST_PIECES + 1), np.round(halves).astype(int)])
    return np.unique(ceil_div(units, pieces[pieces <= units])) * granule


def _repeats(tilings: Tilings) -> tuple[Array, Array]:
    """How often the whole lhs and the whole rhs pass: an operand stays while its tile does not change."""
    pieces_m, pieces_k, pieces_n = tilings.pieces
    n_outside = tilings.order == ORDERS.index("nmk")
    lhs_stays = (pieces_k == 1) & (~n_outside | (pieces_m == 1))
    rhs_stays = (pieces_k == 1) & (n_outside | (pieces_n == 1))
    return np.where(lhs_stays, 1, pieces_n), np.where(rhs_stays, 1, pieces_m)


def traffic(tilings: Tilings, dtype: str) -> Traffic:
    """Bytes to and from main memory per operand; tiles at the edges are moved whole."""
    size = DTYPE_BYTES[dtype]
    pieces_m, pieces_k, pieces_n = tilings.pieces
    lhs_repeats, rhs_repeats = _repeats(tilings)
    lhs = size * pieces_m * tilings.m * pieces_k * tilings.k * lhs_repeats
    rhs = size * pieces_k * tilings.k * pieces_n * tilings.n * rhs_repeats
    m, _, n = tilings.shape
    return Traffic(lhs, rhs, np.full(len(tilings), RESULT_BYTES[dtype] * m * n))


def window_bytes(tilings: Tilings, dtype: str) -> Array:
    """Room for the operands' tiles: two of each, one if it never changes."""
    lhs_repeats, rhs_repeats = _repeats(tilings)
    pieces_m, pieces_k, pieces_n = tilings.pieces
    lhs = np.where(pieces_m * pieces_k * lhs_repeats > 1, 2, 1) * tilings.m * tilings.k
    rhs = np.where(pieces_k * pieces_n * rhs_repeats > 1, 2, 1) * tilings.k * tilings.n
    return DTYPE_BYTES[dtype] * (lhs + rhs)


def on_chip_bytes(tilings: Tilings, dtype: str) -> Array:
    """Room for everything: the operands' tiles, result tiles, and sums where k takes several steps."""
    pieces_m, pieces_k, pieces_n = tilings.pieces
    result = RESULT_BYTES[dtype] * np.where(pieces_m * pieces_n > 1, 2, 1)
    sums = np.where((pieces_k > 1) & (RESULT_BYTES[dtype] < ACCUMULATOR_BYTES), ACCUMULATOR_BYTES, 0)
    return window_bytes(tilings, dtype) + (result + sums) * tilings.m * tilings.n
