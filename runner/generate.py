"""Generation: prompts are read in chunks, then each row goes on token by token until it is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..ir.errors import SystolicError
from ..ir.graph import Node
from .sampling import is_integer
from .sampling.host import Sampling, sample
from .tokens import StopStrings, TextStream, Tokenizer

if TYPE_CHECKING:
    from .executable import Executable


class Step(NamedTuple):
    """One new token. ``finish_reason`` is set on a row's last: eos, length, stop or capacity.

    ``text`` is what can be shown now; the end of a text may come with a later step.
    """

    token: int
    finish_reason: str | None
    text: str


@dataclass(frozen=True)
class Generation:
    """How a text is continued. ``stop``: strings that end it and are not shown; ``ignore_eos`` goes on
    behind an end-of-sequence token. Raises ``SystolicError`` that names the field."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    sampling: Sampling = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not is_integer(self.max_new_tokens) or self.max_new_tokens < 0:
            raise SystolicError(
                f"max_new_tokens must be an integer of at least 0, not {self.max_new_tokens!r}"
            )
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise SystolicError(f"stop must be strings that are not empty, not {self.stop!r}")
        object.__setattr__(self, "stop", stops)
        drawn = Sampling(self.temperature, self.top_k, self.top_p, self.seed)
        object.__setattr__(self, "sampling", drawn)


class Rows:
    """The rows of one run: their states, and how many positions each has seen.

    ``sources`` are what an encoder-decoder reads first, and once: a text for each row, or nothing.
    """

    def __init__(self, executable: Executable, sources: Sequence[Sequence[int]] = ()) -> None:
        self._executable = executable
        self._states = executable.fresh_states()
        self.seen = np.zeros(executable.options.batch, np.int32)
        self._longest_source = 0
        self._source_lengths: dict[str, np.ndarray] = {}  # inputs of all programs
        source = executable.inputs.source
        if source is not None:
            self._read_sources(source, sources)

    def _read_sources(self, source: Node, texts: Sequence[Sequence[int]]) -> None:
        counts = np.array([len(text) for text in texts], np.int32)
        self._longest_source = int(counts.max())
        self._source_lengths = {f"length.{source.clock}": counts}
        program = self._executable.programs.source(self._longest_source)
        block = np.zeros((len(texts), program.program.chunk), np.int32)
        for row, text in enumerate(texts):
            block[row, : len(text)] = text
        inputs = {source.name: block, "offset": self.seen, "length": self.seen, **self._source_lengths}
        _, constants = program.run(self._executable.parameters, inputs, {})
        self._states |= constants

    def feed(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Reads more tokens of each row, any number. Logits float32 [B, V] behind each row's last one.

        Rows without tokens stay as they are, and their logits are zeros.
        """
        counts = np.array([len(row) for row in tokens], np.int32)
        logits = np.zeros((len(tokens), self._executable.logit_count), np.float32)
        start = 0
        for size in chunk_sizes(int(counts.max()), self._executable.options.chunks):
            lengths = np.clip(counts - start, 0, size).astype(np.int32)
            block = np.zeros((len(tokens), size), np.int32)
            for row, length in enumerate(lengths):
                block[row, :length] = tokens[row][start : start + length]
            last = self._run(block, lengths)
            ended = (lengths > 0) & (counts <= start + size)
            if ended.any():  # fetching waits for the device: only where something is read
                logits[ended] = self._executable.backend.fetch(last)[ended, 0]
            start += size
        return logits

    def _run(self, block: np.ndarray, lengths: np.ndarray) -> object:
        program = self._executable.programs.chunk(block.shape[1], self._longest_source)
        inputs = {self._executable.inputs.token.name: block, "offset": self.seen, "length": lengths}
        inputs |= self._source_lengths
        results, updated = program.run(self._executable.parameters, inputs, self._states)
        self._states = {**self._states, **updated}
        self.seen = self.seen + lengths
        return results[self._executable.logits_output]


def chunk_sizes(length: int, sizes: Sequence[int]) -> list[int]:
    """The chunks that ``length`` positions are read in: the largest size, then the smallest that holds
    the rest."""
    largest, rest = max(sizes), length % max(sizes)
    tail = [min(size for size in sizes if size >= rest)] if rest else []
    return [largest] * (length // largest) + tail


class Reply:
    """What one row has said, and when it is over."""

    def __init__(self, executable: Executable, prompt: Sequence[int], generation: Generation) -> None:
        self._generation = generation
        self._eos_ids = () if generation.ignore_eos else executable.model.eos_ids
        self._capacity = executable.options.capacity
        self._stops = StopStrings(generation.stop)
        tokenizer: Tokenizer | None = executable.tokenizer
        self._stream = TextStream(tokenizer, prompt) if tokenizer else None
        self._seen = len(prompt)
        self._count = 0

    def push(self, token: int) -> Step:
        """The step of a new token: its text, and whether the row ends with it."""
        self._count += 1
        if token in self._eos_ids:  # not text, whatever the tokenizer thinks of it
            text, _ = self._rest()
            return Step(token, "eos", text)
        text, stopped = self._stops.push(self._stream.push(token)) if self._stream else ("", False)
        if stopped:
            return Step(token, "stop", text)
        reason = self._limit()
        if reason:
            rest, stopped = self._rest()
            return Step(token, "stop" if stopped else reason, text + rest)
        return Step(token, None, text)

    def _limit(self) -> str | None:
        if self._count >= self._generation.max_new_tokens:
            return "length"
        # The newest token has not been read yet: it would take position seen + count - 1.
        return "capacity" if self._seen + self._count > self._capacity else None

    def _rest(self) -> tuple[str, bool]:
        text, stopped = self._stops.push(self._stream.finish()) if self._stream else ("", False)
        return (text, True) if stopped else (text + self._stops.finish(), False)


def run_rows(
    executable: Executable,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    first_row: int = 0,
    sources: Sequence[Sequence[int]] = (),
) -> Iterator[list[Step | None]]:
    """Continues all prompts side by side; each item holds a step for each row that is not over.

    An encoder-decoder continues each prompt behind the source of the same row. Random numbers are drawn
    for rows ``first_row``, ``first_row + 1`` …
    """
    replies = [Reply(executable, prompt, generation) for prompt in prompts]
    empty: list[Sequence[int]] = [()] * (executable.options.batch - len(prompts))
    pending: list[Sequence[int]] = [*prompts, *empty]
    rows, count = Rows(executable, [*sources, *empty]), 0
    while count < generation.max_new_tokens and any(pending):
        logits = rows.feed(pending)
        steps = [
            reply.push(sample(logits[row], generation.sampling, count, first_row + row))
            if pending[row]
            else None
            for row, reply in enumerate(replies)
        ]
        yield steps
        goes_on = [(step.token,) if step and step.finish_reason is None else () for step in steps]
        pending, count = [*goes_on, *empty], count + 1
