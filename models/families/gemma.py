"""Gemma 2: bounded scores and logits, four norms in a layer, every other layer with a window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..blocks import gated_mlp, rms_norm, soft_cap
from ..decoder import LayerTypes, Norms, RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Gemma2(LayerTypes, RotaryDecoder):
    norms: ClassVar[Norms] = Norms(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )

    max_position_embeddings: Size = 8192
    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 256
    # The activation that counts; some files name one as hidden_act, too, which nothing reads.
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256.0
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    tie_word_embeddings: bool = True

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    @property
    def score_scale(self) -> float:
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def score_cap(self) -> float | None:
        return self.attn_logit_softcapping

    def slides(self, i: int) -> bool:
        return i % 2 == 0

    def norm(self, x: Stream, name: str) -> Stream:
        return rms_norm(x, name, self.rms_norm_eps, offset=1.0)

    def mlp(self, x: Stream, name: str) -> Stream:
        return gated_mlp(x, name, self.intermediate_size, self.hidden_activation)

    def embed(self, token: Stream) -> Stream:
        return super().embed(token) * math.sqrt(self.hidden_size)

    def head(self, x: Stream) -> Stream:
        logits = super().head(x)
        cap = self.final_logit_softcapping
        return logits if cap is None else soft_cap(logits, cap)


FAMILIES = {"gemma2": Family(Gemma2, LLAMA_NAMING)}
