"""Runs emitted NumPy: the text that is printed is the text that is executed."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.chunks import ChunkSeconds, nominal_seconds
from ..compiler.cost.targets import Target
from ..compiler.program import Program
from ..ir.graph import Graph
from ..ir.types import DTYPES
from .interface import Arrays, Lowered
from .numpy_source import emit_numpy


@dataclass(frozen=True)
class NumpyProgram:
    """A program as NumPy source, and the function that the source defines."""

    program: Program
    source: str
    function: Callable[..., Any]

    @property
    def layers(self) -> str:
        """Layers that repeat, in a source that is to be read."""
        return "one by one: the numpy backend writes every layer"

    def run(
        self, parameters: Arrays, inputs: Arrays, states: Arrays
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One call; see ``Prepared.run``."""
        with np.errstate(all="ignore"):  # what overflows is infinite, as on every other backend
            return self.function(parameters, inputs, states)


class NumpyBackend:
    """NumPy on the host; needs no compiler. For a ``target``, contractions run as loops over its tiles."""

    name = "numpy"
    alignment = 1
    is_asynchronous = False

    def __init__(self, target: Target | None = None) -> None:
        self._target = target

    @property
    def lowering(self) -> str:
        """What the text of a program depends on, beside the program."""
        return f"numpy {self._target}"

    def chunk_seconds(self, graph: Graph, rows: int, capacity: int) -> ChunkSeconds:
        """Nominal: what NumPy takes is not measured."""
        return nominal_seconds(rows)

    def faster_transposed(self, graph: Graph, rows: int) -> tuple[str, ...]:
        """None: NumPy runs on what files have."""
        return ()

    def lower(self, program: Program) -> Lowered:
        """The program as the source of a module."""
        return Lowered(program, emit_numpy(program, self._target))

    def prepare(self, program: Program) -> NumpyProgram:
        """Emits the program and executes the text."""
        return self.load(self.lower(program))

    def load(self, lowered: Lowered) -> NumpyProgram:
        """Executes the text, which tracebacks can show."""
        program, source = lowered.program, lowered.text
        digest = hashlib.sha256(source.encode()).hexdigest()[:8]
        file = f"<systolic {program.name} {digest}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        module: dict[str, Any] = {"__name__": program.name}
        exec(compile(source, file, "exec"), module)
        return NumpyProgram(program, source, module["run"])

    def place(self, array: np.ndarray) -> np.ndarray:
        return array

    def fetch(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, DTYPES[dtype])
