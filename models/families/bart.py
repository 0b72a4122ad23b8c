"""BART and its relatives with learned positions: mBART, PLBART, Blenderbot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..encoder_decoder import NAMING, EncoderDecoder, clock_of, with_tensors_of_file
from ..family import Family
from ..positions import learned_positions
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Bart(EncoderDecoder):
    norms_embedding: ClassVar[bool] = True

    def places(self, token: Stream, stack: str) -> Stream:
        table, count = f"model.{stack}.embed_positions", self.max_position_embeddings + 2
        return learned_positions(table, count, self.d_model, offset=2, clock=clock_of(stack))


@dataclass(frozen=True, kw_only=True)
class MBart(Bart):
    norms_first: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class PlBart(Bart):
    vocab_size: Size = 50005
    d_model: Size = 768
    encoder_layers: Size = 6
    decoder_layers: Size = 6
    encoder_attention_heads: Size = 12
    decoder_attention_heads: Size = 12
    encoder_ffn_dim: Size = 3072
    decoder_ffn_dim: Size = 3072
    scale_embedding: bool = True


@dataclass(frozen=True, kw_only=True)
class Blenderbot(EncoderDecoder):
    norms_first: ClassVar[bool] = True
    harmless: ClassVar[frozenset[str]] = EncoderDecoder.harmless | {
        "do_blenderbot_90_layernorm",
        "layernorm_variant",
        "unk_token_id",
    }

    vocab_size: Size = 8008
    d_model: Size = 2560
    encoder_layers: Size = 2
    decoder_layers: Size = 24
    encoder_attention_heads: Size = 32
    decoder_attention_heads: Size = 32
    encoder_ffn_dim: Size = 10240
    decoder_ffn_dim: Size = 10240
    max_position_embeddings: Size = 128


FAMILIES = {
    name: Family(model, NAMING, with_tensors_of_file)
    for name, model in (("bart", Bart), ("blenderbot", Blenderbot), ("mbart", MBart), ("plbart", PlBart))
}
