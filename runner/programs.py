"""The programs of an executable, each made and prepared when it is first needed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from threading import Lock, RLock
from types import ModuleType
from typing import Generic, TypeVar

from ..backends.interface import Backend, Lowered, Prepared
from ..compiler.collection import paused_collection
from ..compiler.program import Program, State
from .program_source import ProgramSource
from .program_store import Kept, ProgramStore
from .sampling.structure import Structure

Result = TypeVar("Result")
Report = Callable[[int, int], None]


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
        made = f"{self.name}: {program.rows} rows of {program.chunk}, {self.seconds:.3f} s{origin}"
        return f"{made}; layers {self.prepared.layers}"


class ProgramTable(Generic[Result]):
    """The programs of a model by what they are for; each is one ``Result``, kept once it is made."""

    def __init__(self, origin: ProgramSource) -> None:
        self._origin = origin

    def _get(self, kind: str, size: int, source: int, make: Callable[[], Program]) -> Result:
        """The result for a program, which no other has the same three of; ``make`` derives it."""
        raise NotImplementedError

    @cached_property
    def states(self) -> tuple[State, ...]:
        """What the chunk programs keep from call to call."""
        return self._origin.states

    def chunk(self, size: int, source: int = 0) -> Result:
        """The program that reads ``size`` positions of each row behind sources of up to ``source``."""
        space = self._source_length(source)
        return self._get("chunk", size, space, lambda: self._origin.chunk(size, space))

    def verify(self, size: int, source: int = 0) -> Result:
        """The program that reads ``size`` positions of each row and yields results at all of them."""
        space = self._source_length(source)
        return self._get("verify", size, space, lambda: self._origin.verify(size, space))

    def score(self, length: int, source: int = 0) -> Result:
        """The smallest program that reads a text of ``length`` positions behind a source of ``source``."""
        size, space = _smallest(self._origin.score_lengths, length), self._source_length(source)
        return self._get("score", size, space, lambda: self._origin.score(size, space))

    def source(self, length: int) -> Result:
        """The smallest program that reads sources of up to ``length`` positions."""
        space = self._source_length(length)
        return self._get("source", 0, space, lambda: self._origin.source(space))

    def encode(self, length: int) -> Result:
        """The smallest program that yields what is read of a source of ``length`` positions."""
        space = self._source_length(length)
        return self._get("encode", 0, space, lambda: self._origin.encode(space))

    def with_rows(self, rows: int) -> ProgramSource:
        """Where the programs for so many rows come from."""
        return self._origin.with_rows(rows)

    # ---- decode loops ----

    def generate(
        self, structure: Structure, stops: int, names: tuple[str, str], source: int = 0, states: int = 0
    ) -> Result:
        """The program that makes many tokens in one call, chosen by ``structure``, where up to ``stops``
        tokens end a row, and an automaton of so many ``states`` if there are any; ``names`` are those of
        the model's token input and of its logits."""
        space = self._source_length(source)

        def make() -> Program:
            from .sampling.programs import loop_program  # what an earlier process made needs none of it

            return loop_program(self._origin.chunk(1, space), structure, stops, names, states)

        return self._get(f"generate {structure} {states}", stops, space, make)

    def beams(
        self,
        structure: Structure,
        candidates: int,
        names: tuple[str, str],
        source: int = 0,
        beside: Sequence[str] = (),
    ) -> Result:
        """The program that extends the beams of all rows and lists the best ``candidates`` of each, with the
        model's outputs ``beside``."""
        space = self._source_length(source)

        def make() -> Program:
            from .sampling.programs import beam_program

            return beam_program(self._origin.chunk(1, space), structure, candidates, names, beside)

        return self._get(f"beams {structure} {beside}", candidates, space, make)

    def recall(self, structure: Structure, names: tuple[str, str]) -> Result | None:
        """The program that reads what was said before into the memory of a structure, if it has one."""
        if not structure.remembers:
            return None

        def make() -> Program:
            from .sampling.programs import recall_program

            return recall_program(self._origin.chunk(1), structure, names[1])

        return self._get(f"recall {structure}", 0, 0, make)

    def sample(self, structure: Structure, vocabulary: int) -> Result:
        """The program that chooses a token for each row from logits of ``vocabulary`` tokens."""

        def make() -> Program:
            from .sampling.programs import SamplingPrograms

            step = self._origin.chunk(1)
            return SamplingPrograms(structure, vocabulary, step.rows, step.capacity).choose

        return self._get(f"sample {structure}", 0, 0, make)

    # ---- rows moved in and out of the buffers ----

    def states_of(self, kinds: Sequence[str], source: int = 0) -> tuple[State, ...]:
        """The states of some kinds; how much room constants have depends on ``source``."""
        states = self._program(self.chunk(1, source)).states if source else self.states
        return tuple(state for state in states if state.kind in kinds)

    def take(self, slots: int) -> Result:
        """The program that copies ``slots`` positions of one row out of what is kept by position."""
        return self._get("take", slots, 0, lambda: _moves().derive_take(self.states_of(("append",)), slots))

    def put(self, slots: int) -> Result:
        """The program that copies up to ``slots`` positions into one row."""
        return self._get("put", slots, 0, lambda: _moves().derive_put(self.states_of(("append",)), slots))

    def save(self, name: str, kinds: Sequence[str], source: int = 0) -> Result:
        """The program that copies one row of the states of some kinds; ``name`` names the kinds."""
        space, label = self._source_length(source), f"save.{name}"
        return self._get(label, 0, space, lambda: _moves().derive_save(self.states_of(kinds, source), label))

    def restore(self, name: str, kinds: Sequence[str], source: int = 0) -> Result:
        """The program that puts such a copy into one row."""
        space, label = self._source_length(source), f"restore.{name}"
        return self._get(
            label, 0, space, lambda: _moves().derive_restore(self.states_of(kinds, source), label)
        )

    def _program(self, result: Result) -> Program:
        raise NotImplementedError

    def _source_length(self, length: int) -> int:
        return _smallest(self._origin.source_lengths, length) if length else 0


