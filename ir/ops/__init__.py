"""The op table: every op that a graph can contain, by name."""

from __future__ import annotations

from ..op import Op, TypeMismatch, Work
from . import bits, elementwise, linear, order, packing, program, routing, shape, sources

OPS: dict[str, Op] = {
    op.name: op
    for module in (sources, elementwise, bits, packing, shape, linear, order, routing, program)
    for op in vars(module).values()
    if isinstance(op, Op)
}

__all__ = ["OPS", "Op", "TypeMismatch", "Work"]
