"""Single matrix products as the TPU compiler has them: kernels of our own, and what it emits itself.

Both are measured in one way: the cycles of their scheduled instructions, and main memory as ``cost.kernels``
has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.cost.kernels import (
    RESULT_BYTES,
    Bound,
    Choice,
    KernelTiling,
    Product,
    Traffic,
    bound,
    moved_bytes,
    one_tiling,
    pipeline_cycles,
    rank_tilings,
    tile_bytes,
)
from ..compiler.cost.targets import DTYPE_BYTES, Compiler, load_target
from ..compiler.cost.tiling import Tilings
from .stablehlo_text import ELEMENT_TYPES
from .tpu import Refusal, RefusedError, TpuTarget, compile_each, compile_for_tpu
from .tpu_hlo import Module, Operation, parse_module
from .tpu_kernels import kernel_operation

_ROWS, _LANES = 8, 128  # of a hardware tile, in which the compiler counts its windows


@dataclass(frozen=True, slots=True)
class Measured:
    """A product by one kernel or emitter. ``cycles``: with main memory; ``scheduled_cycles``: of its
    instructions alone; ``estimated_cycles``: the compiler's own estimate, before it schedules (None for
    our kernels); ``tiles``: sizes m, k, n of its tiles, None where its windows do not tell them."""

    cycles: float
    scheduled_cycles: int
    hbm_bytes: int
    estimated_cycles: int | None = None
    emitter: str | None = None
    tiles: tuple[int, int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        figures = {name: getattr(self, name) for name in self.__slots__}
        return figures | {"cycles": round(self.cycles), "tiles": self.tiles and list(self.tiles)}


@dataclass(frozen=True, slots=True)
class ComparedProduct:
    """One product: the tiling that the search takes with its prediction (of several that were tried, the
    fastest), that kernel and the compiler's own emitter as measured, and the bound."""

    product: Product
    choice: Choice
    kernel: Measured | Refusal
    emitter: Measured | Refusal
    bound: Bound


def compare_products(products: Sequence[Product], machine: TpuTarget) -> list[ComparedProduct]:
    """Compiles both kernels of each product. Raises ``SystolicError`` where the compiler is absent, and for
    targets that have no figures of kernels."""
    target = load_target(machine.name)
    most = target.kernel.tried if target.kernel else 1
    choices = [(product, choice) for product in products for choice in rank_tilings(product, target, most)]
    assert target.compiler is not None, "rank_tilings raises without"
    kernels = [(product, choice.tiling) for product, choice in choices]
    measured = measure_kernels(kernels, machine, target.compiler)
    found: dict[Product, list[tuple[Choice, Measured | Refusal]]] = {product: [] for product in products}
    for (product, choice), kernel in zip(choices, measured, strict=True):
        found[product].append((choice, kernel))
    emitted = measure_emitters(products, machine, target.compiler)
    return [
        ComparedProduct(product, *min(found[product], key=_measured_cycles), emitter, bound(product, target))
        for product, emitter in zip(products, emitted, strict=True)
    ]


def _measured_cycles(tried: tuple[Choice, Measured | Refusal]) -> float:
    _, kernel = tried
    return kernel.cycles if isinstance(kernel, Measured) else math.inf


