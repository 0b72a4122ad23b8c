"""Rows side by side on the device, each with a text of its own that can go on, go back, and be copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends.interface import Prepared, described
from ..compiler.chunks import cut_prompt
from ..compiler.derive.moves import PIECE_PREFIX, piece_type, row_type
from ..compiler.program import NO_TOKEN
from ..ir.errors import SystolicError
from .adapters import adapter_inputs
from .lengths import require_one_length
from .snapshot import Snapshot
from .sources import Source, read_sources, shown
from .undo import AS_A_WHOLE, BY_POSITION, Checkpoint, Rewind

if TYPE_CHECKING:
    from .executable import Executable

MOST_CHECKPOINTS = 32  # of one row
_GROUPS = {"whole": AS_A_WHOLE, "constants": ("constant",)}  # kinds whose rows are moved together


@dataclass
class Row:
    """What one row has read. ``written`` is how many positions its rings have been written for, ``adapter``
    the number of the adapter that it speaks with."""

    tokens: list[int] = field(default_factory=list)
    written: int = 0
    checkpoints: list[Checkpoint] = field(default_factory=list)
    source: tuple[int, ...] = ()
    adapter: int = 0


class Batch:
    """The rows of an executable: made by ``exe.batch()``.

    All rows are read in one call, a different number of positions each. Where a state needs it, a
    checkpoint is made whenever a row has read a multiple of ``checkpoint_every`` positions (by default
    ``Undo.interval``; 0 makes none); a row keeps at most 32, the older the fewer. ``longest`` is how
    many positions a row can read in one call, by default the largest chunk.
    """

    def __init__(
        self, executable: Executable, checkpoint_every: int | None = None, longest: int | None = None
    ) -> None:
        require_one_length(executable.model, executable.options.capacity)
        self._executable = executable
        chunks, largest = executable.options.chunks, executable.options.chunk
        self._longest = largest if longest is None else min(longest, largest)
        self._chunks = [one for one in chunks if not any(self._longest <= c.size < one.size for c in chunks)]
        self.undo = executable.undo
        interval = self.undo.interval if checkpoint_every is None else checkpoint_every
        self._interval = interval if self.undo.needs_checkpoints else 0
        self.rows: list[Row] = []
        self._source = executable.inputs.source
        self._room = executable.options.source_room if self._source else 0
        self._states: dict[str, Any] = {}
        self._lose()

    @property
    def room(self) -> int:
        """How many positions a source can have; 0 without one."""
        return self._room

    @property
    def capacity(self) -> int:
        """How many positions a row can hold."""
        return self._executable.options.capacity

    def _lose(self) -> None:
        """Begins anew with empty rows."""
        executable = self._executable
        self.rows = [Row() for _ in range(executable.options.batch)]
        self._states = executable.fresh_states()
        for state in executable.programs.states_of(("constant",), self._room):
            self._states[state.name] = executable.backend.zeros(state.type.static_shape, state.type.dtype)

    def prepare(self) -> None:
        """Makes every program that reading and moving rows can need."""
        programs, options = self._executable.programs, self._executable.options
        for chunk in self._chunks:
            programs.chunk(chunk.size, self._room)
        if self._source is not None:
            programs.source(self._room)
        for size in options.score_lengths if programs.states_of(BY_POSITION) else ():
            programs.take(size)
            programs.put(size)
        for name, kinds in _GROUPS.items():
            if programs.states_of(kinds, self._room):
                programs.save(name, kinds, self._room)
                programs.restore(name, kinds, self._room)

    def prepare_checks(self, sizes: Sequence[int]) -> None:
        """Makes the programs that yield logits everywhere; ``SystolicError`` where there are none."""
        for size in sizes:
            self._executable.programs.verify(size, self._room)

    # ---- reading ----

    def begin(self, row: int, source: Source = (), adapter: int = 0) -> None:
        """Empties a row, for an adapter; an encoder-decoder reads its source."""
        self.rows[row] = Row(source=shown(source), adapter=adapter)
        if self._source is None:
            return
        sources: list[Source] = [()] * len(self.rows)
        sources[row] = source
        constants = read_sources(self._executable, sources, self._room, self._adapters)
        self._restore("constants", row, self._save("constants", row, constants))

    def clear(self, row: int) -> None:
        """Empties a row, and overwrites what it held: what is no number would spoil the next text."""
        programs, zeros = self._executable.programs, self._executable.backend.zeros
        size = self._piece_size(self.capacity)
        types = {state.name: piece_type(state, size) for state in programs.states_of(BY_POSITION)}
        piece = {name: zeros(type_.static_shape, type_.dtype) for name, type_ in types.items()}
        self.put_piece(row, 0, self.capacity, piece)
        for name, kinds in _GROUPS.items():
            types = {state.name: row_type(state) for state in programs.states_of(kinds, self._room)}
            self._restore(name, row, {n: zeros(t.static_shape, t.dtype) for n, t in types.items()})
        self.rows[row] = Row()

    def read(self, tokens: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """Reads any number of tokens into each of some rows: logits [V] behind the last one of each."""
        left = {row: list(more) for row, more in tokens.items() if more}
        logits: dict[int, np.ndarray] = {}
        while left:
            now = self.first_call({row: more[: self.allowance(row)] for row, more in left.items()})
            left = {row: more[len(now[row]) :] for row, more in left.items() if len(more) > len(now[row])}
            device = self.run(now)
            ended = [row for row in now if row not in left]
            if ended:  # fetching waits for the device: only where something is read
                fetched = self.fetch(device)
                logits |= {row: fetched[row, 0] for row in ended}
        return logits

    def first_call(self, tokens: Mapping[int, list[int]]) -> dict[int, list[int]]:
        """What of the tokens of some rows one call should read, so that all are read soonest."""
        longest = max(map(len, tokens.values()))
        size = cut_prompt(longest, self._chunks, 0.0)[0].size  # all programs are made anyway
        return {row: more[:size] for row, more in tokens.items()}

    def allowance(self, row: int) -> int:
        """How many positions the row may read in one call: to the next checkpoint, at most a chunk."""
        if not self._interval:
            return self._longest
        return min(self._longest, self._interval - len(self.rows[row].tokens) % self._interval)

    def run(self, tokens: Mapping[int, Sequence[int]], *, everywhere: Sequence[int] = ()) -> Any:
        """One call that reads at most ``allowance`` tokens into each of some rows.

        Logits [B, 1, V] on the device, behind the last token of each row. With ``everywhere`` logits
        [B, c, V] behind each; these are the sizes c that a program may be made for. ``SystolicError``
        where a row is full.
        """
        executable, counts = self._executable, self._counts({row: len(more) for row, more in tokens.items()})
        for row, more in tokens.items():
            if len(self.rows[row].tokens) + len(more) > self.capacity:
                raise SystolicError(f"row {row} is full: its capacity is {self.capacity} positions")
        sizes = everywhere or [chunk.size for chunk in self._chunks]
        size = min(size for size in sizes if size >= counts.max())
        block = np.zeros((len(self.rows), size), np.int32)
        for row, more in tokens.items():
            block[row, : len(more)] = more
        programs = executable.programs
        program = (programs.verify if everywhere else programs.chunk)(size, self._room)
        results = self._call(program, {executable.inputs.token.name: block, "length": counts})
        for row, more in tokens.items():
            self._advance(row, more)
        return results[executable.logits_output]

    def make(
        self, loop: Prepared, numbers: Mapping[str, Any], newest: Mapping[int, int], limits: Mapping[int, int]
    ) -> dict[int, list[int]]:
        """One call of a decode loop: up to ``limits`` new tokens for each of some rows, behind its
        ``newest`` one, which has not been read. No limit may be more than ``allowance``."""
        executable = self._executable
        block = self._counts(newest).reshape(-1, 1)
        inputs = {executable.inputs.token.name: block, "limit": self._counts(limits), **numbers}
        fetched = executable.backend.fetch(self._call(loop, inputs)["tokens"])
        made = {row: [int(token) for token in fetched[row] if token != NO_TOKEN] for row in newest}
        for row, tokens in made.items():
            self._advance(row, [newest[row], *tokens[:-1]])
        return made

    def _call(self, program: Prepared, inputs: dict[str, Any]) -> dict[str, Any]:
        """Runs a program on the states, from where each row is."""
        inputs["offset"] = self._counts({i: len(row.tokens) for i, row in enumerate(self.rows)})
        inputs |= self._adapters
        if self._source is not None:
            inputs |= self._ends(self._counts({i: len(row.source) for i, row in enumerate(self.rows)}))
        try:
            results, updated = program.run(self._executable.parameters, inputs, self._states)
            self._states |= updated
        except BaseException:  # also Ctrl-C: the states may be used up
            self._lose()
            raise
        return results

    @property
    def _adapters(self) -> dict[str, np.ndarray]:
        numbers = {i: row.adapter for i, row in enumerate(self.rows)}
        return adapter_inputs(self._executable.model.graph, len(self.rows), numbers)

    def fetch(self, logits: Any) -> np.ndarray:
        """Logits as float32 on the host."""
        return self._executable.backend.fetch(logits).astype(np.float32)

    def _advance(self, row: int, more: Sequence[int]) -> None:
        state = self.rows[row]
        state.tokens += more
        state.written = max(state.written, len(state.tokens))
        if self._interval and more and len(state.tokens) % self._interval == 0:
            self.checkpoint(row)

    # ---- going back ----

    def checkpoint(self, row: int) -> Checkpoint:
        """Keeps what cannot be set back of a row as it is now."""
        state = self.rows[row]
        made = Checkpoint(len(state.tokens), state.written, self._save("whole", row, self._states))
        before = [c for c in state.checkpoints if c.position < made.position]
        if len(before) >= MOST_CHECKPOINTS:
            half = len(before) // 2
            before = [*before[:half:2], *before[half:]]
        state.checkpoints = [*before, made]
        return made

    def plan(self, row: int, position: int) -> Rewind:
        """What going back to ``position`` would take; nothing is done."""
        state = self.rows[row]
        return self.undo.plan(position, len(state.tokens), state.written, state.checkpoints)

    def rewind(self, row: int, position: int) -> list[int]:
        """Takes a row back to ``position``, or as close before it as can be.

        Returns the tokens that must be read again to be there: none, unless a state needs its
        checkpoint. ``SystolicError`` for a position that was not read.
        """
        plan, state = self.plan(row, position), self.rows[row]
        if plan.checkpoint is not None:
            self._restore("whole", row, plan.checkpoint.arrays)
            state.written = plan.checkpoint.written
        elif plan.resume == 0:
            state.written = 0
        again = state.tokens[plan.resume : position]
        state.tokens = state.tokens[: plan.resume]
        state.checkpoints = [c for c in state.checkpoints if c.position <= plan.resume]
        return again

    # ---- rows as values ----

    def take(self, row: int) -> Snapshot:
        """The state of a row as a value."""
        state = self.rows[row]
        return Snapshot(
            tokens=tuple(state.tokens),
            written=state.written,
            piece=self.take_piece(row, 0, len(state.tokens)),
            whole=self._save("whole", row, self._states),
            undo=self.undo,
            checkpoints=tuple(state.checkpoints),
            source=state.source,
            constants=self._save("constants", row, self._states),
            adapter=state.adapter,
        )

    def put(self, row: int, snapshot: Snapshot) -> None:
        """Makes a row go on from a value; what it held before is gone."""
        if len(snapshot) > self.capacity:
            raise SystolicError(
                f"a state of {len(snapshot)} positions does not fit a capacity of {self.capacity}"
            )
        self.put_piece(row, 0, len(snapshot), snapshot.piece)
        self._restore("whole", row, snapshot.whole)
        self._restore("constants", row, snapshot.constants)
        checkpoints = list(snapshot.checkpoints)
        self.rows[row] = Row(
            list(snapshot.tokens), snapshot.written, checkpoints, snapshot.source, snapshot.adapter
        )

    def fork(self, row: int, targets: Sequence[int]) -> None:
        """Gives other rows the text of one."""
        value = self.take(row)
        for target in targets:
            self.put(target, value)

    def take_piece(self, row: int, start: int, stop: int) -> dict[str, Any]:
        """Copies of what is kept by position for positions ``start`` … ``stop - 1``, by state."""
        if start == stop or not self._executable.programs.states_of(BY_POSITION):
            return {}
        program = self._executable.programs.take(self._piece_size(stop - start))
        inputs = {"row": _number(row), "start": _number(start)}
        return program.run({}, inputs, self._states)[0]

    def put_piece(self, row: int, start: int, stop: int, piece: Mapping[str, Any]) -> None:
        """Writes such a copy, or the first positions of a longer one, into a row."""
        if start == stop or not piece:
            return
        state = self._executable.programs.states_of(BY_POSITION)[0]
        slots = described(next(iter(piece.values()))).size // state.value.size
        inputs = {"row": _number(row), "start": _number(start), "length": _number(stop - start)}
        inputs |= {PIECE_PREFIX + name: array for name, array in piece.items()}
        _, updated = self._executable.programs.put(slots).run({}, inputs, self._states)
        self._states |= updated

    def resume(self, row: int, tokens: Sequence[int], checkpoint: Checkpoint | None) -> None:
        """Makes a row go on behind ``tokens``, whose pieces were put: with its other states from there."""
        if checkpoint is not None:
            self._restore("whole", row, checkpoint.arrays)
        written = len(tokens) if checkpoint is None else checkpoint.written
        kept = [checkpoint] if checkpoint is not None and checkpoint.position <= len(tokens) else []
        self.rows[row] = Row(list(tokens), written, kept, adapter=self.rows[row].adapter)

    def _piece_size(self, positions: int) -> int:
        return min(size for size in self._executable.options.score_lengths if size >= positions)

    def _save(self, name: str, row: int, states: Mapping[str, Any]) -> dict[str, Any]:
        programs = self._executable.programs
        if not programs.states_of(_GROUPS[name], self._room):
            return {}
        return programs.save(name, _GROUPS[name], self._room).run({}, {"row": _number(row)}, states)[0]

    def _restore(self, name: str, row: int, arrays: Mapping[str, Any]) -> None:
        if not arrays:
            return
        inputs = {PIECE_PREFIX + state: array for state, array in arrays.items()} | {"row": _number(row)}
        program = self._executable.programs.restore(name, _GROUPS[name], self._room)
        _, updated = program.run({}, inputs, self._states)
        self._states |= updated

    def _counts(self, by_row: Mapping[int, int]) -> np.ndarray:
        counts = np.zeros(len(self.rows), np.int32)
        for row, count in by_row.items():
            counts[row] = count
        return counts

    def _ends(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        assert self._source is not None
        return {f"length.{self._source.clock}": counts}


def _number(value: int) -> np.ndarray:
    return np.array([value], np.int32)
