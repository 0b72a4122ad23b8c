"""A matrix product as a kernel of our own on a TPU: what each tiling costs, and which one to take.

The kernel (``backends/tpu_kernels.py``) adds up one tile of the result after the other, a tile of lhs times a
tile of rhs per step. Two sides make the time of a step, and both are known without asking a compiler:

*Scheduled cycles*, with all tiles at hand: the busiest of three units, each working through the folds of a
step (a fold is a piece of rhs as large as an array). ``rows`` are those of a tile of lhs.

    arrays  = hidden_step + folds · rows / arrays        (int8: at twice the rate)
    weights = step + folds · max(push, latch + rows / (2 · arrays))
    vector  = step + registers of lhs · feed + registers of results per fold of k
    and where k takes several steps, after the arrays: registers of results · sum

push and latch are those of bf16; int8 takes half of them, f32, which is rounded on its way in, twice as long.

*Main memory*: while a step is computed the tiles of the next one arrive. There are two buffers, so the tiles
after those are asked for when the step is done, and two steps take no less than one pass through a buffer.

    step = max(scheduled, bytes / bytes_per_cycle, (latency + bytes / bytes_per_cycle + scheduled) / 2)

The figures are in the target's [kernel] and [compiler] tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product as combinations

import numpy as np

from ...ir.errors import SystolicError
from .analytic import ceil_div
from .targets import DTYPE_BYTES, Arrays, Compiler, Kernel, Target
from .tiling import FINISHING, ORDERS, Tilings

Array = np.ndarray
LANES = 128
SUBLANES = 8  # a vector register is 8 sublanes of 128 lanes
LEAST_ROWS: Mapping[str, int] = {"f32": 8, "bf16": 16, "i8": 32}  # of a tile: as many as fill 8 sublanes
ACCUMULATORS: Mapping[str, str] = {"i8": "i32"}  # what products of a dtype are added up in; f32 otherwise
RESULT_BYTES: Mapping[str, int] = {**DTYPE_BYTES, "i32": 4}
ROW_CYCLES: Mapping[str, float] = {
    "i8": 0.5
}  # of an array per row of lhs; one for what is multiplied as bf16
LEAST_WAVE = 64  # rows: a shorter wave leaves the array as late as this one
FLUSH = 1.25  # per register of results: to clear it before a tile of the result, and to hand it over after
SPARE_BYTES = 1 << 20  # of scoped memory, for what is not a tile


@dataclass(frozen=True, slots=True)
class Product:
    """lhs [m, k] · rhs, which is kept as [n, k] (``is_transposed``, as weights are) or as [k, n]."""

    m: int
    k: int
    n: int
    lhs: str = "bf16"
    rhs: str = "bf16"
    result: str = "bf16"
    is_transposed: bool = True

    @property
    def accumulator(self) -> str:
        return ACCUMULATORS.get(self.lhs, "f32")

    @property
    def name(self) -> str:
        """``bf16[512,4096]·bf16[14336,4096]ᵀ``."""
        rhs = f"{self.rhs}[{self.n},{self.k}]ᵀ" if self.is_transposed else f"{self.rhs}[{self.k},{self.n}]"
        return f"{self.lhs}[{self.m},{self.k}]·{rhs}"


def product_of(m: int, k: int, n: int, dtype: str, is_transposed: bool = True) -> Product:
    """A product whose operands are of one dtype, and whose result is what that leaves the arrays as."""
    return Product(m, k, n, dtype, dtype, ACCUMULATORS.get(dtype, dtype), is_transposed)


@dataclass(frozen=True, slots=True)
class KernelTiling:
    """Rows, depth and columns of the tiles of a kernel, and its loops from the outermost to the innermost."""

    m: int
    k: int
    n: int
    order: str = ORDERS[0]

    def __str__(self) -> str:
        return f"{self.m}×{self.k}×{self.n} {self.order}"


@dataclass(frozen=True, slots=True)
class Choice:
    """A tiling and what is predicted for it: all cycles, the scheduled ones, the bytes that it moves."""

    tiling: KernelTiling
    cycles: float
    scheduled_cycles: float
    hbm_bytes: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of a pipeline with k innermost: tiles of lhs, of rhs, and of the result; arrays of one length."""

    lhs: Array
    rhs: Array
    result: Array


