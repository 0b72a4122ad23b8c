"""Phi: one norm for attention and the MLP side by side, part of each head turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..family import LLAMA_NAMING, Family
from ..gpt import Heads, Names, RotaryGpt
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Phi(RotaryGpt):
    names: ClassVar[Names] = Names(
        embedding="model.embed_tokens",
        layers="model.layers",
        final_norm="model.final_layernorm",
        attention="self_attn",
        output="self_attn.dense",
        up="mlp.fc1",
        down="mlp.fc2",
        attention_norm="input_layernorm",
        mlp_norm=None,
    )

    partial_rotary_factor: float | None = 0.5
    intermediate_size: Size | None = 8192
    num_key_value_heads: Size | None = None
    qk_layernorm: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_attention_heads % self.key_heads:
            raise SystolicError("num_attention_heads is not a multiple of num_key_value_heads")

    @property
    def key_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_bias(self) -> bool:
        return True

    def heads(self, x: Stream, name: str) -> Heads:
        q, k, v = super().heads(x, name)
        if self.qk_layernorm:
            q, k = self.norm(q, f"{name}.q_layernorm"), self.norm(k, f"{name}.k_layernorm")
        return q, k, v


FAMILIES = {"phi": Family(Phi, LLAMA_NAMING)}