class LoweredPrograms(ProgramTable[Lowered]):
    """Programs in the words of a backend, derived now or, with a ``store``, by an earlier process."""

    def __init__(self, origin: ProgramSource, backend: Backend, store: ProgramStore | None = None) -> None:
        super().__init__(origin)
        self.backend = backend
        self.store = store
        self.seconds: dict[Lowered, float] = {}  # what it took to have each of them
        self._made: dict[str, Lowered] = {}
        self._lock = RLock()

    def _get(self, kind: str, size: int, source: int, make: Callable[[], Program]) -> Lowered:
        key = repr((kind, size, source))
        with self._lock:  # deriving one program may ask for another
            if key not in self._made:
                started = time.perf_counter()
                lowered = self._lower(key, make)
                self.seconds[lowered] = time.perf_counter() - started
                self._made[key] = lowered
            return self._made[key]

    @cached_property
    def states(self) -> tuple[State, ...]:
        return self.keep("states", lambda: self._origin.states, tuple)

    def _lower(self, key: str, make: Callable[[], Program]) -> Lowered:
        return self.keep(key, lambda: self.backend.lower(make()), Lowered)

    def keep(self, name: str, make: Callable[[], Kept], kind: type[Kept]) -> Kept:
        """What ``make`` makes, or what it made in an earlier process for the same programs."""
        if self.store is not None:
            return self.store.keep(name, make, kind)
        with paused_collection():
            return make()

    def _program(self, result: Lowered) -> Program:
        return result.program


class Programs(ProgramTable[Prepared]):
    """Prepared programs. Iterating yields what has been made, in that order.

    ``begun`` is called once, when all that a first text takes has been prepared.
    """

    def __init__(
        self,
        origin: ProgramSource,
        backend: Backend,
        store: ProgramStore | None = None,
        begun: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(origin)
        self.lowered = LoweredPrograms(origin, backend, store)
        self._made: dict[Lowered, Made] = {}
        self._locks: dict[Lowered, Lock] = {}
        self._begun = begun

    def __iter__(self) -> Iterator[Made]:
        return iter(tuple(self._made.values()))

    def __len__(self) -> int:
        return len(self._made)

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    @cached_property
    def states(self) -> tuple[State, ...]:
        return self.lowered.states  # known before anything is compiled

    def states_of(self, kinds: Sequence[str], source: int = 0) -> tuple[State, ...]:
        return self.lowered.states_of(kinds, source)

    @cached_property
    def behind_encoder(self) -> Programs:
        """The programs for a source that is given as what an encoder made of it."""
        store = self.store_within("behind the encoder")
        return Programs(self._origin.behind_encoder, self.lowered.backend, store)

    def store_within(self, change: str) -> ProgramStore | None:
        """Where the programs of a changed model are kept, if these are."""
        store = self.lowered.store
        return None if store is None else store.within(change)

    def prepare(self, wanted: Iterable[Lowered], report: Report | None = None) -> None:
        """Compiles what is not compiled yet, the largest first, on as many threads as there are cores.

        ``report`` is told how many are ready, and of how many. Raises what a compilation raises.
        """
        missing = [lowered for lowered in dict.fromkeys(wanted) if lowered not in self._made]
        if report is None and not missing:
            return
        missing.sort(key=lambda lowered: len(lowered.text), reverse=True)
        threads = ThreadPoolExecutor(os.cpu_count(), "compile")
        try:
            if report is not None:
                report(0, len(missing))
            running = [threads.submit(self._load, lowered) for lowered in missing]
            for ready, finished in enumerate(as_completed(running), 1):
                finished.result()
                if report is not None:
                    report(ready, len(missing))
        finally:  # behind an error or Ctrl-C, nobody waits for what is being compiled: nothing can stop it
            threads.shutdown(wait=False, cancel_futures=True)
        if self._begun is not None:
            self._begun()
            self._begun = None

    def _get(self, kind: str, size: int, source: int, make: Callable[[], Program]) -> Prepared:
        return self._load(self.lowered._get(kind, size, source, make))

    def _load(self, lowered: Lowered) -> Prepared:
        """Compiled once, however many threads ask."""
        with self._locks.setdefault(lowered, Lock()):
            if lowered not in self._made:
                started = time.perf_counter()
                prepared = self.lowered.backend.load(lowered)
                seconds = self.lowered.seconds[lowered] + time.perf_counter() - started
                from_cache = getattr(prepared, "from_cache", False)  # only what is compiled can be cached
                self._made[lowered] = Made(prepared, seconds, from_cache)
            return self._made[lowered].prepared

    def _program(self, result: Prepared) -> Program:
        return result.program


def _moves() -> ModuleType:
    """What derives programs that move rows."""
    from ..compiler.derive import moves

    return moves


def _smallest(sizes: tuple[int, ...], length: int) -> int:
    return min(size for size in sizes if size >= length)
