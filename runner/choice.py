"""The seam to sampling: one token from the logits of one text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..ir.errors import SystolicError
from .decode_loop import raise_if_failed
from .generate import Alternative, Generation, sampling_row
from .grammar import Constraint
from .sampling.host import HostSampler
from .sampling.structure import DAMAGED, NOTHING_LEFT

if TYPE_CHECKING:
    from .executable import Executable


class Chooser:
    """Chooses the tokens of one text, of which ``prompt`` were given, as ``exe.generate`` does alone."""

    def __init__(self, executable: Executable, prompt: int, generation: Generation) -> None:
        self.row = sampling_row(executable, prompt, generation)
        self._executable = executable
        self._prompt = prompt
        self._logprobs = generation.logprobs
        self._constraint: Constraint | None = None
        if generation.form is not None:
            ends = generation.end_tokens(executable.model.eos_ids)
            self._constraint = executable.grammars.constraint(generation.form, ends)

    @property
    def needs_logits(self) -> bool:
        """Whether more is made of the logits than a token."""
        return self._logprobs is not None or self._constraint is not None

    @cached_property
    def _sampler(self) -> HostSampler:
        executable = self._executable
        return HostSampler(self.row, executable.logit_count, executable.options.capacity)

    def prepare(self) -> None:
        """Makes what choosing takes now."""
        _ = self._sampler

    def choose(
        self, logits: np.ndarray, tokens: Sequence[int], banned: Collection[int] = (), attempt: int = 0
    ) -> int:
        """The token behind all of a text's ``tokens``, where the model gave ``logits`` [V].

        ``banned`` tokens are not chosen; another ``attempt`` has random numbers of its own. Raises
        ``SystolicError`` if the logits are not numbers, or the text does not fit its grammar.
        """
        if self._constraint is not None:
            logits = np.where(self._constraint.allowed(tokens[self._prompt :]), logits, -np.inf)
        return self.checked(self._sampler.choose(logits, tokens, banned, attempt), tokens)

    def chances(self, logits: np.ndarray, token: int) -> tuple[float | None, tuple[Alternative, ...]]:
        """The log-probability of the chosen token as the model gave it, and the likeliest ones, as far as
        they are asked for."""
        if self._logprobs is None:
            return None, ()
        shifted = logits - logits.max()
        scores = shifted - np.log(np.exp(shifted).sum())
        best = np.argsort(-scores, kind="stable")[: self._logprobs]
        return float(scores[token]), tuple(Alternative(int(i), float(scores[i])) for i in best)

    def completes(self, tokens: Sequence[int]) -> bool:
        """Whether a text is over with its last token because its grammar says so."""
        return self._constraint is not None and self._constraint.is_complete(tokens[self._prompt :])

    def checked(self, token: int, tokens: Sequence[int]) -> int:
        """The token that was chosen behind ``tokens``; ``SystolicError`` if none could be."""
        raise_if_failed(token, len(tokens) - self._prompt)
        return token


class Chances:
    """The distributions that the tokens of such a text are drawn from; greedy: all on one token.

    ``SystolicError`` for sampling whose choices depend on more than the text.
    """

    def __init__(self, executable: Executable, prompt: int, generation: Generation) -> None:
        row = sampling_row(executable, prompt, generation)
        capacity = executable.options.capacity
        self._draws = row.draws
        self._prompt = prompt
        self._sampler = HostSampler(row, executable.logit_count, capacity, yields_scores=True)
        if self._sampler.learns:
            raise SystolicError("mirostat learns from each choice, so guessed tokens cannot be checked")
        if generation.form is not None:
            raise SystolicError("guessed tokens cannot be checked against a grammar")

    def of(self, logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
        """The distribution f64[V] behind a text's ``tokens``, where the model gave ``logits`` [V]."""
        scores = np.array(self._sampler.scores(logits, tokens), np.float64)
        if not np.isfinite(logits.max()):
            raise_if_failed(DAMAGED, len(tokens) - self._prompt)
        if not np.isfinite(scores.max()):
            raise_if_failed(NOTHING_LEFT, len(tokens) - self._prompt)
        powers = np.exp(scores - scores.max()) if self._draws else np.arange(len(scores)) == scores.argmax()
        return powers / powers.sum()
