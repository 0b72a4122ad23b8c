"""Marian, Pegasus and M2M-100: encoder-decoders whose positions are sines and cosines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...compiler.language import concatenate, where, zeros
from ...compiler.stream import Stream
from ..encoder_decoder import NAMING, EncoderDecoder, clock_of, with_tensors_of_file
from ..family import Family
from ..positions import count_of_text, sinusoidal_positions, sinusoids
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Pegasus(EncoderDecoder):
    norms_first: ClassVar[bool] = True

    def places(self, token: Stream, stack: str) -> Stream:
        if self.has_stored_positions:
            return super().places(token, stack)
        return sinusoidal_positions(self.d_model, clock=clock_of(stack))


@dataclass(frozen=True, kw_only=True)
class Marian(Pegasus):
    norms_first: ClassVar[bool] = False

    vocab_size: Size = 58101
    decoder_vocab_size: Size | None = None
    share_encoder_decoder_embeddings: bool = True

    def table(self, stack: str) -> str:
        own = self.has_own_tables or not self.share_encoder_decoder_embeddings
        return f"model.{stack}.embed_tokens" if own else "model.shared"

    @property
    def target_vocabulary(self) -> int:
        shares = self.share_encoder_decoder_embeddings
        return self.vocab_size if shares else self.decoder_vocab_size or self.vocab_size


@dataclass(frozen=True, kw_only=True)
class M2m100(EncoderDecoder):
    """Positions count from behind the number of the padding token, which has no position itself."""

    norms_first: ClassVar[bool] = True

    vocab_size: Size = 128112
    activation_function: str = "relu"
    scale_embedding: bool = True
    pad_token_id: int = 1

    def places(self, token: Stream, stack: str) -> Stream:
        count = count_of_text(token, self.pad_token_id)
        half = self.d_model // 2
        frequencies = 10000.0 ** (-np.arange(half) / (half - 1))
        places = sinusoids(count + self.pad_token_id, frequencies)
        if self.d_model % 2:
            places = concatenate([places, zeros((1,))])
        return where(count > 0, places, 0.0)


FAMILIES = {
    "m2m_100": Family(M2m100, NAMING, with_tensors_of_file),
    "marian": Family(Marian, NAMING, with_tensors_of_file),
    "pegasus": Family(Pegasus, NAMING, with_tensors_of_file),
}
