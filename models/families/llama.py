"""Llama, and Mistral, which is a Llama that sees only a window of the past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..blocks import gated_mlp
from ..decoder import RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Llama(RotaryDecoder):
    turns_whole_heads: ClassVar[bool] = True

    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def mlp(self, x: Stream, name: str) -> Stream:
        return gated_mlp(x, name, self.intermediate_size, self.hidden_act, bias=self.mlp_bias)


@dataclass(frozen=True, kw_only=True)
class Mistral(RotaryDecoder):
    turns_whole_heads: ClassVar[bool] = True

    # What the library assumes where a config is silent; a window of null sees all of the past.
    max_position_embeddings: Size = 131072
    num_key_value_heads: Size | None = 8
    sliding_window: Size | None = 4096

    def window(self, i: int) -> int | None:
        return self.sliding_window


FAMILIES = {"llama": Family(Llama, LLAMA_NAMING), "mistral": Family(Mistral, LLAMA_NAMING)}
