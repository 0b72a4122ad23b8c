"""MPT: scores fall with the distance (ALiBi), bounded queries, keys and values, no biases anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..alibi import falling_with_distance
from ..blocks import clip, layer_norm, linear
from ..family import Family
from ..gpt import GptDecoder, Heads, Names, Positions, heads_in_blocks
from ..spec import Config
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class MptAttention:
    """The fields of ``attn_config``."""

    harmless: ClassVar[frozenset[str]] = frozenset({"attn_impl"})

    attn_type: str = "multihead_attention"
    clip_qkv: float | None = None
    softmax_scale: float | None = None
    alibi: bool = True
    alibi_bias_max: int = 8

    def __post_init__(self) -> None:
        for name in ("attn_type", "alibi", "alibi_bias_max"):
            if getattr(self, name) != getattr(MptAttention, name):
                raise SystolicError(f"{name} must be {getattr(MptAttention, name)!r}, as in all released MPT")


@dataclass(frozen=True, kw_only=True)
class Mpt(GptDecoder):
    names: ClassVar[Names] = Names(
        embedding="transformer.wte",
        layers="transformer.blocks",
        final_norm="transformer.norm_f",
        attention="attn",
        output="attn.out_proj",
        up="ffn.up_proj",
        down="ffn.down_proj",
        attention_norm="norm_1",
        mlp_norm="norm_2",
    )
    aliases: ClassVar[dict[str, str]] = {
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "max_seq_len": "max_position_embeddings",
        "layer_norm_epsilon": "layer_norm_eps",
    }
    # How weights were made and kept; ``learned_pos_emb`` is true in files that have no such positions.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "learned_pos_emb", "no_bias", "embedding_fraction", "norm_type", "emb_pdrop", "init_device",
        "init_config", "verbose", "tokenizer_name",
    })  # fmt: skip
    fixed: ClassVar[tuple[str, ...]] = ("hidden_act", "intermediate_size", "expansion_ratio")

    hidden_act: str = "gelu"
    expansion_ratio: int = 4
    attn_config: Config | None = None

    @property
    def attention_fields(self) -> MptAttention:
        return self.attn_config.read(MptAttention) if self.attn_config else MptAttention()

    @property
    def output_bias(self) -> bool:
        return False

    @property
    def mlp_bias(self) -> bool:
        return False

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, self.layer_norm_eps, bias=False)

    def positions(self) -> Positions:
        return Positions(bias=falling_with_distance(self.num_attention_heads))

    def score_scale(self, i: int) -> float:
        scale = self.attention_fields.softmax_scale
        return super().score_scale(i) if scale is None else scale

    def heads(self, x: Stream, name: str) -> Heads:
        qkv = linear(x, f"{name}.Wqkv", 3 * self.hidden_size)
        if bound := self.attention_fields.clip_qkv:
            qkv = clip(qkv, -bound, bound)
        return heads_in_blocks(qkv, self.num_attention_heads, self.head_size)


_NAMING = Naming("transformer.", tied={"lm_head.weight": "transformer.wte.weight"})
FAMILIES = {"mpt": Family(Mpt, _NAMING)}
