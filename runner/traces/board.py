"""A trace as the table that a person would draw on a board."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..commands.table import aligned
from .record import Candidate, GenerationTrace, Token

WIDTH = 110  # columns, where nothing says how many there are
_NARROWEST, _WIDEST = 80, 160
_LEAST_TEXT = 12
_LOOKED_AT, _TOKEN = 2, 12  # tokens that attention went to, and how long one is shown


def board(trace: GenerationTrace, width: int = WIDTH) -> str:
    """A line for each new token: the text so far, what came, what else could have, and what was looked at."""
    if not trace.steps:
        return "no new token"
    width = min(max(width, _NARROWEST), _WIDEST)
    others = 3 if width >= 100 else 2
    rows = list(_rows(trace, others))
    fixed = [max(map(len, column)) for column in list(zip(*rows, strict=True))[2:]]
    room = max(_LEAST_TEXT, width - len(str(len(rows))) - sum(fixed) - 2 * (len(fixed) + 1))
    rows = [(number, _ending(text, room), *rest) for number, text, *rest in rows]
    right = (0, 1, 3, 4)
    lines = [_cut(line, width) for line in aligned(rows, right).split("\n")]
    return "\n".join([*lines, "", *_legend(trace)])


def _rows(trace: GenerationTrace, others: int) -> Iterator[tuple[str, ...]]:
    attends = any(not stream.is_of_source for stream in trace.attention)
    attends_source = any(stream.is_of_source for stream in trace.attention)
    heads = ["looks at"] * attends + ["looks at in the source"] * attends_source
    yield ("#", "text so far", "next", "p", "bits", "likeliest", *heads)
    for number, step in enumerate(trace.steps, 1):
        looks = [looked_at(trace, step.index - 1, of_source) for of_source in (False, True)]
        shown = [text for text, is_there in zip(looks, (attends, attends_source), strict=True) if is_there]
        yield (
            str(number),
            visible_text(step.text),
            shown_token(step.chosen.token),
            percent(step.chosen.probability),
            f"{step.entropy:.1f}",
            "  ".join(map(_candidate, step.candidates[:others])),
            *shown,
        )


def _candidate(candidate: Candidate) -> str:
    return f"{shown_token(candidate.token)} {percent(candidate.probability)}"


def looked_at(trace: GenerationTrace, row: int, of_source: bool) -> str:
    """The tokens with the most attention, on the average of all layers and heads."""
    texts: Sequence[Token] = trace.source if of_source else trace.tokens
    total, count = np.zeros(len(texts)), 0
    for stream in trace.attention:
        if stream.is_of_source == of_source:
            first, weights = stream.first(row), stream.weights[row]
            total[first : first + weights.shape[1]] += weights.sum(axis=0)
            count += stream.heads
    best = np.argsort(-total, kind="stable")[:_LOOKED_AT]
    return "  ".join(f"{shown_token(texts[at])} {percent(total[at] / max(count, 1))}" for at in best)


def _legend(trace: GenerationTrace) -> Iterator[str]:
    new, prompt = len(trace.steps), trace.prompt
    yield f"{trace.model}: {new} new token{'s' * (new != 1)} behind {prompt}; p, bits (entropy): of the model"
    if trace.attention:
        heads = sum(stream.heads for stream in trace.attention)
        yield f"looks at: the average of {heads} heads in {len(trace.attention)} layers"
    else:
        yield "this model has no attention: what it knows of the text is in its states"


# ---- text in cells ----


def visible_text(text: str) -> str:
    """The text on one line."""
    return text.replace("\n", "↵").replace("\t", "→").replace("\r", "")


def shown_token(token: Token) -> str:
    """A token in a cell: blanks can be seen, and nothing is long."""
    text = visible_text(token.text).replace(" ", "␣")
    return text if len(text) <= _TOKEN else f"{text[: _TOKEN - 1]}…"


def percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _ending(text: str, room: int) -> str:
    return text if len(text) <= room else f"…{text[len(text) - room + 1 :]}"


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"
