"""Speculative decoding: tokens are guessed, and checked by one call for all of them.

Exact: a guess x, drawn from q, is accepted with probability min(1, p(x) / q(x)); the first that is not is
replaced by one drawn from max(p - q, 0), which makes every token one of p (Leviathan et al. 2023, Chen et
al. 2023). With greedy p this is plain greedy decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import SystolicError
from .adapters import adapter_choice
from .batch import Batch
from .choice import Chances
from .drafts import Drafter, DraftModel, Guesses, PromptLookup, draw, uniform
from .generate import Generation, Reply, Step

if TYPE_CHECKING:
    from .executable import Executable

ACCEPTANCE, REPLACEMENT = 1, 2  # streams of random numbers; guesses are drawn from another


@dataclass
class Acceptance:
    """How a speculation has gone: calls of the model, tokens guessed, guesses that were right."""

    calls: int = 0
    guessed: int = 0
    accepted: int = 0


class Speculation:
    """The continuation of one prompt, several tokens per call: made by ``exe.speculate(prompt, …)``.

    Iterate for the steps. ``draft`` guesses: another executable of the same vocabulary, a ``Drafter``, or,
    by default, what followed the last tokens earlier in the text. Tokens are, greedy, those of
    ``exe.generate``, and otherwise distributed like them.
    """

    def __init__(
        self,
        executable: Executable,
        prompt: str | Sequence[int],
        *,
        draft: Executable | Drafter | None = None,
        guesses: int = 4,
        **generation: Any,
    ) -> None:
        if guesses < 1:
            raise SystolicError(f"guesses must be at least 1, not {guesses}")
        # What the states cannot undo is read again with the next guesses, up to this many tokens.
        self._most_pending = guesses + 2 if executable.undo.is_exact else 1
        self._sizes = tuple(dict.fromkeys((guesses + 1, guesses + self._most_pending)))
        if self._sizes[-1] > executable.options.chunk:
            raise SystolicError(
                f"checking {guesses} guesses can take {self._sizes[-1]} positions at once, more than the "
                f"chunk of {executable.options.chunk} that the states have room for"
            )
        self._executable = executable
        self._generation = Generation(**generation)
        self._source, self._prompt = executable.prompt_of(prompt, self._generation)
        # Both remember the text where sampling needs it: guesses run ahead of what is said.
        self._chances, self._guess_chances = (
            Chances(executable, len(self._prompt), self._generation) for _ in range(2)
        )
        self._seed = self._generation.seed
        self._guesses = guesses
        self._draft = _drafter(executable, draft)
        self._rows = Batch(executable, checkpoint_every=0)
        self._rows.prepare_checks(self._sizes)
        self.acceptance = Acceptance()

    def __iter__(self) -> Iterator[Step]:
        generation = self._generation
        if generation.max_new_tokens == 0:
            return
        adapter = adapter_choice(self._executable.model, generation.adapter)
        self._rows.begin(0, self._source, adapter.number)
        said: list[int] = []
        pending = list(self._prompt)  # what the row has not read of the text
        reply = Reply(self._executable, self._prompt, generation)
        while True:
            if len(pending) > self._most_pending:
                self._rows.read({0: pending[:-1]})
                pending = pending[-1:]
            fresh, pending = self._advance(self._rows, said, pending)
            for token in fresh:
                said.append(token)
                step = reply.push(token)
                yield step
                if step.finish_reason is not None:
                    return

    def _advance(self, rows: Batch, said: list[int], pending: list[int]) -> tuple[list[int], list[int]]:
        """One call that reads the ``pending`` tokens and guesses: (new tokens, those to be read next)."""
        seen, text = len(rows.rows[0].tokens), [*self._prompt, *said]
        room = min(self._generation.max_new_tokens - len(said) - 1, rows.capacity - seen - len(pending))
        guesses = Guesses([])
        if room > 0:
            guesses = self._draft.guess(text, min(self._guesses, room), self._guess_chances.of, self._seed)
        if rows.undo.is_exact and guesses.tokens:
            rows.rows[0].checkpoints.clear()
            rows.checkpoint(0)
        logits = self._read(rows, pending, guesses.tokens)
        self.acceptance.calls += 1
        self.acceptance.guessed += len(guesses.tokens)
        after = ([*text, *guesses.tokens[:i]] for i in range(len(logits)))
        chances = [self._chances.of(row, tokens) for row, tokens in zip(logits, after, strict=True)]
        accepted, token = accept(chances, guesses, self._seed, len(said))
        self.acceptance.accepted += accepted
        again = rows.rewind(0, seen + len(pending) + accepted)
        return [*guesses.tokens[:accepted], token], [*again, token]

    def _read(self, rows: Batch, pending: list[int], guesses: list[int]) -> np.ndarray:
        """Logits [n + 1, V] behind the pending tokens and behind each guess."""
        if not guesses:
            return rows.read({0: pending})[0][None]
        read = [*pending, *guesses]
        logits = rows.fetch(rows.run({0: read}, everywhere=self._sizes))[0]
        return logits[len(pending) - 1 : len(read)]


def accept(chances: Sequence[np.ndarray], guesses: Guesses, seed: int, said: int) -> tuple[int, int]:
    """(how many guesses hold, the token behind them) from the distributions p, one behind each guess and
    one before; ``said`` tokens came before, and number the random draws."""
    for i, (guess, p) in enumerate(zip(guesses.tokens, chances, strict=False)):
        q = guesses.chances[i] if guesses.chances else _certain(guess, len(p))
        if uniform(seed, ACCEPTANCE, said + i) * q[guess] < p[guess]:
            continue
        rest = np.maximum(p - q, 0)
        return i, draw(rest if rest.any() else p, uniform(seed, REPLACEMENT, said + i))
    count = len(guesses.tokens)
    return count, draw(chances[count], uniform(seed, REPLACEMENT, said + count))


def _certain(token: int, count: int) -> np.ndarray:
    q = np.zeros(count)
    q[token] = 1.0
    return q


def _drafter(executable: Executable, draft: Executable | Drafter | None) -> Drafter:
    if draft is None:
        return PromptLookup()
    if isinstance(draft, Drafter):
        return draft
    if draft.inputs.source is not None or draft.logit_count != executable.logit_count:
        raise SystolicError(
            f"{draft.model.name} cannot guess for {executable.model.name}: it has {draft.logit_count} tokens "
            f"and {'a source' if draft.inputs.source else 'no source'}, and {executable.logit_count} and no "
            "source are expected"
        )
    return DraftModel(draft)
