"""Generation: what is asked for, what one row has said, and how rows go on until all are over."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..backends.interface import Lowered
from ..ir.errors import SystolicError
from ..models.model import NO_CONSTRAINTS
from .decode_loop import (
    LONGEST_CALL,
    DecodeLoop,
    Made,
    Pace,
    first_programs,
    loop_programs,
    raise_if_failed,
    token_and_logits,
)
from .sampling import Row, Sampling, is_integer
from .sampling.structure import structure_of
from .sources import Source
from .tokens import StopStrings, TextStream

if TYPE_CHECKING:
    from .executable import Executable
    from .grammar import Grammar
    from .tokens import Tokenizer

__all__ = [
    "Alternative",
    "Generation",
    "Reply",
    "Step",
    "loop_of",
    "run_constrained",
    "run_rows",
    "unwatched",
]


class Alternative(NamedTuple):
    """A token that could have come, and the log of its probability as the model gave it."""

    token: int
    logprob: float


class Step(NamedTuple):
    """One new token. ``finish_reason`` is set on a row's last: eos, length, stop or capacity.

    ``text`` is what can be shown now; the end of a text may come with a later step. With
    ``Sampling.logprobs``, ``logprob`` is the log of the token's probability as the model gave it, before
    any step of the chain, and ``alternatives`` are the likeliest tokens, the likeliest first.
    """

    token: int
    finish_reason: str | None
    text: str
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Generation(Sampling):
    """How a text is continued, and how its tokens are chosen (the fields of ``Sampling``).

    ``stop``: strings that end it and are not shown; ``stop_tokens``: tokens that do, beside the model's
    own; ``ignore_eos`` goes on behind an end-of-sequence token, and heeds nothing that
    generation_config.json forces or bans. ``prefix``: what the target of an encoder-decoder begins with
    behind its start token. ``tokens_per_call`` is how many tokens one call of the device makes, at most 64;
    by default that many where nobody reads along, and otherwise as many as take about a twentieth of a
    second. It changes no token. ``json_schema`` (an object, or its JSON), ``regex`` or ``grammar`` (in
    Lark's form) is what the new text must fit as a whole; it does unless ``max_new_tokens`` or the capacity
    cuts it off. ``adapter`` names one of those that the model was compiled with. Raises ``SystolicError``
    that names the field.
    """

    max_new_tokens: int = 64
    stop: Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    ignore_eos: bool = False
    prefix: Sequence[int] = ()
    tokens_per_call: int | None = None
    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_integer(self.max_new_tokens) or self.max_new_tokens < 0:
            raise SystolicError(
                f"max_new_tokens must be an integer of at least 0, not {self.max_new_tokens!r}"
            )
        per_call = self.tokens_per_call
        if per_call is not None and (not is_integer(per_call) or per_call < 1):
            raise SystolicError(f"tokens_per_call must be an integer of at least 1, not {per_call!r}")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise SystolicError(f"stop must be strings that are not empty, not {self.stop!r}")
        object.__setattr__(self, "stop", stops)
        if not all(is_integer(token) and token >= 0 for token in self.stop_tokens):
            raise SystolicError(f"stop_tokens must be token ids, not {self.stop_tokens!r}")
        _ = self.form  # raises for what is none

    @property
    def form(self) -> Grammar | None:
        """The grammar that the new text must fit, if there is one."""
        if self.json_schema is self.regex is self.grammar is None:
            return None
        from .grammar import Grammar  # few texts have to fit one

        return Grammar.of_settings(self.json_schema, self.regex, self.grammar)

    def end_tokens(self, eos_ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens of a model that end this text."""
        return tuple(dict.fromkeys((*self.stop_tokens, *(() if self.ignore_eos else eos_ids))))


class Reply:
    """What one row has said, and when it is over."""

    def __init__(self, executable: Executable, prompt: Sequence[int], generation: Generation) -> None:
        self._generation = generation
        self._eos_ids = generation.end_tokens(executable.model.eos_ids)
        self._capacity = executable.options.capacity
        self._stops = StopStrings(generation.stop)
        tokenizer: Tokenizer | None = executable.tokenizer
        self._stream = TextStream(tokenizer, prompt) if tokenizer else None
        self._seen = len(prompt)
        self._count = 0
        self.is_over = generation.max_new_tokens == 0

    @property
    def limit(self) -> int:
        """How many more tokens can come before the length or the capacity ends the row."""
        if self.is_over:
            return 0
        of_capacity = self._capacity + 1 - self._seen - self._count
        return min(self._generation.max_new_tokens - self._count, of_capacity)

    def push(
        self,
        token: int,
        logprob: float | None = None,
        alternatives: tuple[Alternative, ...] = (),
        *,
        is_complete: bool = False,
    ) -> Step:
        """The step of a new token: its text, and whether the row ends with it, as it does where the text
        ``is_complete``."""
        raise_if_failed(token, self._count)
        self._count += 1
        reason, text = self._ending(token, is_complete)
        self.is_over = reason is not None
        return Step(token, reason, text, logprob, alternatives)

    def _ending(self, token: int, is_complete: bool) -> tuple[str | None, str]:
        """Why the row ends with the token, if it does, and the text that can be shown."""
        if token in self._eos_ids:  # not text, whatever the tokenizer thinks of it
            return "eos", self._rest()[0]
        text, stopped = self._stops.push(self._stream.push(token)) if self._stream else ("", False)
        if stopped:
            return "stop", text
        reason = "stop" if is_complete else self._limit_reason()
        if reason:
            rest, stopped = self._rest()
            return "stop" if stopped else reason, text + rest
        return None, text

    def _limit_reason(self) -> str | None:
        if self._count >= self._generation.max_new_tokens:
            return "length"
        # The newest token has not been read yet: it would take position seen + count - 1.
        return "capacity" if self._seen + self._count > self._capacity else None

    def _rest(self) -> tuple[str, bool]:
        text, stopped = self._stops.push(self._stream.finish()) if self._stream else ("", False)
        return (text, True) if stopped else (text + self._stops.finish(), False)


def sampling_row(executable: Executable, prompt: int, generation: Generation, stream: int = 0) -> Row:
    """What a text behind a prompt of so many tokens is sampled with; ``stream`` numbers texts that share
    a seed."""
    model = executable.model
    eos_ids = generation.end_tokens(model.eos_ids)
    row = generation.row(stream=stream, prompt=prompt, eos_ids=eos_ids)
    if generation.ignore_eos or model.constraints == NO_CONSTRAINTS:
        return row
    from .constraints import constraint_steps

    steps = constraint_steps(model.constraints, prompt, generation.max_new_tokens)
    return replace(row, chain=(*steps, *row.chain))


def unwatched(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a generation that nobody reads along with: long calls."""
    return {"tokens_per_call": LONGEST_CALL, **settings}


def loop_of(executable: Executable, prompt: int, generation: Generation, source: int = 0) -> list[Lowered]:
    """The programs that a row reads a prompt of so many tokens with, and goes on with behind it."""

    def chunks(length: int) -> list[Lowered]:
        return [executable.programs.lowered.chunk(size, source) for size in executable.options.cut(length)]

    if generation.form is not None:  # each token is chosen on the host
        return chunks(prompt - 1)
    row = sampling_row(executable, prompt, generation)
    ends = generation.end_tokens(executable.model.eos_ids)
    table = _stop_table(executable, generation)
    states = 0 if table is None else len(table)
    structure = structure_of([row], generation.logprobs)
    names = token_and_logits(executable)
    loop, recall = loop_programs(executable.programs.lowered, names, structure, len(ends), source, states)
    first = first_programs(executable, structure, [prompt])
    read = chunks(prompt - (not first))  # a step reads the last token
    wanted = [*read, *first, recall, loop if generation.max_new_tokens > 1 or not first else None]
    return [program for program in wanted if program is not None]


def _stop_table(executable: Executable, generation: Generation) -> np.ndarray | None:
    """The automaton of the stop strings, if there are any."""
    if not generation.stop or executable.tokenizer is None:
        return None
    from .stop_automaton import stop_table

    return stop_table(executable.tokenizer, generation.stop, executable.logit_count)


def run_rows(
    executable: Executable,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    first_row: int = 0,
    sources: Sequence[Source] = (),
    adapters: Sequence[int] = (),
) -> Iterator[list[Step | None]]:
    """Continues all prompts side by side; each item holds a step for each row that is not over.

    An encoder-decoder continues each prompt behind the source of the same row; ``adapters`` are the numbers
    of each row's. Random numbers are drawn for rows ``first_row``, ``first_row + 1`` …
    """
    replies = [Reply(executable, prompt, generation) for prompt in prompts]
    if all(reply.is_over for reply in replies):
        return
    unused = executable.options.batch - len(prompts)
    empty: list[Sequence[int]] = [()] * unused
    sampling = [
        sampling_row(executable, len(prompt), generation, first_row + row)
        for row, prompt in enumerate(prompts)
    ]
    ends = generation.end_tokens(executable.model.eos_ids)
    resting = [Row(draws=sampling[0].draws)] * unused
    loop = DecodeLoop(
        executable,
        [*sampling, *resting],
        [ends] * executable.options.batch,
        [*sources, *empty] if sources else (),
        generation.logprobs,
        _stop_table(executable, generation),
        adapters,
        [len(prompt) for prompt in prompts],
        max(reply.limit for reply in replies),
    )
    made = loop.begin([*prompts, *empty])
    yield from _steps(replies, made)
    newest = made.newest(np.zeros(executable.options.batch, np.int32))
    pace = Pace(generation.tokens_per_call)
    ahead, as_asked = None, True
    while any(reply.limit > 0 for reply in replies):
        started = time.perf_counter()
        left = np.array([reply.limit for reply in replies] + [0] * unused, np.int32)
        call = ahead or loop.call(newest, np.minimum(left, pace.tokens))
        # The call behind it begins before anybody has looked at its tokens; what is over rests there.
        behind = np.minimum(np.maximum(left - call.limits, 0), pace.tokens)
        ahead = loop.call_behind(call, behind) if loop.runs_ahead and as_asked and behind.any() else None
        made = loop.finish(call, newest)
        pace.took(int(made.counts.max()), started)
        yield from _steps(replies, made)
        newest = made.newest(newest)
        # A row that the device has ended and the host has not goes on from the host's tokens.
        counts = zip(replies, made.counts, call.limits, strict=False)
        as_asked = all(reply.is_over or count == limit for reply, count, limit in counts)


def run_constrained(*arguments: Any) -> Iterator[list[Step | None]]:
    """As ``run_rows``, where new text must fit a grammar."""
    from .constrained import run_constrained as run  # few texts have to

    return run(*arguments)


def _steps(replies: Sequence[Reply], made: Made) -> Iterator[list[Step | None]]:
    """What one call made, token by token."""
    counts = made.counts
    for at in range(int(counts.max())):
        yield [
            _step(reply, made, row, at) if at < counts[row] and not reply.is_over else None
            for row, reply in enumerate(replies)
        ]


def _step(reply: Reply, made: Made, row: int, at: int) -> Step:
    token, beside = int(made.tokens[row, at]), made.beside
    if "logprob" not in beside:
        return reply.push(token)
    alternatives: tuple[Alternative, ...] = ()
    if "alternatives" in beside:
        pairs = zip(beside["alternatives"][row, at], beside["alternative_logprobs"][row, at], strict=True)
        alternatives = tuple(Alternative(int(other), float(chance)) for other, chance in pairs)
    return reply.push(token, float(beside["logprob"][row, at]), alternatives)
