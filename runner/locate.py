"""What a MODEL argument names: a checkpoint, a compiled directory, or a function in a Python file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.errors import SystolicError
from .compilation import compile
from .files import is_compiled
from .kept_models import load
from .options import GRAPH_CAPACITY

if TYPE_CHECKING:
    from ..ir.graph import Graph
    from ..models.model import Model
    from .executable import Executable

PROMPT = "prompt"  # how a learned prompt is chosen that is the only adapter


def open_model(
    name: str,
    capacity: int | None = None,
    dtype: str | None = None,
    adapters: Sequence[Path] = (),
    *,
    is_to_run: bool = False,
) -> Model:
    """The model of that name; a traced function is made for ``capacity`` positions. ``adapters`` are merged
    into the weights of a checkpoint. For one that ``is_to_run``, what that takes begins to be loaded."""
    file, colon, function = name.rpartition(":")
    is_function = bool(colon) and file.endswith(".py")
    if adapters and (is_function or is_compiled(name)):
        raise SystolicError(f"{name} is no checkpoint, and only one takes an adapter")
    if is_function:
        from .graph_model import model_of_graph

        return model_of_graph(trace_function(Path(file), function), None, capacity or GRAPH_CAPACITY)
    if is_compiled(name):
        from .artifacts import compiled_model

        return compiled_model(Path(name))
    if is_to_run:
        return load(name, dtype or "f32", adapter=adapters)
    from ..models.load import load as read

    return read(name, dtype or "f32", adapter=adapters)


def open_executable(
    name: str,
    backend: str,
    *,
    batch: int | None = None,
    capacity: int | None = None,
    state: str | None = None,
    state_dtype: str | None = None,
    dtype: str | None = None,
    roll: str = "auto",
    adapters: Sequence[Path] = (),
    choices: Mapping[str, Path] | None = None,
) -> Executable:
    """The executable of a model; options that are None take their defaults, or what was compiled.

    ``adapters`` are merged into the weights, but for a learned prompt, which is then the choice ``PROMPT``.
    ``choices`` are kept beside the model, by name.
    """
    choices = dict(choices or {})
    if is_compiled(name) and not adapters and not choices:
        chosen = {"batch": batch, "capacity": capacity, "state": state, "state_dtype": state_dtype}
        chosen["dtype"] = dtype
        from .artifacts import open_compiled

        return open_compiled(Path(name), backend, chosen, roll)
    prompts = [directory for directory in adapters if _is_learned_prompt(directory)]
    if len(prompts) > 1:
        raise SystolicError(f"{prompts[1]}: is a second learned prompt, and a text begins with one at most")
    if prompts:
        choices[PROMPT] = prompts[0]
    if is_compiled(name):
        raise SystolicError(f"{name} is no checkpoint, and only one takes an adapter")
    model = open_model(name, capacity, dtype, [one for one in adapters if one not in prompts], is_to_run=True)
    return compile(
        model,
        backend=backend,
        batch=1 if batch is None else batch,
        capacity=capacity,
        state=state or "auto",
        state_dtype=state_dtype or "f32",
        adapters=choices,
        roll=roll,
    )


def _is_learned_prompt(directory: Path) -> bool:
    from ..models.peft import read_adapter

    return read_adapter(directory).prompt is not None


def only_adapter(model: Model) -> str | None:
    """The adapter that every text takes at the command line: a learned prompt, if there is one."""
    return PROMPT if PROMPT in model.adapters else None


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
    from ..compiler.trace import trace

    return trace(getattr(module, function))
