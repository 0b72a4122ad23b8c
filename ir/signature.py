"""The signature of an op, read off its function: how many operands, which parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from .op import Op

REQUIRED = inspect.Parameter.empty


@cache
def keyword_defaults(op: Op) -> Mapping[str, Any]:
    """The parameters of an op, each with its default or ``REQUIRED``."""
    parameters = inspect.signature(op.numpy).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@cache
def operand_count(op: Op) -> int | None:
    """How many operands an op takes; None for any number."""
    kinds = [p.kind for p in inspect.signature(op.numpy).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    return kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
