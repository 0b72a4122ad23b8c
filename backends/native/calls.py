"""Nodes that kernels compute, and how StableHLO calls a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...ir.graph import Node
from ...ir.types import TensorType
from ..stablehlo_text import Block, Results, Value, mlir_type, mlir_types


@dataclass(frozen=True)
class Selected:
    """A node that a kernel computes, and from what; or ``members``, of which each is one of its results."""

    operands: tuple[Node, ...]
    lower: Callable[..., Results]
    members: tuple[Node, ...] = ()


def call_kernel(
    block: Block, target: str, operands: Sequence[Value], type_: TensorType, attributes: str
) -> Value:
    """A custom call whose operands and result lie row by row."""
    return block.call(_custom_call(target, operands, (type_,), attributes), operands, type_)


def call_kernel_for_many(
    block: Block, target: str, operands: Sequence[Value], types: Sequence[TensorType], attributes: str = ""
) -> tuple[Value, ...]:
    """The same with several results."""
    signature = f"({mlir_types(operands)}) -> ({', '.join(map(mlir_type, types))})"
    return block.emit_many(f"{_custom_call(target, operands, types, attributes)} : {signature}", types)


def _custom_call(target: str, operands: Sequence[Value], types: Sequence[TensorType], attributes: str) -> str:
    names = ", ".join(operand.name for operand in operands)
    return (
        f"stablehlo.custom_call @{target}({names}) {{api_version = 4 : i32, "
        f"backend_config = {{{attributes}}}, "
        f"operand_layouts = [{', '.join(_layout(operand.type) for operand in operands)}], "
        f"result_layouts = [{', '.join(map(_layout, types))}]}}"
    )


def _layout(type_: TensorType) -> str:
    order = list(range(type_.rank))[::-1]
    return f"dense<{order}> : tensor<{type_.rank}xindex>"
