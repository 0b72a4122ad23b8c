"""Seed-OSS: a Llama whose biases are switched for the heads and for their output apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..family import LLAMA_NAMING, Family
from ..spec import Size
from .llama import Llama


@dataclass(frozen=True, kw_only=True)
class SeedOss(Llama):
    harmless: ClassVar[frozenset[str]] = frozenset({"residual_dropout"})  # of training

    max_position_embeddings: Size = 524288
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    attention_bias: bool = True
    attention_out_bias: bool = False

    @property
    def output_bias(self) -> bool:
        return self.attention_out_bias


FAMILIES = {"seed_oss": Family(SeedOss, LLAMA_NAMING)}
