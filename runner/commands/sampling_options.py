"""Options of the commands that generate: how the next token is chosen."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...models.model import Model
from ..sampling.settings import INTEGER_FIELDS

CANDIDATES = 4  # of a contrastive search

Temperature = Annotated[
    float | None,
    typer.Option(help="0 always takes the most likely token. Default: as generation_config.json says, or 0."),
]
TopK = Annotated[int | None, typer.Option(help="Draw from the k most likely tokens only; 0: all.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the most likely tokens with this mass.")]
MinP = Annotated[float | None, typer.Option(help="Draw only tokens this many times as likely as the best.")]
TypicalP = Annotated[float | None, typer.Option(help="Draw from the most typical tokens with this mass.")]
TopNSigma = Annotated[
    float | None, typer.Option(help="Draw only tokens with scores so many deviations below the best.")
]
Xtc = Annotated[float | None, typer.Option(help="How often the most obvious tokens are left out.")]
Mirostat = Annotated[float | None, typer.Option(help="Hold the surprise of tokens at so many bits; 0: off.")]
Repetition = Annotated[float | None, typer.Option(help="Divide the scores of tokens that occurred; 1: off.")]
Presence = Annotated[float | None, typer.Option(help="Take this from the score of each generated token.")]
Frequency = Annotated[float | None, typer.Option(help="The same for each time that it was generated.")]
Dry = Annotated[float | None, typer.Option(help="Penalty for going on with a repetition; 0: off.")]
NoRepeatNgram = Annotated[int | None, typer.Option(help="No so many tokens in the same order twice.")]
MinNewTokens = Annotated[int | None, typer.Option(help="No end token before so many tokens.")]
Logprobs = Annotated[
    int | None, typer.Option(help="With --json: log-probabilities of each token and of so many others.")
]
Beams = Annotated[int, typer.Option(help="Search with so many beams instead of choosing token by token.")]
LengthPenalty = Annotated[
    float, typer.Option(help="Of a beam search: scores are divided by the length to this power.")
]
PenaltyAlpha = Annotated[
    float | None,
    typer.Option(
        help="Contrastive search: how much the likeness to tokens before counts against each of the --top-k "
        "likeliest tokens (default 4), from 0 to 1; 0.6 is usual."
    ),
]
Seed = Annotated[int, typer.Option(help="The same seed draws the same tokens.")]


def sampling_settings(model: Model, **asked: Any) -> dict[str, Any]:
    """What the options say, and behind them the model's own settings, as fields of ``Sampling``."""
    settings = {**model.sampling, **{name: value for name, value in asked.items() if value is not None}}
    return {name: int(v) if name in INTEGER_FIELDS else v for name, v in settings.items()}


def contrastive_settings(settings: dict[str, Any], **asked: Any) -> dict[str, Any]:
    """The settings of a contrastive search, which draws only if that is ``asked`` for, and is refused then:
    a temperature or top-k that the model proposes is for drawing."""
    own = {"temperature": 0.0, "top_k": CANDIDATES}
    return {**settings, **own, **{name: value for name, value in asked.items() if value is not None}}
