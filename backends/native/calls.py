"""Nodes that kernels compute, and how StableHLO calls a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Node
from ...ir.types import TensorType
from ..stablehlo_text import Block, PerLayer, Results, Value, mlir_type, mlir_types
from . import Kernels

FOR_LAYER = "_for_layer"  # behind the name of a kernel: it is given what all layers have, and which is meant


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
    target, operands = _for_layer(block, target, operands)
    return block.call(_custom_call(target, operands, (type_,), attributes), operands, type_)


def call_kernel_for_many(
    block: Block,
    target: str,
    operands: Sequence[Value],
    types: Sequence[TensorType],
    attributes: str = "",
    aliases: Sequence[int] = (),
) -> tuple[Value, ...]:
    """The same with several results; ``aliases`` are the operands whose memory they take, by place."""
    target, operands = _for_layer(block, target, operands)
    signature = f"({mlir_types(operands)}) -> ({', '.join(map(mlir_type, types))})"
    call = _custom_call(target, operands, types, attributes, aliases)
    return block.emit_many(f"{call} : {signature}", types)


def blank_program(type_: TensorType, kernels: Kernels) -> str:
    """StableHLO of a program that yields zeros."""
    shown, call = mlir_type(type_), _custom_call(kernels.target("blank"), (), (type_,), "")
    body = f"    %0 = {call} : () -> {shown}\n    return %0 : {shown}"
    return f"module @blank {{\n  func.func public @main() -> {shown} {{\n{body}\n  }}\n}}\n"


def _for_layer(block: Block, target: str, operands: Sequence[Value]) -> tuple[str, Sequence[Value]]:
    """The call of a kernel with what a layer has of its own: see ``layers.h``."""
    own = next((operand for operand in operands if isinstance(operand, PerLayer)), None)
    if own is None:
        return target, operands
    each = [operand.members if isinstance(operand, PerLayer) else (operand,) for operand in operands]
    counts = np.array([len(members) for members in each], np.int32)
    table = block.constant(counts, TensorType(counts.shape, "i32"))
    return target + FOR_LAYER, (own.index, table, *(member for members in each for member in members))


def _custom_call(
    target: str,
    operands: Sequence[Value],
    types: Sequence[TensorType],
    attributes: str,
    aliases: Sequence[int] = (),
) -> str:
    names = ", ".join(operand.name for operand in operands)
    pairs = ", ".join(
        f"#stablehlo.output_operand_alias<output_tuple_indices = [{result}], operand_index = {operand}, "
        "operand_tuple_indices = []>"
        for result, operand in enumerate(aliases)
    )
    in_place = f"output_operand_aliases = [{pairs}], " if aliases else ""
    return (
        f"stablehlo.custom_call @{target}({names}) {{api_version = 4 : i32, "
        f"backend_config = {{{attributes}}}, {in_place}"
        f"operand_layouts = [{', '.join(_layout(operand.type) for operand in operands)}], "
        f"result_layouts = [{', '.join(map(_layout, types))}]}}"
    )


def _layout(type_: TensorType) -> str:
    order = list(range(type_.rank))[::-1]
    return f"dense<{order}> : tensor<{type_.rank}xindex>"
