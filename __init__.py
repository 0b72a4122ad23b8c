"""systolic: a compiler for autoregressive models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends.jax_table import Function
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
    from .compiler.program import Program
    from .compiler.recording import scope
    from .compiler.stream import Stream, matmul, reshape
    from .compiler.trace import trace
    from .ir.errors import CausalityError, GraphError, SystolicError
    from .ir.graph import Graph
    from .ir.types import Size
    from .models.model import Model
    from .runner.compilation import compile
    from .runner.executable import Executable
    from .runner.kept_models import load
    from .runner.scheduler import QueueFull, Scheduler
    from .runner.sources import EncoderStates

# Where names are defined that are none of the language. A module is loaded when one of them is asked for:
# a start from what an earlier process made needs few of them.
_HOMES = {
    "CausalityError": "ir.errors",
    "EncoderStates": "runner.sources",
    "Executable": "runner.executable",
    "Graph": "ir.graph",
    "GraphError": "ir.errors",
    "Model": "models.model",
    "QueueFull": "runner.scheduler",
    "Scheduler": "runner.scheduler",
    "Size": "ir.types",
    "Stream": "compiler.stream",
    "SystolicError": "ir.errors",
    "compile": "runner.compilation",
    "load": "runner.kept_models",
    "matmul": "compiler.stream",
    "reshape": "compiler.stream",
    "scope": "compiler.recording",
    "trace": "compiler.trace",
}

__version__ = "0.1.0"


def to_jax(program: Program | Graph) -> Function:
    """A program as a JAX function ``(parameters, inputs, states) -> (results, states)``.

    It works under ``jit``, ``grad`` and ``vmap``; all arguments are dictionaries of arrays by name.
    """
    from .backends.jax_table import to_jax as convert  # loads jax, which takes a second or two

    return convert(program)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module("." + _HOMES.get(name, "compiler.language"), __name__)
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
