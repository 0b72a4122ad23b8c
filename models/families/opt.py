"""OPT and its like from fairseq: positions from 2 on. XGLM computes them, BioGPT scales its embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...compiler.language import concatenate, cos, position, sin, where, zeros
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ..blocks import embedding, layer_norm, linear, standardize
from ..family import Family
from ..gpt import GptDecoder, Names, Positions
from ..positions import learned_positions
from ..spec import Size
from ..weights import Naming

OFFSET = 2  # the row of the first position; the rows before it were meant for padding


def _names(root: str, final_norm: str, head: str = "lm_head") -> Names:
    return Names(
        embedding=f"{root}.embed_tokens",
        layers=f"{root}.layers",
        final_norm=f"{root}.{final_norm}",
        attention="self_attn",
        output="self_attn.out_proj",
        up="fc1",
        down="fc2",
        head=head,
        attention_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
    )


@dataclass(frozen=True, kw_only=True)
class Fairseq(GptDecoder):
    # What happens in training only.
    harmless: ClassVar[frozenset[str]] = frozenset({"dropout", "activation_dropout", "layerdrop", "init_std"})
    scales_in_embedding: ClassVar[bool] = True  # so that a learned prompt is not scaled

    scale_embedding: bool = True

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, 1e-5)

    def embed(self, token: Stream) -> Stream:
        x = super().embed(token)
        x = x * math.sqrt(self.hidden_size) if self.scale_embedding else x
        return x + self.position_embedding()

    def position_embedding(self) -> Stream:
        """What is added to the embedding of the token: f32[hidden_size]."""
        name = self.names.embedding.replace("embed_tokens", "embed_positions")
        rows = self.max_position_embeddings + OFFSET
        return learned_positions(name, rows, self.hidden_size, offset=OFFSET)


@dataclass(frozen=True, kw_only=True)
class Opt(Fairseq):
    names: ClassVar[Names] = _names("model.decoder", "final_layer_norm")
    aliases: ClassVar[dict[str, str]] = {"activation_function": "hidden_act", "ffn_dim": "intermediate_size"}
    fixed: ClassVar[tuple[str, ...]] = ("layer_norm_eps", "scale_embedding")

    intermediate_size: Size | None = 3072
    hidden_act: str = "relu"
    scale_embedding: bool = False
    do_layer_norm_before: bool = True
    _remove_final_layer_norm: bool = False
    word_embed_proj_dim: Size | None = None
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True

    @property
    def qkv_bias(self) -> bool:
        return self.enable_bias

    @property
    def output_bias(self) -> bool:
        return self.enable_bias

    @property
    def mlp_bias(self) -> bool:
        return self.enable_bias

    @property
    def embedding_size(self) -> int:
        return self.word_embed_proj_dim or self.hidden_size

    def norm(self, x: Stream, name: str) -> Stream:
        return super().norm(x, name) if self.layer_norm_elementwise_affine else standardize(x, 1e-5)

    def embed(self, token: Stream) -> Stream:
        x = embedding(token, self.names.embedding, self.vocab_size, self.embedding_size)
        if self.embedding_size != self.hidden_size:
            x = linear(x, "model.decoder.project_in", self.hidden_size)
        return x + self.position_embedding()

    def final_norm(self, x: Stream) -> Stream:
        if self.do_layer_norm_before and not self._remove_final_layer_norm:
            x = super().final_norm(x)
        if self.embedding_size == self.hidden_size:
            return x
        return linear(x, "model.decoder.project_out", self.embedding_size)

    def layer(self, x: Stream, i: int, positions: Positions) -> Stream:
        if self.do_layer_norm_before:
            return super().layer(x, i, positions)
        name, (behind_attention, behind_mlp) = f"{self.names.layers}.{i}", self.norms()
        with scope("attn"):
            x = self.norm(x + self.attend(x, i, positions), f"{name}.{behind_attention}").named("x")
        with scope("mlp"):
            return self.norm(x + self.mlp(x, i), f"{name}.{behind_mlp}").named("x")


@dataclass(frozen=True, kw_only=True)
class BioGpt(Fairseq):
    names: ClassVar[Names] = _names("biogpt", "layer_norm", head="output_projection")

    max_position_embeddings: Size = 1024
    intermediate_size: Size | None = 4096
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12  # which nothing reads


@dataclass(frozen=True, kw_only=True)
class Xglm(Fairseq):
    names: ClassVar[Names] = _names("model", "layer_norm")
    aliases: ClassVar[dict[str, str]] = {
        "d_model": "hidden_size",
        "num_layers": "num_hidden_layers",
        "attention_heads": "num_attention_heads",
        "ffn_dim": "intermediate_size",
        "activation_function": "hidden_act",
    }
    fixed: ClassVar[tuple[str, ...]] = ("layer_norm_eps",)

    intermediate_size: Size | None = 4096
    hidden_act: str = "gelu"
    pad_token_id: int | None = 1

    def position_embedding(self) -> Stream:
        """Sines and cosines, and zeros in the row of padding, which may be that of a position."""
        half = self.hidden_size // 2
        frequencies = np.exp(np.arange(half) * -(math.log(10000.0) / (half - 1))).astype(np.float32)
        row = position() + OFFSET
        angles = row.cast("f32") * frequencies
        parts = [sin(angles), cos(angles)] + [zeros((1,))] * (self.hidden_size % 2)
        computed = concatenate(parts)
        if self.pad_token_id is None or self.pad_token_id < OFFSET:
            return computed
        return where(row == self.pad_token_id, zeros(computed.shape), computed)


_NAMING = Naming("model.", tied={"lm_head.weight": "model.decoder.embed_tokens.weight"})
_BIOGPT_NAMING = Naming("biogpt.", tied={"output_projection.weight": "biogpt.embed_tokens.weight"})
_XGLM_NAMING = Naming(
    "model.", (r"embed_positions\.weights",), tied={"lm_head.weight": "model.embed_tokens.weight"}
)
FAMILIES = {
    "biogpt": Family(BioGpt, _BIOGPT_NAMING),
    "opt": Family(Opt, _NAMING),
    "xglm": Family(Xglm, _XGLM_NAMING),
}
