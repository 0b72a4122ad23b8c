"""Whisper: the source is sound, two frames of it at each position; the target is text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.language import delay, einsum, parameter, whole
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ..blocks import gelu, linear, one_ahead
from ..encoder_decoder import EncoderDecoder, clock_of
from ..family import Family
from ..positions import learned_positions
from ..spec import Config, Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Whisper(EncoderDecoder):
    norms_first: ClassVar[bool] = True
    key_bias: ClassVar[bool] = False
    head_table: ClassVar[str] = "proj_out"
    # What augments the training, and what other heads read. The embedding is never scaled.
    harmless: ClassVar[frozenset[str]] = EncoderDecoder.harmless | {
        "apply_spec_augment",
        "classifier_proj_size",
        "forced_decoder_ids",
        "mask_feature_length",
        "mask_feature_min_masks",
        "mask_feature_prob",
        "mask_time_length",
        "mask_time_min_masks",
        "mask_time_prob",
        "median_filter_width",
        "use_weighted_layer_sum",
    }

    vocab_size: Size = 51865
    num_mel_bins: Size = 80
    d_model: Size = 384
    encoder_layers: Size = 4
    decoder_layers: Size = 4
    encoder_attention_heads: Size = 6
    decoder_attention_heads: Size = 6
    encoder_ffn_dim: Size = 1536
    decoder_ffn_dim: Size = 1536
    max_source_positions: Size = 1500
    max_target_positions: Size = 448
    has_final_bias: bool = False

    @property
    def inputs(self) -> Mapping[str, str]:  # type: ignore[override]
        return {"source": f"f32[{self.num_mel_bins},2]@source", "target": "i32[]@target"}

    @property
    def context_length(self) -> int:
        return self.max_target_positions

    @property
    def source_length(self) -> int:
        """How many positions the source has: all that there are, since silence is read, too."""
        return self.max_source_positions

    def table(self, stack: str) -> str:
        return f"model.{stack}.embed_tokens"

    def places(self, token: Stream, stack: str) -> Stream:
        count = self.max_source_positions if stack == "encoder" else self.max_target_positions
        table = f"model.{stack}.embed_positions"
        return learned_positions(table, count, self.d_model, clock=clock_of(stack))

    def step(self, source: Stream, target: Stream) -> dict[str, Stream]:
        """f32[mel,2]@source, i32[]@target -> {"logits": f32[V]@target}"""
        with scope("encoder"):
            with scope("embed"):
                x = self.hear(source) + self.places(source, "encoder")
            memory = whole(self.encode(x))
        with scope("decoder"):
            x = self.decode(self.embed(target, "decoder", self.vocab_size), memory)
        with scope("head"):
            table = self.table("decoder") if self.tie_word_embeddings else self.head_table
            return {"logits": linear(x, table, self.vocab_size).named("logits")}

    def hear(self, frames: Stream) -> Stream:
        """Two convolutions over three frames each, of which the second moves on by two: [mel, 2] -> [D]."""
        first, second = frames[:, 0], frames[:, 1]
        even = self.convolve([delay(second), first, second], "model.encoder.conv1")
        odd = self.convolve([first, second, one_ahead(first)], "model.encoder.conv1")
        return self.convolve([delay(odd), even, odd], "model.encoder.conv2")

    def convolve(self, taps: list[Stream], name: str) -> Stream:
        weight = parameter(f"{name}.weight", (self.d_model, *taps[0].shape, len(taps)))
        parts = [einsum("d,nd->n", tap, weight[:, :, k]) for k, tap in enumerate(taps)]
        return gelu(parts[0] + parts[1] + parts[2] + parameter(f"{name}.bias", (self.d_model,)))


def unscaled(config: Config, stored: Collection[str] | None) -> Config:
    """Nothing depends on what the checkpoint holds; the embedding is not scaled, whatever the config says."""
    return replace(config, values={**config.values, "scale_embedding": False})


_NAMING = Naming("model.", tied={"proj_out.weight": "model.decoder.embed_tokens.weight"})
FAMILIES = {"whisper": Family(Whisper, _NAMING, unscaled)}
