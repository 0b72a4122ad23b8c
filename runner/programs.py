"""The programs of an executable, each made and prepared when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

from ..backends.interface import Backend, Prepared
from ..compiler.derive import StatePlan, choose_states, derive_chunk, derive_score
from ..compiler.program import Program, State
from ..ir.graph import Graph
from .options import Options


class ProgramSource(Protocol):
    """Where programs come from: a derivation, or a directory of compiled ones."""

    score_lengths: tuple[int, ...]

    @property
    def states(self) -> tuple[State, ...]:
        """What the chunk programs keep."""

    def chunk(self, size: int) -> Program:
        """Reads ``size`` positions of each row and yields results at each row's last real one."""

    def score(self, length: int) -> Program:
        """Reads one text of up to ``length`` positions and yields results at each of them."""


class DerivedPrograms:
    """Programs derived from a per-token graph."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self._graph = graph
        self._options = options
        self.score_lengths = options.score_lengths

    @cached_property
    def plan(self) -> StatePlan:
        """Which streams are kept."""
        return choose_states(self._graph, self._options.state)

    @property
    def states(self) -> tuple[State, ...]:
        return self.chunk(1).states

    def chunk(self, size: int) -> Program:
        options = self._options
        return derive_chunk(
            self._graph,
            self.plan,
            rows=options.batch,
            chunk=size,
            capacity=options.capacity,
            reserve=options.chunk,
            last=True,
        )

    def score(self, length: int) -> Program:
        return derive_score(self._graph, rows=1, length=length)


class Programs:
    """Prepared programs, kept once they are made."""

    def __init__(self, source: ProgramSource, backend: Backend) -> None:
        self._source = source
        self._backend = backend
        self._prepared: dict[tuple[str, int], Prepared] = {}

    @cached_property
    def states(self) -> tuple[State, ...]:
        """What the chunk programs keep from call to call."""
        return self._source.states

    def chunk(self, size: int) -> Prepared:
        """The program that reads ``size`` positions of each row."""
        return self._prepare("chunk", size, self._source.chunk)

    def score(self, length: int) -> Prepared:
        """The smallest program that reads a text of ``length`` positions."""
        size = min(size for size in self._source.score_lengths if size >= length)
        return self._prepare("score", size, self._source.score)

    def _prepare(self, kind: str, size: int, make: Callable[[int], Program]) -> Prepared:
        if (kind, size) not in self._prepared:
            self._prepared[kind, size] = self._backend.prepare(make(size))
        return self._prepared[kind, size]
