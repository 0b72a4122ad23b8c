"""What stands on top of an encoder: it follows from the class that wrote the file."""

from __future__ import annotations

from ..ir.errors import SystolicError

# By the class name behind the family's: "pooler" sums the text up in one vector, "tokens" yields a
# logit for each token at each position, "next_sentence" two logits for the text.
HEADS: dict[str, tuple[str, ...]] = {
    "Model": ("pooler",),
    "ForPreTraining": ("pooler", "tokens", "next_sentence"),
    "ForMaskedLM": ("tokens",),
    "ForNextSentencePrediction": ("pooler", "next_sentence"),
}


def heads_of(architectures: tuple[str, ...] | None, family: str) -> tuple[str, ...]:
    """The heads of the first class in ``architectures`` (by default the bare model of ``family``).

    Raises ``SystolicError`` with the known classes.
    """
    name = architectures[0] if architectures else f"{family}Model"
    known = {family + suffix: heads for suffix, heads in HEADS.items()}
    if name not in known:
        raise SystolicError(f"architectures: {name!r} is unknown; known: {', '.join(known)}")
    return known[name]
