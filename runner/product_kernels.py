"""Which matrix products of a program kernels of our own compute on a TPU: those that make it the fastest.

A kernel takes its operands from main memory and leaves its result there, where the compiler may have computed
more in one go: the vectors before, the activation after. What that costs shows in the program. So it is
compiled without kernels of ours, with those that win by enough to pay for it (the bytes, and two operations
more), and with all that win. Products count as they are measured by themselves, the rest by estimate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..backends.tpu import Refusal, TpuTarget
from ..backends.tpu_products import ComparedProduct, compare_products
from ..backends.tpu_selection import TpuKernels, products_of
from ..compiler.cost import load_target
from ..compiler.cost.kernels import RESULT_BYTES, Product
from ..compiler.cost.targets import DTYPE_BYTES
from ..compiler.program import Program


@dataclass(frozen=True, slots=True)
class ProductKernel:
    """A product of a program: the nodes that it is, both kernels, the cycles that ours might need besides to
    hand over its operand and its result to operations of their own, and whether it ``is_ours``."""

    nodes: tuple[str, ...]
    compared: ComparedProduct
    handover_cycles: float
    is_ours: bool = False

    @property
    def gained_cycles(self) -> float:
        """How much faster our kernel is by itself; none where either is refused."""
        ours, compilers = self.compared.kernel, self.compared.emitter
        if isinstance(ours, Refusal) or isinstance(compilers, Refusal):
            return 0.0
        return compilers.cycles - ours.cycles

    @property
    def cycles(self) -> float:
        """All nodes by the kernel that they have; 0 where that could not be measured."""
        used = self.compared.kernel if self.is_ours else self.compared.emitter
        return 0.0 if isinstance(used, Refusal) else len(self.nodes) * used.cycles

    @property
    def refusal(self) -> str | None:
        """Why the compiler does not take one of the kernels; None where it takes both."""
        found = (self.compared.kernel, self.compared.emitter)
        return next((each.reason for each in found if isinstance(each, Refusal)), None)

    def refused(self, reason: str) -> ProductKernel:
        """The same left to the compiler, which refused the kernel in its program."""
        return replace(self, is_ours=False, compared=replace(self.compared, kernel=Refusal(reason)))

    def to_json(self) -> dict[str, Any]:
        compared = self.compared
        sides = {"ours": compared.kernel, "compiler": compared.emitter}
        return {
            "product": compared.product.name,
            "nodes": list(self.nodes),
            "kernel": "ours" if self.is_ours else "compiler",
            "tiling": asdict(compared.choice.tiling),
            "handover_cycles": round(self.handover_cycles),
            "refusal": self.refusal,
            **{name: None if isinstance(side, Refusal) else side.to_json() for name, side in sides.items()},
        }


def kernel_choices(products: Sequence[ProductKernel]) -> list[tuple[ProductKernel, ...]]:
    """Without kernels of ours, with those that pay for handing over, and with all that win by themselves."""
    least = (lambda each: math.inf, lambda each: each.handover_cycles, lambda each: 0.0)
    found = [
        tuple(replace(each, is_ours=each.gained_cycles > wanted(each)) for each in products)
        for wanted in least
    ]
    return list(dict.fromkeys(found))


def compare_kernels(programs: Sequence[Program], machine: TpuTarget) -> dict[str, tuple[ProductKernel, ...]]:
    """Every product of every program by the program's name, measured by itself; nothing for targets without
    figures of kernels. Raises ``SystolicError`` as ``compare_products`` does."""
    target = load_target(machine.name)
    if target.kernel is None or target.compiler is None:
        return {program.name: () for program in programs}
    nodes: dict[str, dict[Product, list[str]]] = {}
    for program in programs:
        found = nodes.setdefault(program.name, {})
        for node, product in products_of(program.graph).items():
            found.setdefault(product, []).append(node.name)
    distinct = list(dict.fromkeys(product for found in nodes.values() for product in found))
    compared = dict(zip(distinct, compare_products(distinct, machine), strict=True))
    rate, launch = target.compiler.bytes_per_cycle, target.compiler.launch_cycles
    return {
        name: tuple(
            ProductKernel(tuple(listed), compared[product], 2 * launch + _handed_over(product) / rate)
            for product, listed in found.items()
        )
        for name, found in nodes.items()
    }


def chosen_kernels(products: Iterable[ProductKernel]) -> TpuKernels:
    """The kernels of ours that are used."""
    return TpuKernels(
        {each.compared.product: each.compared.choice.tiling for each in products if each.is_ours}
    )


def _handed_over(product: Product) -> int:
    """Bytes that move beside the kernel: lhs is written, the result is read once more and written again."""
    lhs = DTYPE_BYTES[product.lhs] * product.m * product.k
    return lhs + 2 * RESULT_BYTES[product.result] * product.m * product.n
