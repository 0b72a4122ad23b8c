"""systolic: a compiler for autoregressive models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .compiler.language import (
    absolute,
    add_at,
    arange,
    argmax,
    argsort,
    bitwise_and,
    bitwise_or,
    bitwise_xor,
    broadcast_to,
    cast,
    concatenate,
    constant,
    cos,
    cumulative_sum,
    cut,
    delay,
    einsum,
    erf,
    exp,
    feedback,
    floor,
    history,
    log,
    log1p,
    max,
    max_at,
    maximum,
    mean,
    min,
    minimum,
    parameter,
    position,
    rsqrt,
    shift_left,
    shift_right,
    sigmoid,
    sin,
    softmax,
    sort,
    split,
    sqrt,
    stack,
    sum,
    take,
    tanh,
    top_k,
    transpose,
    where,
    whole,
    zeros,
)
from .compiler.recording import scope
from .compiler.stream import Stream, matmul, reshape
from .compiler.trace import trace
from .ir.errors import CausalityError, GraphError, SystolicError
from .ir.graph import Graph
from .ir.types import Size
from .models.load import Model, load
from .runner.executable import Executable, compile
from .runner.scheduler import QueueFull, Scheduler
from .runner.sources import EncoderStates

if TYPE_CHECKING:
    from .backends.jax_table import Function
    from .compiler.program import Program

__version__ = "0.1.0"


def to_jax(program: Program | Graph) -> Function:
    """A program as a JAX function ``(parameters, inputs, states) -> (results, states)``.

    It works under ``jit``, ``grad`` and ``vmap``; all arguments are dictionaries of arrays by name.
    """
    from .backends.jax_table import to_jax as convert  # loads jax, which takes a second or two

    return convert(program)


__all__ = [
    "CausalityError",
    "EncoderStates",
    "Executable",
    "Graph",
    "GraphError",
    "Model",
    "QueueFull",
    "Scheduler",
    "Size",
    "Stream",
    "SystolicError",
    "absolute",
    "add_at",
    "arange",
    "argmax",
    "argsort",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "broadcast_to",
    "cast",
    "compile",
    "concatenate",
    "constant",
    "cos",
    "cumulative_sum",
    "cut",
    "delay",
    "einsum",
    "erf",
    "exp",
    "feedback",
    "floor",
    "history",
    "load",
    "log",
    "log1p",
    "matmul",
    "max",
    "max_at",
    "maximum",
    "mean",
    "min",
    "minimum",
    "parameter",
    "position",
    "reshape",
    "rsqrt",
    "scope",
    "shift_left",
    "shift_right",
    "sigmoid",
    "sin",
    "softmax",
    "sort",
    "split",
    "sqrt",
    "stack",
    "sum",
    "take",
    "tanh",
    "to_jax",
    "top_k",
    "trace",
    "transpose",
    "where",
    "whole",
    "zeros",
]
