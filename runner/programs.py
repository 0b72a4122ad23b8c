"""The programs of an executable, each made and prepared when it is first needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

from ..backends.interface import Backend, Prepared
from ..compiler.derive import (
    Form,
    StatePlan,
    choose_forms,
    derive_cheapest,
    derive_chunk,
    derive_score,
    derive_source,
    graph_behind_source,
    source_graph,
)
from ..compiler.derive.moves import derive_put, derive_restore, derive_save, derive_take
from ..compiler.program import Program, State
from ..ir.graph import Graph
from ..ir.types import TEXT
from .options import Options
from .sampling.chain import Structure
from .sampling.programs import SamplingPrograms, beam_program, loop_program, recall_program


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
        self._clock = next(iter(graph.outputs.values())).clock
        has_source = any(node.clock not in (self._clock, None) for node in graph.inputs)
        self.source_lengths = options.source_lengths if has_source else ()

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """What chunk programs are derived from."""
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
        options = self._options
        derive = partial(
            derive_chunk,
            rows=options.batch,
            chunk=size,
            capacity=options.capacity,
            reserve=options.chunk,
            last=last,
            source_lengths=self._sources(source),
        )
        return derive_cheapest(self.forms, derive)

    def score(self, length: int, source: int | None = None) -> Program:
        return derive_score(self._graph, rows=1, length=length, source_lengths=self._sources(source))

    def source(self, length: int) -> Program:
        options = self._options
        sources = self._sources(length)
        form = self.forms[0]
        return derive_source(
            form.graph, form.plan, rows=options.batch, source_lengths=sources, capacity=options.capacity
        )

    def encode(self, length: int) -> Program:
        program = derive_score(source_graph(self._graph, str(self._clock)), rows=1, length=length)
        return replace(program, name=f"encode.{length}")

    def with_rows(self, rows: int) -> DerivedPrograms:
        return DerivedPrograms(self._graph, replace(self._options, batch=rows))

    @property
    def behind_encoder(self) -> DerivedPrograms:
        return DerivedPrograms(graph_behind_source(self._graph, str(self._clock)), self._options)


@dataclass(frozen=True)
class Made:
    """A program that is ready to run, and what it took to make it: derived, emitted, compiled."""

    prepared: Prepared
    seconds: float
    from_cache: bool

    @property
    def name(self) -> str:
        return self.prepared.program.name

    def __str__(self) -> str:
        program, origin = self.prepared.program, ", from the cache" if self.from_cache else ""
        return f"{self.name}: {program.rows} rows of {program.chunk}, {self.seconds:.3f} s{origin}"


class Programs:
    """Prepared programs, kept once they are made. Iterating yields what has been made, in that order."""

    def __init__(self, origin: ProgramSource, backend: Backend) -> None:
        self._origin = origin
        self._backend = backend
        self._made: dict[tuple[str, int, int], Made] = {}

    def __iter__(self) -> Iterator[Made]:
        return iter(tuple(self._made.values()))

    def __len__(self) -> int:
        return len(self._made)

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    @cached_property
    def states(self) -> tuple[State, ...]:
        """What the chunk programs keep from call to call."""
        return self._origin.states

    def chunk(self, size: int, source: int = 0) -> Prepared:
        """The program that reads ``size`` positions of each row behind sources of up to ``source``."""
        space = self._source_length(source)
        return self._prepare("chunk", size, space, lambda: self._origin.chunk(size, space))

    def verify(self, size: int, source: int = 0) -> Prepared:
        """The program that reads ``size`` positions of each row and yields results at all of them."""
        space = self._source_length(source)
        return self._prepare("verify", size, space, lambda: self._origin.verify(size, space))

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

    def with_rows(self, rows: int) -> ProgramSource:
        """Where the programs for so many rows come from."""
        return self._origin.with_rows(rows)

    @cached_property
    def behind_encoder(self) -> Programs:
        """The programs for a source that is given as what an encoder made of it."""
        return Programs(self._origin.behind_encoder, self._backend)

    # ---- decode loops ----

    def generate(
        self, structure: Structure, stops: int, names: tuple[str, str], source: int = 0, states: int = 0
    ) -> Prepared:
        """The program that makes many tokens in one call, chosen by ``structure``, where up to ``stops``
        tokens end a row, and an automaton of so many ``states`` if there are any; ``names`` are those of
        the model's token input and of its logits."""
        space = self._source_length(source)

        def make() -> Program:
            return loop_program(self._origin.chunk(1, space), structure, stops, names, states)

        return self._prepare(f"generate {structure} {states}", stops, space, make)

    def beams(
        self,
        structure: Structure,
        candidates: int,
        names: tuple[str, str],
        source: int = 0,
        beside: Sequence[str] = (),
    ) -> Prepared:
        """The program that extends the beams of all rows and lists the best ``candidates`` of each, with the
        model's outputs ``beside``."""
        space = self._source_length(source)

        def make() -> Program:
            return beam_program(self._origin.chunk(1, space), structure, candidates, names, beside)

        return self._prepare(f"beams {structure} {beside}", candidates, space, make)

    def recall(self, structure: Structure, names: tuple[str, str]) -> Prepared | None:
        """The program that reads what was said before into the memory of a structure, if it has one."""
        if not structure.remembers:
            return None
        return self._prepare(
            f"recall {structure}", 0, 0, lambda: recall_program(self._origin.chunk(1), structure, names[1])
        )

    def sample(self, structure: Structure, vocabulary: int) -> Prepared:
        """The program that chooses a token for each row from logits of ``vocabulary`` tokens."""

        def make() -> Program:
            step = self._origin.chunk(1)
            return SamplingPrograms(structure, vocabulary, step.rows, step.capacity).choose

        return self._prepare(f"sample {structure}", 0, 0, make)

    # ---- rows moved in and out of the buffers ----

    def states_of(self, kinds: Sequence[str], source: int = 0) -> tuple[State, ...]:
        """The states of some kinds; how much room constants have depends on ``source``."""
        states = self.chunk(1, source).program.states if source else self.states
        return tuple(state for state in states if state.kind in kinds)

    def take(self, slots: int) -> Prepared:
        """The program that copies ``slots`` positions of one row out of what is kept by position."""
        return self._prepare("take", slots, 0, lambda: derive_take(self.states_of(("append",)), slots))

    def put(self, slots: int) -> Prepared:
        """The program that copies up to ``slots`` positions into one row."""
        return self._prepare("put", slots, 0, lambda: derive_put(self.states_of(("append",)), slots))

    def save(self, name: str, kinds: Sequence[str], source: int = 0) -> Prepared:
        """The program that copies one row of the states of some kinds; ``name`` names the kinds."""
        space, label = self._source_length(source), f"save.{name}"
        return self._prepare(label, 0, space, lambda: derive_save(self.states_of(kinds, source), label))

    def restore(self, name: str, kinds: Sequence[str], source: int = 0) -> Prepared:
        """The program that puts such a copy into one row."""
        space, label = self._source_length(source), f"restore.{name}"
        return self._prepare(label, 0, space, lambda: derive_restore(self.states_of(kinds, source), label))

    def _source_length(self, length: int) -> int:
        return _smallest(self._origin.source_lengths, length) if length else 0

    def _prepare(self, kind: str, size: int, source: int, make: Callable[[], Program]) -> Prepared:
        key = (kind, size, source)
        if key not in self._made:
            started = time.perf_counter()
            prepared = self._backend.prepare(make())
            from_cache = getattr(prepared, "from_cache", False)  # only what is compiled can be cached
            self._made[key] = Made(prepared, time.perf_counter() - started, from_cache)
        return self._made[key].prepared


def _smallest(sizes: tuple[int, ...], length: int) -> int:
    return min(size for size in sizes if size >= length)
