"""GLM: half of each head turned in neighbouring pairs. GLM-4: norms on both sides of each branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..blocks import fused_gated_mlp
from ..decoder import Norms, RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Glm(RotaryDecoder):
    interleaved: ClassVar[bool] = True

    max_position_embeddings: Size = 131072
    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 128
    partial_rotary_factor: float | None = 0.5
    rms_norm_eps: float = 1.5625e-7
    attention_bias: bool = True

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    def mlp(self, x: Stream, name: str) -> Stream:
        return fused_gated_mlp(x, name, self.intermediate_size, self.hidden_act)


@dataclass(frozen=True, kw_only=True)
class Glm4(Glm):
    norms: ClassVar[Norms] = Norms(
        "input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"
    )


FAMILIES = {"glm": Family(Glm, LLAMA_NAMING), "glm4": Family(Glm4, LLAMA_NAMING)}
