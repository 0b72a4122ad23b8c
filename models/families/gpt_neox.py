"""GPT-NeoX: heads fused one by one, attention beside the MLP. Persimmon: norms on queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..blocks import linear
from ..family import Family
from ..gpt import Heads, Names, RotaryGpt, heads_by_key
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class GptNeox(RotaryGpt):
    names: ClassVar[Names] = Names(
        embedding="gpt_neox.embed_in",
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        output="attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        head="embed_out",
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    )
    aliases: ClassVar[dict[str, str]] = {
        "rotary_pct": "partial_rotary_factor",
        "rotary_emb_base": "rope_theta",
    }

    partial_rotary_factor: float | None = 0.25
    intermediate_size: Size | None = 24576
    hidden_act: str = "gelu"
    attention_bias: bool = True
    use_parallel_residual: bool = True
    tie_word_embeddings: bool = False

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    @property
    def is_parallel(self) -> bool:
        return self.use_parallel_residual

    def heads(self, x: Stream, name: str) -> Heads:
        qkv = linear(x, f"{name}.query_key_value", 3 * self.hidden_size, bias=self.attention_bias)
        return heads_by_key(qkv, self.num_attention_heads, self.head_size)


@dataclass(frozen=True, kw_only=True)
class Persimmon(RotaryGpt):
    names: ClassVar[Names] = Names(
        embedding="model.embed_tokens",
        layers="model.layers",
        final_norm="model.final_layernorm",
        attention="self_attn",
        output="self_attn.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    )

    max_position_embeddings: Size = 16384
    partial_rotary_factor: float | None = 0.5
    intermediate_size: Size | None = 16384
    hidden_act: str = "relu2"
    qk_layernorm: bool = True
    tie_word_embeddings: bool = False

    def heads(self, x: Stream, name: str) -> Heads:
        qkv = linear(x, f"{name}.query_key_value", 3 * self.hidden_size, bias=True)
        q, k, v = heads_by_key(qkv, self.num_attention_heads, self.head_size)
        if self.qk_layernorm:
            q, k = self.norm(q, f"{name}.q_layernorm"), self.norm(k, f"{name}.k_layernorm")
        return q, k, v


_NEOX_NAMING = Naming(
    "gpt_neox.",
    (r"layers\.\d+\.attention\.(\w*bias|rotary_emb\.inv_freq)",),
    tied={"embed_out.weight": "gpt_neox.embed_in.weight"},
)
_PERSIMMON_NAMING = Naming(
    "model.", (r"rotary_emb\.inv_freq",), tied={"lm_head.weight": "model.embed_tokens.weight"}
)
FAMILIES = {"gpt_neox": Family(GptNeox, _NEOX_NAMING), "persimmon": Family(Persimmon, _PERSIMMON_NAMING)}
