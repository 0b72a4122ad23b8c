"""Rows that generate on the device: prompts are read in chunks, then one call makes many tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends.interface import Lowered, Prepared
from ..compiler.program import NO_TOKEN, SAMPLING, Program
from ..ir.errors import SystolicError
from .programs import ProgramTable, Result
from .rows import Rows
from .sampling.structure import DAMAGED, LONGEST_CALL, NONE, Row, Structure, row_inputs, structure_of
from .sources import Source

if TYPE_CHECKING:
    from .executable import Executable
    from .options import Options

SECONDS_PER_CALL = 0.05  # that somebody who reads along waits at most
BEHIND = ("newest", "offset", "state")  # results of a call that only the call behind it takes
FEWEST_STOPS = 4  # stop tokens are filled up to 4, 8 …, so that few numbers of them have a program


@dataclass(frozen=True)
class Made:
    """What one call made: ``tokens`` i32[B, n] with ``NO_TOKEN`` where a row had ended, and what else the
    sampling program yields, [B, n, …]."""

    tokens: np.ndarray
    beside: Mapping[str, np.ndarray]

    @cached_property
    def counts(self) -> np.ndarray:
        """How many tokens each row has got."""
        return (self.tokens != NO_TOKEN).sum(axis=1)

    def newest(self, before: np.ndarray) -> np.ndarray:
        """The last token i32[B] of each row, which is that of ``before`` where none was made."""
        last = self.tokens[np.arange(len(before)), np.maximum(self.counts - 1, 0)]
        return np.where(self.counts > 0, last, before).astype(np.int32)


@dataclass(frozen=True)
class Call:
    """A call of the loop that may still run: up to ``limits`` i32[B] tokens; ``results`` on the device."""

    limits: np.ndarray
    results: Mapping[str, Any]


def reads_last_tokens(lengths: Sequence[int], options: Options) -> bool:
    """Whether prompts of these lengths are read to their ends, since that is predicted to be sooner than a
    step for the last tokens, and all end in the last chunk: it yields what new tokens are chosen from."""
    longest = max(lengths)
    return options.reads_to_end(longest) and min(lengths) > sum(options.cut(longest)[:-1])


class Memory:
    """What a sampling program remembers of each row, by the names of states of ``program``.

    ``recall`` is the program that reads what was said before, or None where tokens are not remembered.
    """

    def __init__(self, executable: Executable, program: Program, recall: Prepared | None) -> None:
        self._recall = recall
        zeros = executable.backend.zeros
        kept = (state for state in program.states if state.name.startswith(SAMPLING))
        self.states = {s.name: zeros(s.type.static_shape, s.type.dtype) for s in kept}

    @property
    def unprefixed(self) -> dict[str, Any]:
        """The states as the sampling program itself calls them."""
        return {name.removeprefix(SAMPLING): array for name, array in self.states.items()}

    def read(self, tokens: Sequence[Sequence[int]], seen: np.ndarray) -> None:
        """Takes in more tokens of each row, behind the ``seen`` ones."""
        if self._recall is None or not any(tokens):
            return
        block = np.zeros((len(tokens), self._recall.program.chunk), np.int32)
        lengths = np.array([len(row) for row in tokens], np.int32)
        for row, text in enumerate(tokens):
            block[row, : len(text)] = text
        states = {s.name: self.states[SAMPLING + s.name] for s in self._recall.program.states}
        given = {"token": block, "offset": seen, "length": lengths}
        _, updated = self._recall.run({}, given, states)
        self.keep_unprefixed(updated)

    def keep_unprefixed(self, updated: Mapping[str, Any]) -> None:
        """Takes states that a program by itself has updated."""
        self.states |= {SAMPLING + name: array for name, array in updated.items()}

    def keep(self, updated: Mapping[str, Any]) -> dict[str, Any]:
        """Takes its part of the updated states; the others."""
        self.states |= {name: array for name, array in updated.items() if name.startswith(SAMPLING)}
        return {name: array for name, array in updated.items() if not name.startswith(SAMPLING)}


def sampling_inputs(structure: Structure, sampling: Sequence[Row], program: Program) -> dict[str, np.ndarray]:
    """The numbers of all rows that a program takes, by input name."""
    wanted = {port.name for port in program.graph.signature.inputs}
    numbers = {SAMPLING + name: array for name, array in row_inputs(structure, sampling).items()}
    return {name: array for name, array in numbers.items() if name in wanted}


class DecodeLoop:
    """Rows and how each of them is sampled; ``stops`` are the tokens that end each row.

    ``sources`` and ``adapters`` as in ``Rows``, ``logprobs`` as in ``Structure``; ``table`` is an automaton
    over tokens that ends rows, see ``stop_automaton``; ``lengths`` are those of the prompts that the first
    rows will ``begin`` with, and ``most`` how many tokens each of them is to make at most. All rows of the
    executable are there; those that nobody uses rest.
    """

    def __init__(
        self,
        executable: Executable,
        sampling: Sequence[Row],
        stops: Sequence[Sequence[int]],
        sources: Sequence[Source] = (),
        logprobs: int | None = None,
        table: np.ndarray | None = None,
        adapters: Sequence[int] = (),
        lengths: Sequence[int] = (1,),
        most: int = LONGEST_CALL,
    ) -> None:
        self._executable = executable
        self.rows = Rows(executable, sources, adapters)
        self._table = table
        self._automaton = np.zeros(len(stops), np.int32)  # the state of each row
        self._last_limits: tuple[bytes, Any] = b"", None
        self.structure = structure_of(sampling, logprobs)
        count = max(map(len, stops), default=0)
        stop = np.full((len(stops), _power_of_two(count)), NONE, np.int32)
        for row, tokens in enumerate(stops):
            stop[row, : len(tokens)] = tokens
        states = 0 if table is None else len(table)
        names = token_and_logits(executable)
        self._asked = names, self.structure, count, self.rows.longest_source, states
        self._prepare(lengths, most)
        loop, _ = loop_programs(executable.programs.lowered, *self._asked)
        recall = executable.programs.recall(self.structure, names)
        self._memory = Memory(executable, loop.program, recall)
        numbers = {**sampling_inputs(self.structure, sampling, loop.program), "stop": stop}
        numbers |= {} if table is None else {"transitions": table}
        self._numbers = {name: executable.backend.place(array) for name, array in numbers.items()}

    def _prepare(self, lengths: Sequence[int], most: int) -> None:
        """Makes the programs that prompts of these lengths and so many tokens take, side by side."""
        programs = self._executable.programs
        lowered = programs.lowered
        begin = first_programs(self._executable, self.structure, lengths)
        read = max(lengths) - (not begin)  # a step reads the last tokens
        chunks = [
            lowered.chunk(size, self.rows.longest_source) for size in self._executable.options.cut(read)
        ]
        loop, recall = loop_programs(lowered, *self._asked)
        self._begins = bool(begin)
        wanted = [*chunks, *begin, recall, loop if most > 1 or not begin else None]
        programs.prepare([one for one in wanted if one is not None])

    @cached_property
    def _program(self) -> Prepared:
        return loop_programs(self._executable.programs, *self._asked)[0]

    def read(self, tokens: Sequence[Sequence[int]]) -> None:
        """Reads tokens of each row without making any: all of a prompt but its last."""
        self._memory.read(tokens, self.rows.seen)
        self.rows.read(tokens)

    def begin(self, prompts: Sequence[Sequence[int]]) -> Made:
        """Reads the prompts of all rows, none of which has read anything; the first new token of each.

        A row with an empty one rests. Waits for the device.
        """
        parts = [prompt[:-1] for prompt in prompts]
        active = np.array([bool(prompt) for prompt in prompts])
        newest = np.array([prompt[-1] if prompt else 0 for prompt in prompts], np.int32)
        if not self._begins:
            self.read(parts)
            return self.make(newest, active.astype(np.int32))
        self._memory.read(parts, self.rows.seen)
        results = self.rows.read(prompts)
        chosen = self._choose(results[self._executable.logits_output], newest)
        tokens = np.where(active[:, None], chosen.pop("token"), NO_TOKEN)
        made = Made(tokens, chosen)
        self._follow(made)
        return made

    def _choose(self, logits: Any, newest: np.ndarray) -> dict[str, np.ndarray]:
        """What the sampling program makes of logits [B, 1, V] behind the ``newest`` token of each row."""
        executable = self._executable
        inputs = {name.removeprefix(SAMPLING): array for name, array in self._numbers.items()}
        inputs |= {
            "logits": logits,
            "token": newest[:, None],
            "offset": np.maximum(self.rows.seen - 1, 0),
            "length": np.ones_like(newest),
        }
        choose = executable.programs.sample(self.structure, executable.logit_count)
        results, updated = choose.run({}, inputs, self._memory.unprefixed)
        self._memory.keep_unprefixed(updated)
        return {name: executable.backend.fetch(array) for name, array in results.items()}

    def make(self, newest: np.ndarray, limits: np.ndarray) -> Made:
        """Up to ``limits`` i32[B] more tokens for each row, and at most ``LONGEST_CALL``, behind the
        ``newest`` i32[B], which have not been read. Waits for the device."""
        return self.finish(self.call(newest, limits), newest)

    def call(self, newest: np.ndarray, limits: np.ndarray) -> Call:
        """Begins what ``make`` does; ``finish`` waits for it."""
        rows = self.rows
        rows.prepare([int(limit > 0) for limit in limits])
        state = {} if self._table is None else {"state": self._automaton}
        return self._call(
            newest.reshape(-1, 1).astype(np.int32), rows.seen, rows.lengths.alike(limits), state
        )

    def call_behind(self, call: Call, limits: np.ndarray) -> Call:
        """Begins the call behind one that may still run; a row that is over with that makes no tokens.

        Only where it ``runs_ahead``.
        """
        results = call.results
        state = {} if self._table is None else {"state": results["state"]}
        return self._call(results["newest"], results["offset"], limits, state)

    @property
    def runs_ahead(self) -> bool:
        """Whether a call can begin before the tokens of the one before it are known, and gains from it: not
        where the host must look at them, or where a backend returns when all is computed."""
        executable = self._executable
        return executable.backend.is_asynchronous and executable.model.shortest_like is None

    def _call(self, newest: Any, offset: Any, limits: np.ndarray, state: Mapping[str, Any]) -> Call:
        executable, rows = self._executable, self.rows
        inputs = {
            executable.inputs.token.name: newest,
            "offset": offset,
            "limit": self._limits(limits),
            **self._numbers,
            **rows.inputs,
            **state,
        }
        states = {**rows.states, **self._memory.states}
        results, updated = self._program.run(executable.parameters, inputs, states)
        rows.states |= self._memory.keep(updated)
        return Call(limits, results)

    def _limits(self, limits: np.ndarray) -> Any:
        """On the device; those of the last call are there."""
        limits = limits.astype(np.int32)  # a copy, which stays as it is
        if self._last_limits[0] != limits.tobytes():
            self._last_limits = limits.tobytes(), self._executable.backend.place(limits)
        return self._last_limits[1]

    def finish(self, call: Call, newest: np.ndarray) -> Made:
        """What a call behind the ``newest`` tokens i32[B] made. Waits for the device."""
        rows, fetch = self.rows, self._executable.backend.fetch
        made = Made(
            fetch(call.results["tokens"]),
            {name: fetch(array) for name, array in call.results.items() if name not in ("tokens", *BEHIND)},
        )
        counts = made.counts
        rows.lengths.grow(
            [first, *more[:count].tolist()][:count]
            for first, more, count in zip(newest.tolist(), made.tokens, counts, strict=True)
        )
        rows.seen = rows.seen + counts.astype(np.int32)
        self._follow(made)
        return made

    def _follow(self, made: Made) -> None:
        """Takes the automaton of each row behind its new tokens."""
        if self._table is None:
            return
        from .stop_automaton import walk

        said = (tokens[:count] for tokens, count in zip(made.tokens, made.counts, strict=True))
        pairs = zip(self._automaton, said, strict=True)
        self._automaton = np.array([walk(self._table, int(state), more) for state, more in pairs], np.int32)


def token_and_logits(executable: Executable) -> tuple[str, str]:
    """The names of the model's token input and of the output that tokens are chosen from."""
    return executable.inputs.token.name, executable.logits_output


