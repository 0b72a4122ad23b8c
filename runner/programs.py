"""The programs of an executable, each made and prepared when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Protocol

from ..backends.interface import Backend, Prepared
from ..compiler.derive import (
    StatePlan,
    choose_states,
    derive_chunk,
    derive_score,
    derive_source,
    source_graph,
)
from ..compiler.program import Program, State
from ..ir.graph import Graph
from .options import Options


class ProgramSource(Protocol):
    """Where programs come from: a derivation, or a directory of compiled ones.

    ``source`` is how many positions the source of an encoder-decoder can have, one of
    ``source_lengths`` and by default the most; they are empty for a model of one clock.
    """

    score_lengths: tuple[int, ...]
    source_lengths: tuple[int, ...]

    @property
    def states(self) -> tuple[State, ...]:
        """What the chunk programs keep."""

    def chunk(self, size: int, source: int | None = None) -> Program:
        """Reads ``size`` positions of each row and yields results at each row's last real one."""

    def score(self, length: int, source: int | None = None) -> Program:
        """Reads one text of up to ``length`` positions and yields results at each of them."""

    def source(self, length: int) -> Program:
        """Reads a source of up to ``length`` positions in each row, and yields the constants that the
        chunk programs take."""

    def encode(self, length: int) -> Program:
        """Reads one source and yields what the target reads of each of its positions."""


class DerivedPrograms:
    """Programs derived from a per-token graph."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self._graph = graph
        self._options = options
        self.score_lengths = options.score_lengths
        self._clock = next(iter(graph.outputs.values())).clock
        has_source = any(node.clock != self._clock for node in graph.inputs)
        self.source_lengths = options.score_lengths if has_source else ()

    @cached_property
    def plan(self) -> StatePlan:
        """Which streams are kept."""
        return choose_states(self._graph, self._options.state)

    @property
    def states(self) -> tuple[State, ...]:
        return self.chunk(1).states

    def _sources(self, length: int | None) -> dict[str, int]:
        """The length of each clock but the one that is decoded."""
        length = max(self.source_lengths, default=0) if length is None else length
        return dict.fromkeys((c for c in self._graph.clocks if c != self._clock), length)

    def chunk(self, size: int, source: int | None = None) -> Program:
        options = self._options
        return derive_chunk(
            self._graph,
            self.plan,
            rows=options.batch,
            chunk=size,
            capacity=options.capacity,
            reserve=options.chunk,
            last=True,
            source_lengths=self._sources(source),
        )

    def score(self, length: int, source: int | None = None) -> Program:
        return derive_score(self._graph, rows=1, length=length, source_lengths=self._sources(source))

    def source(self, length: int) -> Program:
        options = self._options
        sources = self._sources(length)
        return derive_source(
            self._graph, self.plan, rows=options.batch, source_lengths=sources, capacity=options.capacity
        )

    def encode(self, length: int) -> Program:
        program = derive_score(source_graph(self._graph, str(self._clock)), rows=1, length=length)
        return replace(program, name=f"encode.{length}")


class Programs:
    """Prepared programs, kept once they are made."""

    def __init__(self, origin: ProgramSource, backend: Backend) -> None:
        self._origin = origin
        self._backend = backend
        self._prepared: dict[tuple[str, int, int], Prepared] = {}

    @cached_property
    def states(self) -> tuple[State, ...]:
        """What the chunk programs keep from call to call."""
        return self._origin.states

    def chunk(self, size: int, source: int = 0) -> Prepared:
        """The program that reads ``size`` positions of each row behind sources of up to ``source``."""
        space = self._source_length(source)
        return self._prepare("chunk", size, space, lambda: self._origin.chunk(size, space))

    def score(self, length: int, source: int = 0) -> Prepared:
        """The smallest program that reads a text of ``length`` positions behind a source of ``source``."""
        size, space = _smallest(self._origin.score_lengths, length), self._source_length(source)
        return self._prepare("score", size, space, lambda: self._origin.score(size, space))

    def source(self, length: int) -> Prepared:
        """The smallest program that reads sources of up to ``length`` positions."""
        space = self._source_length(length)
        return self._prepare("source", 0, space, lambda: self._origin.source(space))

    def encode(self, length: int) -> Prepared:
        """The smallest program that yields what is read of a source of ``length`` positions."""
        space = self._source_length(length)
        return self._prepare("encode", 0, space, lambda: self._origin.encode(space))

    def _source_length(self, length: int) -> int:
        return _smallest(self._origin.source_lengths, length) if length else 0

    def _prepare(self, kind: str, size: int, source: int, make: Callable[[], Program]) -> Prepared:
        key = (kind, size, source)
        if key not in self._prepared:
            self._prepared[key] = self._backend.prepare(make())
        return self._prepared[key]


def _smallest(sizes: tuple[int, ...], length: int) -> int:
    return min(size for size in sizes if size >= length)
