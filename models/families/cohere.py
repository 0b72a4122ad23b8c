"""Cohere: attention and MLP side by side behind one norm. Cohere 2: no positions where all is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import mean, parameter, rsqrt
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ..blocks import layer_norm
from ..decoder import LayerTypes, RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin, Rope
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class CohereFields(RotaryDecoder):
    interleaved: ClassVar[bool] = True
    turns_whole_heads: ClassVar[bool] = True

    max_position_embeddings: Size = 8192
    layer_norm_eps: float = 1e-5
    logit_scale: float = 0.0625
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, self.layer_norm_eps, bias=False)

    def layer(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        name = f"model.layers.{i}"
        normal = self.norm(x, f"{name}.input_layernorm")
        with scope("attn"):
            x = x + self.attend(normal, i, cos_sin)
        with scope("mlp"):
            return (x + self.mlp(normal, f"{name}.mlp")).named("x")

    def head(self, x: Stream) -> Stream:
        return super().head(x) * self.logit_scale


@dataclass(frozen=True, kw_only=True)
class Cohere(CohereFields):
    default_theta: ClassVar[float] = 500000.0

    use_qk_norm: bool = False

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        q, k, v = super().heads(x, name)
        if not self.use_qk_norm:
            return q, k, v
        flat = q.reshape(self.num_attention_heads, self.head_size)
        normal = self.head_norm(flat, f"{name}.q_norm").reshape(*q.shape)
        return normal, self.head_norm(k, f"{name}.k_norm"), v

    def head_norm(self, x: Stream, name: str) -> Stream:
        """Each head [H, D] with mean 0 and variance 1, and weights of its own [H, D]."""
        centred = x - mean(x, axis=-1, keepdims=True)
        spread = rsqrt(mean(centred * centred, axis=-1, keepdims=True) + self.layer_norm_eps)
        return centred * spread * parameter(f"{name}.weight", x.shape)


@dataclass(frozen=True, kw_only=True)
class Cohere2(LayerTypes, CohereFields):
    # What files say of the architecture beside what decides it.
    harmless: ClassVar[frozenset[str]] = frozenset(
        [
            "layer_switch",
            "order_of_interleaved_layers",
            "position_embedding_type",
            "rotary_pct",
            "use_embedding_sharing",
            "use_gated_activation",
            "use_parallel_block",
            "use_parallel_embedding",
        ]
    )

    sliding_window_pattern: Size = 4

    def slides(self, i: int) -> bool:
        return (i + 1) % self.sliding_window_pattern != 0

    def layer_rope(self, i: int) -> Rope | None:
        return self.rope() if self.layer_type(i) == "sliding_attention" else None


FAMILIES = {"cohere": Family(Cohere, LLAMA_NAMING), "cohere2": Family(Cohere2, LLAMA_NAMING)}