def first_programs(executable: Executable, structure: Structure, lengths: Sequence[int]) -> list[Lowered]:
    """What chooses the first new tokens behind prompts of these lengths from what reading them yields.

    Empty where that is left to the decode loop, which reads their last tokens.
    """
    output = executable.model.graph.signature.output(executable.logits_output)
    if executable.model.shortest_like is not None or output.tensor.dtype != "f32":
        return []
    if not reads_last_tokens(lengths, executable.options):
        return []
    return [executable.programs.lowered.sample(structure, executable.logit_count)]


def loop_programs(
    programs: ProgramTable[Result],
    names: tuple[str, str],
    structure: Structure,
    stops: int,
    source: int,
    states: int = 0,
) -> tuple[Result, Result | None]:
    """The decode loop, and what fills its memory, for so many tokens that end a row."""
    loop = programs.generate(structure, _power_of_two(stops), names, source, states)
    return loop, programs.recall(structure, names)


def raise_if_failed(token: int, count: int) -> None:
    """``SystolicError`` for what stands in place of a token that could not be chosen."""
    if token == DAMAGED:
        raise SystolicError(
            f"the model gave the logit nan or inf at new token {count}; its weights may be damaged"
        )
    if token < 0:
        raise SystolicError(f"no token is left to choose from at new token {count}: all were removed")


def _power_of_two(count: int) -> int:
    return max(FEWEST_STOPS, 1 << (count - 1).bit_length()) if count else FEWEST_STOPS


class Pace:
    """How many tokens the next call makes: a fixed number, or as many as take a moment to read along."""

    def __init__(self, tokens_per_call: int | None) -> None:
        self._fixed = tokens_per_call
        self._next = 1

    @property
    def tokens(self) -> int:
        return min(LONGEST_CALL, self._fixed or self._next)

    def took(self, tokens: int, started: float) -> None:
        """A call that was waited for from ``started`` (``time.perf_counter``) on made so many tokens."""
        each = (time.perf_counter() - started) / max(tokens, 1)
        self._next = max(1, min(2 * self._next, int(SECONDS_PER_CALL / max(each, 1e-6))))
