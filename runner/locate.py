"""What a MODEL argument names: a checkpoint, a compiled directory, or a function in a Python file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ..compiler.trace import trace
from ..ir.errors import SystolicError
from ..ir.graph import Graph
from ..models.load import Model, load
from .artifacts import compiled_model, is_compiled, open_compiled
from .executable import Executable, compile
from .graph_model import model_of_graph
from .options import GRAPH_CAPACITY


def open_model(name: str, capacity: int | None = None, dtype: str | None = None) -> Model:
    """The model of that name; a traced function is made for ``capacity`` positions."""
    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py"):
        return model_of_graph(trace_function(Path(file), function), None, capacity or GRAPH_CAPACITY)
    return compiled_model(Path(name)) if is_compiled(name) else load(name, dtype or "f32")


def open_executable(
    name: str,
    backend: str,
    *,
    batch: int | None = None,
    capacity: int | None = None,
    state: str | None = None,
    dtype: str | None = None,
) -> Executable:
    """The executable of a model; options that are None take their defaults, or what was compiled."""
    if is_compiled(name):
        return open_compiled(
            Path(name), backend, {"batch": batch, "capacity": capacity, "state": state, "dtype": dtype}
        )
    model = open_model(name, capacity, dtype)
    batch = 1 if batch is None else batch
    return compile(model, backend=backend, batch=batch, capacity=capacity, state=state or "auto")


def trace_function(file: Path, function: str) -> Graph:
    """The graph of a function that a Python file defines; ``SystolicError`` if there is none."""
    spec = importlib.util.spec_from_file_location(f"traced_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise SystolicError(f"{file} does not exist; expected path/to/file.py:function")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    except SystolicError:
        raise
    except Exception as error:  # whatever the user's file raises
        raise SystolicError(f"{file} cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(getattr(module, function, None)):
        raise SystolicError(f"{file} has no function {function!r}")
    return trace(getattr(module, function))
