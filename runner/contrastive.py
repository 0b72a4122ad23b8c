"""Contrastive search: of the likeliest tokens, the one whose hidden state is least like those before it.

Su et al., "A contrastive framework for neural text generation", 2022. The candidates are read side by side,
a row each, in one call; the states of the chosen row are copied to all rows by the call that reads the next
candidates, so nothing is ever undone, and a model may keep its past in any way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler.similarity import SIMILARITY
from ..ir.errors import SystolicError
from .generate import Generation, Reply, Step, sampling_row
from .lengths import require_one_length
from .sampling.filters import LogSoftmax
from .sampling.structure import DAMAGED, NOTHING_LEFT
from .search_rows import SearchRows
from .sources import EncoderStates, Source

if TYPE_CHECKING:
    from .executable import Executable


@dataclass(frozen=True, kw_only=True)
class ContrastiveSearch(Generation):
    """How a text is searched, beside the penalties and bans of ``Sampling`` and the limits of ``Generation``.

    Each new token is that of the ``top_k`` likeliest with the largest
    (1 - ``penalty_alpha``) * probability - ``penalty_alpha`` * similarity, where the similarity is the
    largest cosine between its hidden state, behind the final norm, and that of any token before it, the
    prompt's included. ``penalty_alpha`` 0 or ``top_k`` 1 is a greedy search.
    """

    top_k: int = 4
    penalty_alpha: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        alpha = self.penalty_alpha
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
            raise SystolicError(f"penalty_alpha must be a number from 0 to 1, not {alpha!r}")
        if self.top_k < 1:
            raise SystolicError(
                "top_k must be at least 1 in a contrastive search: it reads so many candidates"
            )
        if self.form is not None:
            raise SystolicError("a contrastive search cannot be held to a grammar")
        if self.draws or self.logprobs is not None:
            raise SystolicError(
                "a contrastive search draws nothing and lists no log-probabilities: "
                "no temperature, no logprobs"
            )


def contrastive_search(
    executable: Executable,
    prompt: str | Sequence[int] | Source,
    encoder_states: np.ndarray | None,
    search: Mapping[str, Any],
) -> Iterator[Step]:
    """What ``Executable.contrastive_steps`` gives."""
    settings = ContrastiveSearch(**search)
    given = prompt if encoder_states is None else EncoderStates(encoder_states)
    source, ids = executable.prompt_of(given, settings)
    rows = min(settings.top_k, executable.logit_count)
    return contrastive_steps(executable.with_similarity.with_rows(rows), ids, source, settings)


def contrastive_steps(
    executable: Executable, prompt: Sequence[int], source: Source, search: ContrastiveSearch
) -> Iterator[Step]:
    """The new tokens one by one, behind a prompt (and a source), as ``Executable.steps`` gives them.

    ``executable`` yields the similarity of each position, and has ``top_k`` rows. A candidate is read before
    it is chosen, so prompt and new tokens are at most as many as the capacity.
    """
    require_one_length(executable.model, executable.options.capacity)
    room = executable.options.capacity - len(prompt)
    within = replace(search, max_new_tokens=min(search.max_new_tokens, room))
    reply = Reply(executable, prompt, within)
    if reply.is_over:
        return
    sampling = sampling_row(executable, len(prompt), within)
    sampling = replace(sampling, chain=(*sampling.chain, LogSoftmax()))
    count = min(search.top_k, executable.logit_count)
    rows = SearchRows(
        executable,
        prompt,
        source,
        sampling=sampling,
        candidates=count,
        adapter=search.adapter,
        beside=(SIMILARITY,),
    )
    likely, row = rows.run([0], [prompt[-1]]), 0
    while not reply.is_over:
        tokens, chances = likely["tokens"][row], likely["scores"][row]
        likely = rows.run([row] * count, tokens)
        row = _best(chances, likely[SIMILARITY][:, 0], search.penalty_alpha)
        step = reply.push(int(tokens[row]) if row >= 0 else row)
        if step.finish_reason == "length" and room < search.max_new_tokens:
            step = step._replace(finish_reason="capacity")
        yield step


def _best(chances: np.ndarray, similarity: np.ndarray, alpha: float) -> int:
    """The best candidate by the logs of their probabilities f32[k] and their similarities f32[k], the
    likeliest of equals; or what stands for none. Tokens that were removed, -inf, are never chosen."""
    if np.isnan(chances).any() or not np.isfinite(similarity).all():
        return DAMAGED
    scores = (1 - alpha) * np.exp(chances.astype(np.float64)) - alpha * similarity.astype(np.float64)
    scores[np.isneginf(chances)] = -np.inf
    best = int(scores.argmax())
    return best if np.isfinite(scores[best]) else NOTHING_LEFT
