"""Beam search: several continuations side by side, of which the best ones go on and the ended ones are kept.

A beam that goes on takes over the states of the row that it came from, on the device, in the call that
reads its token; the host sees the best candidates of each row, and decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..ir.errors import SystolicError
from .generate import Generation, sampling_row
from .lengths import require_one_length
from .sampling import is_integer
from .sampling.filters import LogSoftmax
from .search_rows import SearchRows
from .sources import Source

if TYPE_CHECKING:
    from .executable import Executable

NOWHERE = -1e9  # the score of a beam that does not exist yet


@dataclass(frozen=True, kw_only=True)
class BeamSearch(Generation):
    """How beams are searched, beside the penalties and bans of ``Sampling`` and the limits of ``Generation``.

    ``beams`` continuations go on at each step, the best ``n`` that ended are given back. A score is the sum
    of log-probabilities divided by (new tokens, with the end token) ** ``length_penalty``.
    ``early_stopping``: True ends with the ``beams``-th that ended, False when the best that goes on could
    not beat the worst of them if it ended now, "never" when it could not even at its best length. The
    beams are in ``groups`` that search one after the other at each step; a token that n beams of the groups
    before have chosen costs n times ``diversity`` (Vijayakumar et al., "Diverse beam search", 2016).
    """

    beams: int = 4
    n: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    groups: int = 1
    diversity: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beams", "n", "groups"):
            if not is_integer(getattr(self, name)) or getattr(self, name) < 1:
                raise SystolicError(f"{name} must be an integer of at least 1, not {getattr(self, name)!r}")
        if self.n > self.beams or self.beams % self.groups:
            problem = f"n = {self.n} and groups = {self.groups} with {self.beams} beams"
            raise SystolicError(f"n must be at most beams, and groups must divide beams: {problem}")
        if self.early_stopping not in (True, False, "never"):
            raise SystolicError(f"early_stopping must be True, False or 'never', not {self.early_stopping!r}")
        if self.form is not None:
            raise SystolicError("a beam search cannot be held to a grammar")
        if self.draws or self.stop:
            raise SystolicError("a beam search draws nothing and ends at no strings: no temperature, no stop")


class Hypothesis(NamedTuple):
    """One continuation: its new token ids with the end token, and its score."""

    tokens: tuple[int, ...]
    score: float


class _Beam(NamedTuple):
    """A continuation that may go on: the row that it came from, and the sum of its log-probabilities."""

    row: int
    tokens: tuple[int, ...]
    total: float


class Group:
    """The beams that one search holds, in rows ``first`` … ``first + size - 1``."""

    def __init__(self, first: int, search: BeamSearch, ends: Sequence[int]) -> None:
        self.size = search.beams // search.groups
        self.first = first
        self._search = search
        self._ends = ends
        self._kept = max(2, 1 + len(ends)) * self.size
        self.running = [_Beam(first, (), 0.0 if at == 0 else NOWHERE) for at in range(self.size)]
        self.ended: list[Hypothesis] = []
        self._can_improve = True
        self.goes_on = search.max_new_tokens > 0

    def extend(self, tokens: np.ndarray, scores: np.ndarray, taken: Counter[int], last: bool) -> None:
        """One step: ``tokens`` and ``scores`` [B, candidates] list what could follow in each row.

        ``taken`` counts the tokens that the groups before chose, and is added to; ``last`` ends everything.
        """
        search = self._search
        listed = [
            _Beam(self.first + at, (*beam.tokens, token), score - search.diversity * taken[token])
            for at, beam in enumerate(self.running)
            for token, score in zip(
                tokens[self.first + at].tolist(), scores[self.first + at].tolist(), strict=True
            )
        ]
        best = sorted(listed, key=lambda beam: -beam.total)[: self._kept]
        ended = [last or beam.tokens[-1] in self._ends for beam in best]
        over = [beam for beam, is_over in zip(best[: self.size], ended, strict=False) if is_over]
        self._keep(over)
        going = [beam for beam, is_over in zip(best, ended, strict=True) if not is_over][: self.size]
        taken.update(beam.tokens[-1] for beam in (*over, *going))
        self.goes_on = bool(going) and self._should_go_on(going)
        self.running = going + going[-1:] * (self.size - len(going))

    def _keep(self, fresh: list[_Beam]) -> None:
        is_full = len(self.ended) == self.size and self._search.early_stopping is True
        if is_full or not self._can_improve:
            return
        found = [Hypothesis(beam.tokens, self._score(beam.total, len(beam.tokens))) for beam in fresh]
        self.ended = sorted([*self.ended, *found], key=lambda one: -one.score)[: self.size]

    def _score(self, total: float, length: int) -> float:
        return total / length**self._search.length_penalty

    def _should_go_on(self, going: list[_Beam]) -> bool:
        """Whether an open beam could still be better than what has ended."""
        search = self._search
        if len(self.ended) < self.size:
            return True
        if search.early_stopping is True:
            return False
        length = len(going[0].tokens)
        if search.early_stopping == "never" and search.length_penalty > 0:
            length = search.max_new_tokens
        self._can_improve = self._score(going[0].total, length) > self.ended[-1].score
        return self._can_improve


def beam_search(
    executable: Executable, prompt: Sequence[int], source: Source, search: BeamSearch
) -> list[Hypothesis]:
    """The best ``search.n`` continuations of a prompt (behind a source), the best first."""
    require_one_length(executable.model, executable.options.capacity)
    room = executable.options.capacity + 1 - len(prompt)
    search = replace(search, max_new_tokens=min(search.max_new_tokens, room))
    ends = search.end_tokens(executable.model.eos_ids)
    groups = [Group(first, search, ends) for first in range(0, search.beams, search.beams // search.groups)]
    rows = _search_rows(executable, prompt, source, search, len(ends))
    beams = [beam._replace(row=0) for group in groups for beam in group.running]
    newest = [prompt[-1]] * search.beams
    for count in range(search.max_new_tokens):
        listed = rows.run([beam.row for beam in beams], newest, [beam.total for beam in beams])
        taken: Counter[int] = Counter()
        for group in groups:
            if group.goes_on:
                group.extend(
                    listed["tokens"], listed["scores"], taken, last=count == search.max_new_tokens - 1
                )
        if not any(group.goes_on for group in groups):
            break
        beams = [beam for group in groups for beam in group.running]
        newest = [beam.tokens[-1] if beam.tokens else prompt[-1] for beam in beams]
    found = [hypothesis for group in groups for hypothesis in group.ended]
    return sorted(found, key=lambda one: -one.score)[: search.n]


def _search_rows(
    executable: Executable, prompt: Sequence[int], source: Source, search: BeamSearch, ends: int
) -> SearchRows:
    """The rows on the device, that list enough candidates for ``ends`` of them to end a beam."""
    row = sampling_row(executable, len(prompt), search)
    candidates = max(2, 1 + ends) * search.beams // search.groups
    candidates += search.beams if search.diversity else 0  # those that the groups before make worse
    return SearchRows(
        executable,
        prompt,
        source,
        sampling=replace(row, chain=(LogSoftmax(), *row.chain)),
        candidates=candidates,
        adapter=search.adapter,
    )