def measure_kernels(
    kernels: Sequence[tuple[Product, KernelTiling]], target: TpuTarget, compiler: Compiler
) -> list[Measured | Refusal]:
    """Kernels of our own in their order, compiled in one program; of one that is refused, both halves."""
    if not kernels:
        return []
    try:
        compiled = compile_for_tpu(
            {"kernels": kernels_text(kernels)}, target, scheduled=True, prefetched=False
        )
    except RefusedError as error:
        if len(kernels) == 1:
            return [Refusal(str(error))]
        parts = (kernels[: len(kernels) // 2], kernels[len(kernels) // 2 :])
        return [each for part in parts for each in measure_kernels(part, target, compiler)]
    calls = [op for op, _ in parse_module(compiled["kernels"].text).scheduled if op.opcode == "custom-call"]
    cycles = {call.node: call.scheduled_cycles for call in calls}
    return [
        _of_kernel(product, tiling, cycles[f"kernel.{i}"] or 0, compiler)
        for i, (product, tiling) in enumerate(kernels)
    ]


def measure_emitters(
    products: Sequence[Product], target: TpuTarget, compiler: Compiler
) -> list[Measured | Refusal]:
    """Products that are left to the compiler, one program each; its copies on the way are included. It may
    refuse one that it takes inside a larger program."""
    texts = {f"product{i}": product_text(product) for i, product in enumerate(products)}
    found = compile_each(texts, target, scheduled=True, prefetched=False).values()
    return [
        each if isinstance(each, Refusal) else _of_emitter(product, parse_module(each.text), compiler)
        for product, each in zip(products, found, strict=True)
    ]


def _of_kernel(product: Product, tiling: KernelTiling, scheduled: int, compiler: Compiler) -> Measured:
    one = one_tiling(product, tiling)
    tiles = tile_bytes(one, product)
    cycles = pipeline_cycles(one, tiles, np.array([scheduled]), compiler)
    moved = int(moved_bytes(one, tiles)[0])
    return Measured(float(cycles[0]), scheduled, moved, None, "ours", (tiling.m, tiling.k, tiling.n))


def _of_emitter(product: Product, module: Module, compiler: Compiler) -> Measured:
    operations = [op for op, _ in module.scheduled if op.scheduled_cycles is not None]
    main = next(op for op in operations if "product" in (op.node, *(part.node for part in module.inside(op))))
    tilings, tiles = _pipeline(product, main)
    scheduled = main.scheduled_cycles or 0
    cycles = float(pipeline_cycles(tilings, tiles, np.array([scheduled]), compiler)[0])
    moved = int(moved_bytes(tilings, tiles)[0])
    for other in operations:  # copies on the way, all of them through main memory
        if other is not main:
            size = 2 * sum(array.bytes for array in other.arrays)
            cycles += max(other.scheduled_cycles or 0, size / compiler.bytes_per_cycle)
            moved, scheduled = moved + size, scheduled + (other.scheduled_cycles or 0)
    is_tiled = tilings.shape == (product.m, product.k, product.n)
    sizes = (int(tilings.m[0]), int(tilings.k[0]), int(tilings.n[0])) if is_tiled else None
    return Measured(cycles, scheduled, moved, main.cycles, main.emitter or "vector unit", sizes)


def _pipeline(product: Product, operation: Operation) -> tuple[Tilings, Traffic]:
    """The tiles that the compiler's windows tell of; else equal shares of rhs and result in each step."""
    windows = operation.windows
    steps = windows.get("iteration", ())
    if len(steps) == 3 and len(windows.get("output", ())) == 2 and len(windows.get("input", ())) == 2:
        rows, columns = windows["output"]
        tiling = KernelTiling(rows * _ROWS, windows["input"][1] * _LANES, columns * _LANES)
        one = one_tiling(product, tiling)
        if tuple(int(pieces[0]) for pieces in one.pieces) == (steps[1], steps[2], steps[0]):
            return one, tile_bytes(one, product)
    count = max(int(np.prod(steps)) if steps else 1, 1)
    lhs = DTYPE_BYTES[product.lhs] * product.m * product.k
    rhs = DTYPE_BYTES[product.rhs] * product.k * product.n
    result = RESULT_BYTES[product.result] * product.m * product.n
    ones = np.ones(1, np.int64)
    shares = Traffic(np.array([lhs]), np.array([rhs / count]), np.array([result / count]))
    return Tilings((1, 1, count), ones, ones, ones, np.zeros(1, np.int64)), shares


# ---- StableHLO of one product ----


def kernels_text(kernels: Sequence[tuple[Product, KernelTiling]]) -> str:
    """A program that runs each kernel on operands of its own types; results in their order."""
    arguments: dict[str, str] = {}
    lines, types = [], []
    for i, (product, tiling) in enumerate(kernels):
        lhs, rhs, result = _types(product)
        x = arguments.setdefault(lhs, f"%operand{len(arguments)}")
        w = arguments.setdefault(rhs, f"%operand{len(arguments)}")
        operation = kernel_operation(product, tiling, x, w, f"kernel.{i}")
        lines.append(f'    %{i} = {operation} : ({lhs}, {rhs}) -> {result} loc("kernel.{i}")')
        types.append(result)
    listed = [(name, type_) for type_, name in arguments.items()]
    return _function(listed, lines, [f"%{i}" for i in range(len(kernels))], types)


def product_text(product: Product) -> str:
    """A program that leaves the product to the compiler."""
    lhs, rhs, result = _types(product)
    lines, operands, types = [], ["%x", "%w"], [lhs, rhs]
    if product.lhs != product.rhs:  # as in programs of ours, whose weights are widened when they are read
        wide = rhs.replace(ELEMENT_TYPES[product.rhs], ELEMENT_TYPES[product.lhs])
        lines.append(f'    %wide = stablehlo.convert %w : ({rhs}) -> {wide} loc("wide")')
        operands[1], types[1] = "%wide", wide
    summed = f"[1] x [{1 if product.is_transposed else 0}]"
    lines.append(
        f"    %0 = stablehlo.dot_general {', '.join(operands)}, contracting_dims = {summed} "
        f': ({", ".join(types)}) -> {result} loc("product")'
    )
    return _function([("%x", lhs), ("%w", rhs)], lines, ["%0"], [result])


def _types(product: Product) -> tuple[str, str, str]:
    rhs = (product.n, product.k) if product.is_transposed else (product.k, product.n)
    shapes = ((product.m, product.k), rhs, (product.m, product.n))
    names = (product.lhs, product.rhs, product.result)
    return tuple(  # type: ignore[return-value]
        f"tensor<{rows}x{columns}x{ELEMENT_TYPES[name]}>"
        for (rows, columns), name in zip(shapes, names, strict=True)
    )


def _function(
    arguments: Sequence[tuple[str, str]], lines: Sequence[str], values: Sequence[str], types: Sequence[str]
) -> str:
    listed = ", ".join(f"{name}: {type_}" for name, type_ in arguments)
    body = "\n".join(lines)
    return (
        f"module @product {{\n  func.func public @main({listed}) -> ({', '.join(types)}) {{\n{body}\n"
        f"    return {', '.join(values)} : {', '.join(types)}\n  }}\n}}\n"
    )
