"""A matmul whose weights are kept as small integers with a scale for each group of them.

``int4-32``: 4 bits each, and 32 of a row share a scale, which counts as 2 bytes, as all floats do here. The
arrays multiply bf16, so the vector unit makes numbers of the integers: either as they come on chip (fused),
again for every pass over them, or once, to main memory, from where a bf16 matmul reads them (widened first).
The faster form is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...ir.errors import SystolicError
from . import tpu
from .targets import DTYPE_BYTES, RESULT_BYTES, Arrays, Compiler, Target
from .tiling import repeats, traffic

MULTIPLIED = "bf16"
# Of the vector unit per weight: a conversion and a product; four bits are cut out and centred first.
OPERATIONS: Mapping[int, int] = {8: 2, 4: 4}


@dataclass(frozen=True, slots=True)
class Groups:
    """``bits`` of a weight, ``size`` weights of a row to a scale."""

    bits: int
    size: int

    def kept_bytes(self, k: int, n: int) -> int:
        """Integers and scales of a matrix [k, n], groups along k."""
        return -(-k * n * self.bits // 8) + -(-k // self.size) * n * DTYPE_BYTES[MULTIPLIED]


@dataclass(frozen=True, slots=True)
class Form:
    """One way to compute the product: cycles, what decides, the tiling, bytes of lhs, weights and result."""

    cycles: float
    bound: str
    tiling: dict[str, int | str]
    moved: tuple[int, int, int]

    def to_json(self) -> dict[str, int | str]:
        return self.tiling | {"cycles": round(self.cycles)}


def groups_of(dtype: str) -> Groups | None:
    """``int4-32`` and the like; None for any other name."""
    found = re.fullmatch(r"int([48])-([1-9]\d*)", dtype)
    return Groups(int(found[1]), int(found[2])) if found else None


def forms(m: int, k: int, n: int, groups: Groups, target: Target) -> tuple[Form, Form]:
    """Fused, and widened first. Raises ``SystolicError`` for targets without constants of a compiler."""
    if target.compiler is None or target.arrays is None or target.vector is None:
        raise SystolicError(
            f"grouped integers are predicted for TPU generations with a compiler, not {target.name}"
        )
    cycles = OPERATIONS[groups.bits] / target.vector.lanes
    kept = tpu.Kept(groups.kept_bytes(k, n) / (k * n), cycles)
    fused = _matmul(m, k, n, target.arrays, target.compiler, kept)
    plain = _matmul(m, k, n, target.arrays, target.compiler, None)
    written = groups.kept_bytes(k, n) + k * n * DTYPE_BYTES[MULTIPLIED]
    memory, vector = written / target.compiler.bytes_per_cycle, k * n * cycles
    lhs, rhs, result = plain.moved
    first = replace(
        plain,
        cycles=plain.cycles + target.compiler.launch_cycles + max(memory, vector),
        bound=plain.bound if plain.cycles > max(memory, vector) else _longest(memory=memory, vector=vector),
        moved=(lhs, rhs + written, result),
    )
    return _named(fused, "fused"), _named(first, "widened first")


def _named(form: Form, name: str) -> Form:
    return replace(form, tiling=form.tiling | {"weights": name})


def _longest(**sides: float) -> str:
    return max(sides, key=sides.__getitem__)


def _matmul(m: int, k: int, n: int, arrays: Arrays, compiler: Compiler, kept: tpu.Kept | None) -> Form:
    width = DTYPE_BYTES[MULTIPLIED]
    weight = kept.bytes if kept else width
    if m == 1 and compiler.matvec_on_vector_unit:
        memory, vector = tpu.matvec_cycles(k, n, MULTIPLIED, compiler, kept)
        moved = (width * k, round(weight * k * n), RESULT_BYTES[MULTIPLIED] * n)
        bound = _longest(memory=memory, vector=vector, launch=compiler.launch_cycles)
        return Form(compiler.launch_cycles + memory + vector, bound, {"unit": "vector"}, moved)
    tilings = tpu.searched_tilings((m, k, n), MULTIPLIED, compiler)
    found = tpu.estimate(tilings, MULTIPLIED, arrays, compiler, kept=kept)
    best = int(np.argmin(found.cycles))
    one = tilings[np.array([best])]
    whole, passes = traffic(one, MULTIPLIED), int(repeats(one, "kn")[0])
    made = k * n * passes * (kept.cycles if kept else 0.0)
    busy = float(found.arrays[best])
    bound = _longest(
        memory=float(found.memory[best]),
        arrays=0.0 if made >= busy else busy,
        vector=max(made, float(found.results)),
        launch=compiler.launch_cycles,
    )
    moved = (int(whole.lhs[0]), round(int(whole.rhs[0]) / width * weight), int(whole.result[0]))
    return Form(float(found.cycles[best]), bound, tilings.describe(best) | {"weight passes": passes}, moved)
