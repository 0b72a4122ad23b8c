"""Which matrix products of a program kernels of our own compute on a TPU: those that are measured faster.

A kernel takes its operands from main memory and leaves its result there, where the compiler may have computed
more in one go: the vectors before, the activation after. What that costs is added to the kernel's side: the
bytes, and two operations more. A kernel that the compiler refuses is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..backends.tpu import TpuTarget
from ..backends.tpu_products import ComparedProduct, Refusal, compare_products
from ..backends.tpu_selection import TpuKernels, products_of
from ..compiler.cost import load_target
from ..compiler.cost.kernels import RESULT_BYTES, Product
from ..compiler.cost.targets import DTYPE_BYTES
from ..compiler.program import Program


@dataclass(frozen=True, slots=True)
class ProductKernel:
    """A product of a program: the nodes that it is, both kernels, and the cycles that ours needs besides to
    hand over its operand and its result to operations of their own."""

    nodes: tuple[str, ...]
    compared: ComparedProduct
    handover_cycles: float

    @property
    def cycles(self) -> float:
        """Those of our kernel, all in; infinite where it is refused."""
        kernel = self.compared.kernel
        return math.inf if isinstance(kernel, Refusal) else kernel.cycles + self.handover_cycles

    @property
    def is_ours(self) -> bool:
        return self.cycles < self.compared.emitter.cycles

    @property
    def refusal(self) -> str | None:
        """Why the compiler does not take our kernel; None where it does."""
        kernel = self.compared.kernel
        return kernel.reason if isinstance(kernel, Refusal) else None

    def refused(self, reason: str) -> ProductKernel:
        """The same left to the compiler, which refused the kernel in its program."""
        return replace(self, compared=replace(self.compared, kernel=Refusal(reason)))

    def to_json(self) -> dict[str, Any]:
        compared, kernel = self.compared, self.compared.kernel
        return {
            "product": compared.product.name,
            "nodes": list(self.nodes),
            "kernel": "ours" if self.is_ours else "compiler",
            "tiling": asdict(compared.choice.tiling),
            "cycles": None if isinstance(kernel, Refusal) else round(self.cycles),
            "handover_cycles": round(self.handover_cycles),
            "refusal": self.refusal,
            "ours": None if isinstance(kernel, Refusal) else kernel.to_json(),
            "compiler": compared.emitter.to_json(),
        }


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
    """The kernels of ours that are faster."""
    return TpuKernels(
        {each.compared.product: each.compared.choice.tiling for each in products if each.is_ours}
    )


def _handed_over(product: Product) -> int:
    """Bytes that move beside the kernel: lhs is written, the result is read once more and written again."""
    lhs = DTYPE_BYTES[product.lhs] * product.m * product.k
    return lhs + 2 * RESULT_BYTES[product.result] * product.m * product.n