# ---- the tilings ----


def kernel_tilings(product: Product, compiler: Compiler) -> Tilings:
    """Every tiling that the search considers and that fits into the memory of one kernel.

    Rows and columns are cut into powers of two or, as k always is, evenly; tiles at the edges of m and n may
    stick out. Only where no even cut of k fits is its last tile partly empty.
    """
    least = max(LEAST_ROWS.get(dtype, SUBLANES) for dtype in (product.lhs, product.rhs, product.result))
    rows, columns = _cuts(product.m, least), _cuts(product.n, LANES)
    for depths in (_even_cuts(product.k), _cuts(product.k, LANES)):
        grid = [
            (m, k, n, order)
            for m, k, n, order in combinations(rows, depths, columns, range(FINISHING))
            if order == 0 or (k >= product.k and m < product.m and n < product.n)
        ]
        found = Tilings((product.m, product.k, product.n), *np.array(grid, np.int64).T)
        fits = found[on_chip_bytes(found, product) <= compiler.scoped_bytes - SPARE_BYTES]
        if len(fits):
            return fits
    raise SystolicError(f"no tiling of {product.name} fits into {compiler.scoped_bytes:,} bytes on chip")


def _even_cuts(total: int) -> list[int]:
    """The whole, and every whole number of lanes that divides it."""
    units = total // LANES if total % LANES == 0 else 1
    return [total // pieces for pieces in range(1, units + 1) if units % pieces == 0]


def _cuts(total: int, least: int) -> list[int]:
    """The whole in granules of ``least``, what divides that, and powers of two."""
    units = ceil_div(total, least)
    sizes = {units // pieces for pieces in range(1, units + 1) if units % pieces == 0}
    sizes |= {1 << power for power in range(units.bit_length())}
    return [least * size for size in sorted(sizes)]


def on_chip_bytes(tilings: Tilings, product: Product) -> Array:
    """Two buffers for each operand and for the result, one where there is only one tile; the sums, where k
    takes several steps; and a copy of the tile of lhs, which the compiler makes in the arrays' order."""
    pieces_m, pieces_k, pieces_n = tilings.pieces
    lhs = DTYPE_BYTES[product.lhs] * tilings.m * tilings.k
    rhs = DTYPE_BYTES[product.rhs] * tilings.k * tilings.n
    result = RESULT_BYTES[product.result] * tilings.m * tilings.n
    buffers = (
        np.where(pieces_m * pieces_k > 1, 2, 1) * lhs
        + np.where(pieces_k * pieces_n > 1, 2, 1) * rhs
        + np.where(pieces_m * pieces_n > 1, 2, 1) * result
    )
    sums = np.where(pieces_k > 1, RESULT_BYTES[product.accumulator] * tilings.m * tilings.n, 0)
    return buffers + sums + DTYPE_BYTES[product.rhs] * tilings.m * tilings.k * 17 // 16


# ---- one tiling: what the units do, and what memory does ----


def scheduled_cycles(tilings: Tilings, product: Product, kernel: Kernel, cells: tuple[int, int]) -> Array:
    """Cycles of the kernel's instructions, all steps together. ``cells``: rows and columns of an array."""
    down, across = ceil_div(tilings.k, cells[0]), ceil_div(tilings.n, cells[1])
    folds, rows = down * across, tilings.m
    wave = rows * ROW_CYCLES.get(product.rhs, 1.0) / kernel.arrays
    width = DTYPE_BYTES[product.rhs] / DTYPE_BYTES["bf16"]
    push = width * (kernel.transposed_push_cycles if product.is_transposed else kernel.push_cycles)
    arrays = kernel.hidden_step_cycles + folds * wave
    weights = kernel.step_cycles + folds * np.maximum(push, width * kernel.latch_cycles + wave / 2)
    pieces_m, pieces_k, pieces_n = tilings.pieces
    lhs_width = DTYPE_BYTES[product.lhs] / DTYPE_BYTES["bf16"]
    fed = rows / SUBLANES * ceil_div(tilings.k, LANES) * lhs_width * kernel.feed_cycles
    stays = pieces_m * pieces_k == 1  # such a tile of lhs is put in order once
    lhs = np.where(stays, 0.0, fed)
    results = rows / SUBLANES * down * ceil_div(tilings.n, LANES)
    vector = kernel.step_cycles + lhs + results
    registers = tilings.m * tilings.n / (SUBLANES * LANES)
    summed = np.where(pieces_k > 1, registers * kernel.sum_cycles, 0.0)
    step = np.maximum(np.maximum(arrays, weights), vector) + summed
    flush = np.where(pieces_k > 1, FLUSH * registers * pieces_m * pieces_n, 0.0)
    first = folds * np.maximum(wave, LEAST_WAVE / kernel.arrays) / np.where(arrays >= weights, 2, 1)
    # The first step fills the units and the last empties them, register by register of every array.
    once = kernel.start_cycles + first + kernel.arrays * registers + np.where(stays, fed, 0.0)
    return once + tilings.steps * step + flush


def tile_bytes(tilings: Tilings, product: Product) -> Traffic:
    """Bytes of one tile of each operand; a single tile is as large as the operand."""
    m, k, n = (np.minimum(getattr(tilings, d), getattr(product, d)) for d in ("m", "k", "n"))
    return Traffic(
        DTYPE_BYTES[product.lhs] * m * k,
        DTYPE_BYTES[product.rhs] * k * n,
        RESULT_BYTES[product.result] * m * n,
    )


def pipeline_cycles(tilings: Tilings, tiles: Traffic, scheduled: Array, compiler: Compiler) -> Array:
    """Cycles of a pipeline of tiles with two buffers: its instructions (``scheduled``, all steps together)
    and main memory.

    A tile is fetched when its place in the operand changes; the result's is written when its tile is done.
    The first tiles and the last result are waited for.
    """
    pieces_m, pieces_k, pieces_n = tilings.pieces
    steps, results = tilings.steps, pieces_m * pieces_n
    n_outside = tilings.order == ORDERS.index("nmk")
    # Steps that fetch everything and write, and all others, which fetch what the inner loop moves on.
    outer = np.where(pieces_k > 1, results, np.where(n_outside, pieces_n, pieces_m))
    outer_bytes = tiles.lhs + tiles.rhs + tiles.result
    inner_lhs = np.where((pieces_k > 1) | n_outside, tiles.lhs, 0)
    inner_rhs = np.where((pieces_k > 1) | ~n_outside, tiles.rhs, 0)
    inner_bytes = (inner_lhs + inner_rhs) + np.where(pieces_k > 1, 0, tiles.result)
    outer_bytes = outer_bytes - _fetched_once(tilings, tiles)
    inner_bytes = inner_bytes - np.where(pieces_k > 1, _fetched_once(tilings, tiles), 0)
    work = scheduled / steps
    waited = compiler.step_cycles + (tiles.lhs + tiles.rhs + tiles.result) / compiler.bytes_per_cycle
    return (
        waited
        + (outer - 1) * _step_cycles(work, outer_bytes, compiler)
        + (steps - outer) * _step_cycles(work, inner_bytes, compiler)
        + work
    )


def _fetched_once(tilings: Tilings, tiles: Traffic) -> Array:
    """Bytes of an operand whose only tile stays for all steps."""
    pieces_m, pieces_k, pieces_n = tilings.pieces
    return np.where(pieces_m * pieces_k == 1, tiles.lhs, 0) + np.where(pieces_k * pieces_n == 1, tiles.rhs, 0)


def _step_cycles(work: Array, moved: Array, compiler: Compiler) -> Array:
    memory = moved / compiler.bytes_per_cycle
    return np.maximum(np.maximum(work, memory), (compiler.step_cycles + memory + work) / 2)


def moved_bytes(tilings: Tilings, tiles: Traffic) -> Array:
    """All bytes to and from main memory; tiles at the edges are moved whole."""
    pieces_m, pieces_k, pieces_n = tilings.pieces
    n_outside = tilings.order == ORDERS.index("nmk")
    lhs_stays = (pieces_k == 1) & (~n_outside | (pieces_m == 1))
    rhs_stays = (pieces_k == 1) & (n_outside | (pieces_n == 1))
    lhs = pieces_m * pieces_k * np.where(lhs_stays, 1, pieces_n) * tiles.lhs
    rhs = pieces_k * pieces_n * np.where(rhs_stays, 1, pieces_m) * tiles.rhs
    return lhs + rhs + pieces_m * pieces_n * tiles.result


@dataclass(frozen=True, slots=True)
class Bound:
    """The cycles that no kernel can go below: all multiply-adds at the arrays' rate; all operands and the
    result once through main memory."""

    arrays: float
    memory: float

    @property
    def cycles(self) -> float:
        return max(self.arrays, self.memory)


def bound(product: Product, target: Target) -> Bound:
    """The bound of a product; raises ``SystolicError`` if the target has no figures of kernels."""
    kernel, compiler, arrays = _figures(target)
    cells = arrays.rows * arrays.columns * kernel.arrays / ROW_CYCLES.get(product.rhs, 1.0)
    tiles = tile_bytes(one_tiling(product, KernelTiling(product.m, product.k, product.n)), product)
    moved = float((tiles.lhs + tiles.rhs + tiles.result)[0])
    return Bound(product.m * product.k * product.n / cells, moved / compiler.bytes_per_cycle)


# ---- the search ----


def rank_tilings(product: Product, target: Target, most: int = 6) -> list[Choice]:
    """The tilings that are predicted to be the fastest, the best first.

    Raises ``SystolicError`` if the target has no figures of kernels, there is no kernel of the dtype, or no
    tiling fits.
    """
    for dtype in (product.lhs, product.rhs):
        if dtype not in LEAST_ROWS:
            raise SystolicError(
                f"dtype {dtype!r} has no kernel of ours; expected one of {', '.join(LEAST_ROWS)}"
            )
    kernel, compiler, arrays = _figures(target)
    tilings = kernel_tilings(product, compiler)
    scheduled = scheduled_cycles(tilings, product, kernel, (arrays.rows, arrays.columns))
    tiles = tile_bytes(tilings, product)
    cycles = pipeline_cycles(tilings, tiles, scheduled, compiler)
    moved = moved_bytes(tilings, tiles)
    return [
        Choice(tiling_at(tilings, i), float(cycles[i]), float(scheduled[i]), int(moved[i]))
        for i in np.argsort(cycles, kind="stable")[:most].tolist()
    ]


def _figures(target: Target) -> tuple[Kernel, Compiler, Arrays]:
    if target.kernel is None or target.compiler is None or target.arrays is None:
        raise SystolicError(f"target {target.name} has no figures of kernels of our own")
    return target.kernel, target.compiler, target.arrays


def tiling_at(tilings: Tilings, i: int) -> KernelTiling:
    """One of them by itself."""
    m, k, n, order = (int(getattr(tilings, name)[i]) for name in ("m", "k", "n", "order"))
    return KernelTiling(m, k, n, ORDERS[order])


def one_tiling(product: Product, tiling: KernelTiling) -> Tilings:
    """A tiling by itself as arrays of length one."""
    order = ORDERS.index(tiling.order)
    sizes = (np.array([size], np.int64) for size in (tiling.m, tiling.k, tiling.n, order))
    return Tilings((product.m, product.k, product.n), *sizes)
