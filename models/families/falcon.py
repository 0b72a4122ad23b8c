"""Falcon: attention beside the MLP, keys shared by groups of queries or by all, rotary positions or ALiBi."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...compiler.language import history, position
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ...ir.types import DTYPES
from ..alibi import slopes
from ..blocks import linear
from ..family import Family
from ..gpt import Heads, Names, Positions, RotaryGpt, heads_by_key
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Falcon(RotaryGpt):
    names: ClassVar[Names] = Names(
        embedding="transformer.word_embeddings",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="self_attention",
        output="self_attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
    )
    aliases: ClassVar[dict[str, str]] = {
        "n_embed": "hidden_size",
        "ffn_hidden_size": "intermediate_size",
        "activation": "hidden_act",
        "layer_norm_epsilon": "layer_norm_eps",
    }
    turns_whole_heads: ClassVar[bool] = True

    hidden_act: str = "gelu"
    num_kv_heads: Size | None = None
    alibi: bool = False
    new_decoder_architecture: bool = False
    multi_query: bool = True
    parallel_attn: bool = True
    num_ln_in_parallel_attn: Size | None = None
    bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_attention_heads % self.key_heads:
            raise SystolicError("num_attention_heads is not a multiple of num_kv_heads")
        if self.new_decoder_architecture and not self.parallel_attn:
            raise SystolicError("parallel_attn must be true where new_decoder_architecture is")
        if self.parallel_attn and self.norm_count not in ((1, 2) if self.new_decoder_architecture else (1,)):
            raise SystolicError(f"num_ln_in_parallel_attn cannot be {self.norm_count} in this architecture")

    @property
    def norm_count(self) -> int:
        """How many norms a layer has whose attention and MLP read the same stream."""
        return self.num_ln_in_parallel_attn or (2 if self.new_decoder_architecture else 1)

    @property
    def key_heads(self) -> int:
        if self.multi_query and not self.new_decoder_architecture:
            return 1
        has_groups = self.new_decoder_architecture and self.num_kv_heads is not None
        return self.num_kv_heads if has_groups else self.num_attention_heads  # type: ignore[return-value]

    @property
    def qkv_bias(self) -> bool:
        return self.bias

    @property
    def output_bias(self) -> bool:
        return self.bias

    @property
    def mlp_bias(self) -> bool:
        return self.bias

    @property
    def is_parallel(self) -> bool:
        return self.parallel_attn

    def norms(self) -> tuple[str, str | None]:
        if not self.parallel_attn:
            return "input_layernorm", "post_attention_layernorm"
        return ("ln_attn", "ln_mlp") if self.norm_count == 2 else ("input_layernorm", None)

    def positions(self) -> Positions:
        return Positions(bias=self.gains()) if self.alibi else super().positions()

    def gains(self) -> Stream:
        """What the scores of each past position gain, [K, G, past]: rounded to bfloat16, as in training,
        and divided by the root of a head's size like the scores themselves."""
        shape = (self.key_heads, self.num_attention_heads // self.key_heads, 1)
        rates = rounded(slopes(self.num_attention_heads)).reshape(shape)
        past = history(position()).cast("bf16").cast("f32")
        rising = (past * rates).cast("bf16").cast("f32")
        return (rising * self.head_size**-0.5).named("alibi")

    def heads(self, x: Stream, name: str) -> Heads:
        width = (self.num_attention_heads + 2 * self.key_heads) * self.head_size
        qkv = linear(x, f"{name}.query_key_value", width, bias=self.bias)
        return heads_by_key(qkv, self.key_heads, self.head_size)


def rounded(values: np.ndarray) -> np.ndarray:
    """f32 values as bfloat16 holds them."""
    return values.astype(DTYPES["bf16"]).astype(np.float32)


_NAMING = Naming(
    "transformer.",
    (r"rotary_emb\.inv_freq", r"self_attention\.rotary\.inv_freq"),
    tied={"lm_head.weight": "transformer.word_embeddings.weight"},
)
FAMILIES = {"falcon": Family(Falcon, _NAMING)}
