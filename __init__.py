"""systolic: a compiler for autoregressive models."""

from __future__ import annotations

from .compiler.language import (
    absolute,
    arange,
    argmax,
    broadcast_to,
    cast,
    concatenate,
    constant,
    cos,
    cumulative_sum,
    delay,
    einsum,
    erf,
    exp,
    feedback,
    floor,
    history,
    log,
    log1p,
    matmul,
    max,
    maximum,
    mean,
    min,
    minimum,
    parameter,
    position,
    reshape,
    rsqrt,
    sigmoid,
    sin,
    softmax,
    split,
    sqrt,
    stack,
    sum,
    take,
    tanh,
    transpose,
    where,
    whole,
    zeros,
)
from .compiler.trace import Stream, scope, trace
from .ir.errors import CausalityError, GraphError, SystolicError
from .ir.graph import Graph

__version__ = "0.1.0"

__all__ = [name for name in dir() if not name.startswith("_")]
