"""What an op is: one function. Its body is the NumPy semantics, its signature the op's signature.

Arrays are positional, parameters keyword-only; the docstring is the definition. The decorator
``define`` names the type rule, the work rule and, for the ops of time, which positions each operand
reads. Everything that depends on a target (StableHLO, jax.numpy, emitted NumPy) is a table of that
target, keyed by op name, and a test asserts that each table covers the whole op set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .time import Access
from .types import TensorType, ValueType

Params = Mapping[str, Any]
Semantics = Callable[..., Any]
TypeRule = Callable[..., ValueType]
AccessRule = Callable[..., tuple[Access, ...]]


class TypeMismatch(ValueError):
    """Operands that do not fit an op; becomes a ``GraphError`` with the user's source line."""


@dataclass(frozen=True, slots=True)
class Work:
    """What computing one value costs: multiply-adds on the array, elementwise operations on the
    vector unit, and bytes moved that are neither (a gathered row)."""

    multiply_adds: int = 0
    elementwise: int = 0
    bytes_moved: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.multiply_adds + other.multiply_adds,
            self.elementwise + other.elementwise,
            self.bytes_moved + other.bytes_moved,
        )


# Sizes in, work out: operand types with every dimension a number, the result type, the parameters.
WorkRule = Callable[[tuple[TensorType, ...], ValueType, Params], Work]


@dataclass(frozen=True, eq=False, slots=True)
class Op:
    """One op: its name, NumPy semantics, type rule and work rule. Compared by identity."""

    name: str
    numpy: Semantics
    infer: TypeRule
    work: WorkRule
    kind: str = "tensor"  # "elementwise" | "tensor" | "source" | "time" | "program"
    accesses: AccessRule | None = None

    def __repr__(self) -> str:
        return self.name


def no_work(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
    """A view, a wire or a constant."""
    return Work()


def per_element(operations: int) -> WorkRule:
    """``operations`` vector operations for each element of the largest operand or result."""

    def work(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
        types = [*operands, result] if isinstance(result, TensorType) else list(operands)
        return Work(elementwise=operations * max((t.size for t in types), default=0))

    return work


def moves_result(operands: tuple[TensorType, ...], result: ValueType, params: Params) -> Work:
    """Reads and writes each element of the result once."""
    return Work(bytes_moved=2 * result.bytes if isinstance(result, TensorType) else 0)


def define(
    infer: TypeRule,
    work: WorkRule = no_work,
    *,
    kind: str = "tensor",
    accesses: AccessRule | None = None,
) -> Callable[[Semantics], Op]:
    """Turns a NumPy function into an op of the same name (without a trailing underscore)."""

    def decorate(semantics: Semantics) -> Op:
        return Op(semantics.__name__.rstrip("_"), semantics, infer, work, kind, accesses)

    return decorate
