"""GPT-J: one norm for attention and the MLP side by side. CodeGen: the same, heads fused in four parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import linear
from ..family import Family
from ..gpt import GptDecoder, Heads, Names, Positions
from ..rope import Rope, rotation
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class GptJ(GptDecoder):
    names: ClassVar[Names] = Names(
        embedding="transformer.wte",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="attn",
        output="attn.out_proj",
        up="mlp.fc_in",
        down="mlp.fc_out",
        mlp_norm=None,
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
    harmless: ClassVar[frozenset[str]] = frozenset({"rotary", "scale_attn_weights"})  # which nothing reads
    interleaved: ClassVar[bool] = True

    rotary_dim: Size = 64
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rotary_dim > self.head_size:
            raise SystolicError(f"rotary_dim is more than the {self.head_size} elements of a head")

    @property
    def qkv_bias(self) -> bool:
        return False

    @property
    def output_bias(self) -> bool:
        return False

    @property
    def head_bias(self) -> bool:
        return True

    def positions(self) -> Positions:
        return Positions(rotation=rotation(Rope(), self.rotary_dim))


@dataclass(frozen=True, kw_only=True)
class CodeGen(GptJ):
    parts: ClassVar[int] = 4  # of the fused projection: the cores that the model was trained on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_attention_heads % self.parts:
            raise SystolicError(f"n_head is not a multiple of {self.parts}")

    def heads(self, x: Stream, name: str) -> Heads:
        heads, size = self.num_attention_heads, self.head_size
        qkv = linear(x, f"{name}.qkv_proj", 3 * self.hidden_size)
        fused = qkv.reshape(self.parts, 3, heads // self.parts, size)
        q, v, k = (fused[:, i].reshape(heads, size) for i in range(3))  # in this order
        return q[:, None], k, v


_NAMING = Naming(
    "transformer.",
    (r"h\.\d+\.attn\.(\w*bias|causal_\w+|embed_positions)",),
    tied={"lm_head.weight": "transformer.wte.weight"},
)
FAMILIES = {"codegen": Family(CodeGen, _NAMING), "gptj": Family(GptJ, _NAMING)}
