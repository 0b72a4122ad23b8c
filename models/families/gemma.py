"""Gemma: embeddings times the root of their width, norms whose weights are offsets from one.

Gemma 2 bounds scores and logits, has four norms in a layer and a window in every other layer; Gemma 3
norms queries and keys instead of bounding their scores, and turns them by another theta where it slides.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.stream import Stream
from ..blocks import gated_mlp, rms_norm, soft_cap
from ..decoder import LayerTypes, Norms, RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..rope import Rope, RopeByLayerType
from ..spec import Config, Size


@dataclass(frozen=True, kw_only=True)
class Gemma(RotaryDecoder):
    harmless: ClassVar[frozenset[str]] = frozenset({"hidden_activation"})  # which nothing reads
    turns_whole_heads: ClassVar[bool] = True
    scales_in_embedding: ClassVar[bool] = True  # so that a learned prompt is not scaled

    max_position_embeddings: Size = 8192
    num_key_value_heads: Size | None = 16
    head_dim: Size | None = 256
    hidden_act: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    @property
    def activation(self) -> str:
        """The first files say gelu and mean its approximation."""
        return "gelu_pytorch_tanh" if self.hidden_act == "gelu" else self.hidden_act

    def norm(self, x: Stream, name: str) -> Stream:
        return rms_norm(x, name, self.rms_norm_eps, offset=1.0)

    def mlp(self, x: Stream, name: str) -> Stream:
        return gated_mlp(x, name, self.intermediate_size, self.activation)

    def embed(self, token: Stream) -> Stream:
        return super().embed(token) * math.sqrt(self.hidden_size)


@dataclass(frozen=True, kw_only=True)
class Gemma2(LayerTypes, Gemma):
    norms: ClassVar[Norms] = Norms(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )

    num_key_value_heads: Size | None = 4
    # The activation that counts; some files name one as hidden_act, too, which nothing reads.
    hidden_activation: str = "gelu_pytorch_tanh"
    query_pre_attn_scalar: float = 256.0
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0

    @property
    def activation(self) -> str:
        return self.hidden_activation

    @property
    def score_scale(self) -> float:
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def score_cap(self) -> float | None:
        return self.attn_logit_softcapping

    def slides(self, i: int) -> bool:
        return i % 2 == 0

    def head(self, x: Stream) -> Stream:
        logits = super().head(x)
        cap = self.final_logit_softcapping
        return logits if cap is None else soft_cap(logits, cap)


@dataclass(frozen=True, kw_only=True)
class Gemma3(RopeByLayerType, Gemma2):
    # What the list of layers was made from.
    harmless: ClassVar[frozenset[str]] = frozenset({"_sliding_window_pattern"})
    default_theta: ClassVar[float] = 1e6

    vocab_size: Size = 262208
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: Size = 26
    num_attention_heads: Size = 8
    max_position_embeddings: Size = 131072
    rope_local_base_freq: float | None = None
    sliding_window_pattern: Size = 6
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    @property
    def score_cap(self) -> float | None:
        return None  # whatever attn_logit_softcapping says

    def slides(self, i: int) -> bool:
        return (i + 1) % self.sliding_window_pattern != 0

    def layer_rope(self, i: int) -> Rope:
        return self.rope_of(self.layer_type(i))

    def theta_of(self, layer_type: str) -> float:
        if layer_type == "full_attention":
            return self.rope_theta or self.default_theta
        return self.rope_local_base_freq or 10000.0

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        q, k, v = super().heads(x, name)
        return self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm"), v


def text_part(config: Config, stored: Collection[str] | None) -> Config:
    """The language model of one that sees images: logits are not bounded, the whole says what is tied."""
    tied = config.values.get("tie_word_embeddings", True)
    values = {"final_logit_softcapping": None, "tie_word_embeddings": tied}
    text = config.section("text_config")
    return replace(text, values={**text.values, **values})


_NAMING_WITH_IMAGES = replace(
    LLAMA_NAMING,
    within={"language_model.": "", "model.language_model.": "model."},
    unused=(r"(model\.)?(vision_tower|multi_modal_projector)\..+",),
)
FAMILIES = {
    "gemma": Family(Gemma, LLAMA_NAMING),
    "gemma2": Family(Gemma2, LLAMA_NAMING),
    "gemma3": Family(Gemma3, _NAMING_WITH_IMAGES, text_part),
    "gemma3_text": Family(Gemma3, LLAMA_NAMING),
}
