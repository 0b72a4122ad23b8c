"""Granite: a Llama whose embeddings, scores, branches and logits are scaled."""

from __future__ import annotations

from dataclasses import dataclass

from ...compiler.stream import Stream
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin
from .llama import Llama


@dataclass(frozen=True, kw_only=True)
class Granite(Llama):
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0

    @property
    def score_scale(self) -> float:
        return self.attention_multiplier

    def embed(self, token: Stream) -> Stream:
        return super().embed(token) * self.embedding_multiplier

    def attend(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        return super().attend(x, i, cos_sin) * self.residual_multiplier

    def mlp(self, x: Stream, name: str) -> Stream:
        return super().mlp(x, name) * self.residual_multiplier

    def head(self, x: Stream) -> Stream:
        return super().head(x) / self.logits_scaling


FAMILIES = {"granite": Family(Granite, LLAMA_NAMING)}
