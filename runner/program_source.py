"""Where programs come from: a derivation, or something that has them already."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

from ..compiler.program import Program, State
from ..ir.graph import Graph
from ..ir.types import TEXT
from .options import Options

if TYPE_CHECKING:
    from ..compiler.derive import Form, StatePlan


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

    def verify(self, size: int, source: int | None = None) -> Program:
        """The same with results at all ``size`` positions, so that guessed tokens can be checked."""

    def score(self, length: int, source: int | None = None) -> Program:
        """Reads one text of up to ``length`` positions and yields results at each of them."""

    def source(self, length: int) -> Program:
        """Reads a source of up to ``length`` positions in each row, and yields the constants that the
        chunk programs take."""

    def encode(self, length: int) -> Program:
        """Reads one source and yields what the target reads of each of its positions."""

    def with_rows(self, rows: int) -> ProgramSource:
        """The same for so many rows; ``SystolicError`` where that cannot be had."""

    @property
    def behind_encoder(self) -> ProgramSource:
        """The same for a source that is given as what an encoder made of it."""


class DerivedPrograms:
    """Programs derived from a per-token graph."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self._graph = graph
        self._options = options
        self.score_lengths = options.score_lengths
        self._clock = graph.signature.outputs[0].clock
        has_source = any(port.clock not in (self._clock, None) for port in graph.signature.inputs)
        self.source_lengths = options.source_lengths if has_source else ()
        self._chunks: dict[str, Program] = {}  # what others are made of, too

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """What chunk programs are derived from."""
        from ..compiler.derive import choose_forms  # what an earlier process derived needs none of it

        return choose_forms(self._graph, self._options.state)

    @property
    def plan(self) -> StatePlan:
        """Which streams are kept."""
        return self.forms[0].plan

    @property
    def states(self) -> tuple[State, ...]:
        return self.chunk(1).states

    def _sources(self, length: int | None) -> dict[str, int]:
        """The length of each clock but the one that is decoded."""
        length = max(self.source_lengths, default=0) if length is None else length
        room = {clock: length for clock in self._graph.clocks if clock != self._clock}
        return room | {clock: self._options.capacity for clock in room if clock == TEXT}

    def chunk(self, size: int, source: int | None = None) -> Program:
        return self._chunk(size, source, last=True)

    def verify(self, size: int, source: int | None = None) -> Program:
        return self._chunk(size, source, last=False)

    def _chunk(self, size: int, source: int | None, *, last: bool) -> Program:
        from ..compiler.derive import derive_cheapest, derive_chunk

        options, lengths = self._options, self._sources(source)
        key = f"{size} {lengths} {last}"
        if key in self._chunks:
            return self._chunks[key]
        derive = partial(
            derive_chunk,
            rows=options.batch,
            chunk=size,
            capacity=options.capacity,
            reserve=options.chunk,
            last=last,
            source_lengths=lengths,
        )
        self._chunks[key] = derive_cheapest(self.forms, derive)
        return self._chunks[key]

    def score(self, length: int, source: int | None = None) -> Program:
        from ..compiler.derive import derive_score

        return derive_score(self._graph, rows=1, length=length, source_lengths=self._sources(source))

    def source(self, length: int) -> Program:
        from ..compiler.derive import derive_source

        options = self._options
        sources = self._sources(length)
        form = self.forms[0]
        return derive_source(
            form.graph, form.plan, rows=options.batch, source_lengths=sources, capacity=options.capacity
        )

    def encode(self, length: int) -> Program:
        from ..compiler.derive import derive_score, source_graph

        program = derive_score(source_graph(self._graph, str(self._clock)), rows=1, length=length)
        return replace(program, name=f"encode.{length}")

    def with_rows(self, rows: int) -> DerivedPrograms:
        return DerivedPrograms(self._graph, replace(self._options, batch=rows))

    @property
    def behind_encoder(self) -> DerivedPrograms:
        from ..compiler.derive import graph_behind_source

        return DerivedPrograms(graph_behind_source(self._graph, str(self._clock)), self._options)
