"""What a backend is: it prepares programs; a prepared program runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..compiler.chunks import ChunkSeconds
from ..compiler.program import Program
from ..ir.graph import Graph

Arrays = Mapping[str, Any]  # device arrays or NumPy arrays, by name


def described(array: Any) -> Any:
    """What has the ``shape``, ``dtype``, ``size`` and ``nbytes`` of an array, wherever it is."""
    return getattr(array, "aval", array)


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program in the words of a backend: StableHLO, or the source of a NumPy module."""

    program: Program
    text: str


class Prepared(Protocol):
    """A program that is ready to run."""

    @property
    def program(self) -> Program:
        """What was prepared."""

    @property
    def layers(self) -> str:
        """How layers that repeat were compiled, and why: one by one, or as one loop."""

    def run(
        self, parameters: Arrays, inputs: Arrays, states: Arrays
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One call: the results by name, and all updated states by name (without ``state.``).

        ``states`` that the program updates are used up: the arrays given must not be read again.
        """


class Backend(Protocol):
    """A way to run programs."""

    name: str
    alignment: int  # bytes; an array that begins at a multiple of it is placed without a copy
    is_asynchronous: bool  # whether ``Prepared.run`` returns before everything has been computed

    @property
    def lowering(self) -> str:
        """What the text of a program depends on, beside the program."""

    def chunk_seconds(self, graph: Graph, rows: int, capacity: int) -> ChunkSeconds:
        """Predicts what chunks of a per-token graph take, for so many rows with states of ``capacity``
        positions; in what chunks prompts are read follows from it."""

    def faster_transposed(self, graph: Graph, rows: int) -> tuple[str, ...]:
        """The parameters [d, n] of a per-token graph, by name, that a step of so many rows reads faster where
        they are kept as [n, d]."""

    def lower(self, program: Program) -> Lowered:
        """Writes a program in the words of this backend."""

    def load(self, lowered: Lowered) -> Prepared:
        """Compiles what ``lower`` wrote, in this process or an earlier one."""

    def prepare(self, program: Program) -> Prepared:
        """Both: compiles a program."""

    def place(self, array: np.ndarray) -> Any:
        """Moves an array to where programs run."""

    def fetch(self, array: Any) -> np.ndarray:
        """Brings an array back, as NumPy."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A state before the first step."""
