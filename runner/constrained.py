"""Generation that a grammar constrains: each token is chosen on the host, where the grammar is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .batch import Batch
from .choice import Chooser
from .generate import Generation, Reply, Step
from .sources import Source

if TYPE_CHECKING:
    from .executable import Executable


def run_constrained(
    executable: Executable,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    first_row: int = 0,
    sources: Sequence[Source] = (),
    adapters: Sequence[int] = (),
) -> Iterator[list[Step | None]]:
    """As ``run_rows``, with one call of the model for each token."""
    rows = Batch(executable, checkpoint_every=0)
    replies = [Reply(executable, prompt, generation) for prompt in prompts]
    choosers = [Chooser(executable, len(prompt), generation) for prompt in prompts]
    texts = [list(prompt) for prompt in prompts]
    for row in range(len(prompts)):
        rows.begin(row, sources[row] if sources else (), adapters[row] if adapters else 0)
    pending = {row: texts[row] for row, reply in enumerate(replies) if not reply.is_over}
    while pending:
        logits = rows.read(pending)
        steps: list[Step | None] = [None] * len(prompts)
        for row in pending:
            token = choosers[row].choose(logits[row], texts[row], attempt=first_row + row)
            texts[row].append(token)
            chances = choosers[row].chances(logits[row], token)
            steps[row] = replies[row].push(token, *chances, is_complete=choosers[row].completes(texts[row]))
        yield steps
        pending = {row: texts[row][-1:] for row in pending if not replies[row].is_over}
