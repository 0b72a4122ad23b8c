"""BLOOM: scores fall with the distance (ALiBi), a norm behind the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.recording import scope
from ...compiler.stream import Stream
from ..alibi import falling_with_distance
from ..blocks import linear
from ..family import Family
from ..gpt import GptDecoder, Heads, Names, Positions, heads_by_key
from ..positions import UNLIMITED
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Bloom(GptDecoder):
    names: ClassVar[Names] = Names(
        embedding="transformer.word_embeddings",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="self_attention",
        output="self_attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    )
    aliases: ClassVar[dict[str, str]] = {
        "n_embed": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "layer_norm_epsilon": "layer_norm_eps",
    }
    # Of how it was trained on many machines; ``slow_but_exact`` adds in another order.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "slow_but_exact", "attention_softmax_in_fp32", "bias_dropout_fusion", "seq_length",
        "skip_bias_add", "skip_bias_add_qkv", "offset_alibi",
    })  # fmt: skip
    fixed: ClassVar[tuple[str, ...]] = ("hidden_act", "intermediate_size")

    max_position_embeddings: Size = UNLIMITED
    apply_residual_connection_post_layernorm: bool = False

    def embed(self, token: Stream) -> Stream:
        return self.norm(super().embed(token), f"{self.names.embedding}_layernorm")

    def positions(self) -> Positions:
        return Positions(bias=falling_with_distance(self.num_attention_heads))

    def heads(self, x: Stream, name: str) -> Heads:
        qkv = linear(x, f"{name}.query_key_value", 3 * self.hidden_size, bias=True)
        return heads_by_key(qkv, self.num_attention_heads, self.head_size)

    def layer(self, x: Stream, i: int, positions: Positions) -> Stream:
        if not self.apply_residual_connection_post_layernorm:
            return super().layer(x, i, positions)
        name, (before_attention, before_mlp) = f"{self.names.layers}.{i}", self.norms()
        with scope("attn"):
            x = self.norm(x, f"{name}.{before_attention}")
            x = (x + self.attend(x, i, positions)).named("x")
        with scope("mlp"):
            x = self.norm(x, f"{name}.{before_mlp}")
            return (x + self.mlp(x, i)).named("x")


_NAMING = Naming("transformer.", tied={"lm_head.weight": "transformer.word_embeddings.weight"})
FAMILIES = {"bloom": Family(Bloom, _NAMING)}
