"""GPT-2: learned positions, weights stored as [in, out]. GPT-BigCode: all queries share one key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import linear
from ..family import Family
from ..gpt import GptDecoder, Heads, Names, heads_by_key, heads_in_blocks
from ..positions import learned_positions
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Gpt2(GptDecoder):
    names: ClassVar[Names] = Names(
        embedding="transformer.wte",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="attn",
        output="attn.c_proj",
        up="mlp.c_fc",
        down="mlp.c_proj",
    )
    aliases: ClassVar[dict[str, str]] = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "layer_norm_eps",
    }
    axes: ClassVar[str] = "dn"

    max_position_embeddings: Size = 1024
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False

    def score_scale(self, i: int) -> float:
        scale = super().score_scale(i) if self.scale_attn_weights else 1.0
        return scale / (i + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def embed(self, token: Stream) -> Stream:
        table = learned_positions("transformer.wpe", self.max_position_embeddings, self.hidden_size)
        return super().embed(token) + table

    def heads(self, x: Stream, name: str) -> Heads:
        qkv = linear(x, f"{name}.c_attn", 3 * self.hidden_size, bias=True, axes=self.axes)
        return heads_in_blocks(qkv, self.num_attention_heads, self.head_size)


@dataclass(frozen=True, kw_only=True)
class GptBigcode(Gpt2):
    # Of the precision of softmax, which is that of everything else here.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32",
    })  # fmt: skip
    axes: ClassVar[str] = "nd"
    fixed: ClassVar[tuple[str, ...]] = ("scale_attn_by_inverse_layer_idx",)

    hidden_act: str = "gelu_pytorch_tanh"
    multi_query: bool = True
    num_key_value_heads: Size | None = None  # repeats multi_query

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_key_value_heads not in (None, self.key_heads):
            raise SystolicError("num_key_value_heads contradicts multi_query")

    @property
    def key_heads(self) -> int:
        return 1 if self.multi_query else self.num_attention_heads

    def heads(self, x: Stream, name: str) -> Heads:
        width = self.hidden_size + 2 * self.key_heads * self.head_size
        return heads_by_key(linear(x, f"{name}.c_attn", width, bias=True), self.key_heads, self.head_size)


_NAMING = Naming(
    "transformer.",
    (r"h\.\d+\.attn\.\w*bias",),
    tied={"lm_head.weight": "transformer.wte.weight"},
)
FAMILIES = {"gpt2": Family(Gpt2, _NAMING), "gpt_bigcode": Family(GptBigcode, _NAMING)}
