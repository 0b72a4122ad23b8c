"""LFM2: short gated convolutions, and attention in some layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import split
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import depthwise_convolution, linear, rms_norm, silu
from ..decoder import RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Lfm2(RotaryDecoder):
    default_theta: ClassVar[float] = 1e6
    final_norm: ClassVar[str] = "model.embedding_norm"
    output_projection: ClassVar[str] = "out_proj"
    harmless: ClassVar[frozenset[str]] = frozenset({
        "conv_dim", "conv_dim_out", "conv_use_xavier_init", "block_dim", "block_mlp_init_scale",
        "block_norm_eps", "block_out_init_scale", "block_use_swiglu", "block_use_xavier_init",
        "num_heads", "use_pos_enc", "theta",
    })  # fmt: skip
    aliases: ClassVar[dict[str, str]] = {
        "norm_eps": "rms_norm_eps",
        "conv_L_cache": "convolution_width",
        "block_ff_dim": "intermediate_size",
        "tie_embedding": "tie_word_embeddings",
    }

    vocab_size: Size = 65536
    hidden_size: Size = 2560
    intermediate_size: Size = 12288
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 128000
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    conv_bias: bool = False
    convolution_width: Size = 3
    block_multiple_of: Size = 256
    block_ffn_dim_multiplier: float | None = 1.0
    block_auto_adjust_ff_dim: bool = True
    full_attn_idxs: tuple[int, ...] | None = None
    layer_types: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_types is not None and len(self.layer_types) < self.num_hidden_layers:
            raise SystolicError(f"layer_types says nothing about layer {len(self.layer_types)}")

    @property
    def mlp_width(self) -> int:
        """Two thirds of ``intermediate_size``, scaled and rounded up, unless it is to be taken as it is."""
        if not self.block_auto_adjust_ff_dim:
            return self.intermediate_size
        width, multiple = int(2 * self.intermediate_size / 3), self.block_multiple_of
        if self.block_ffn_dim_multiplier is None:
            return width
        width = int(self.block_ffn_dim_multiplier * width)
        return -(-width // multiple) * multiple

    def attends(self, i: int) -> bool:
        if self.layer_types is None:
            return self.full_attn_idxs is None or i in self.full_attn_idxs
        kind = self.layer_types[i]
        if kind not in ("full_attention", "conv"):
            raise SystolicError(f"layer_types: {kind!r} is neither full_attention nor conv")
        return kind == "full_attention"

    def layer(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        name = f"model.layers.{i}"
        with scope("mix"):
            branch = self.norm(x, f"{name}.operator_norm")
            mixed = (
                self.attend(branch, i, cos_sin) if self.attends(i) else self.convolve(branch, f"{name}.conv")
            )
            x = (x + mixed).named("x")
        with scope("mlp"):
            return (x + self.mlp(self.norm(x, f"{name}.ffn_norm"), f"{name}.feed_forward")).named("x")

    def convolve(self, x: Stream, name: str) -> Stream:
        size, bias = self.hidden_size, self.conv_bias
        enter, leave, x = split(linear(x, f"{name}.in_proj", 3 * size, bias=bias), [size] * 3)
        convolved = depthwise_convolution(
            (enter * x).named("inner"), f"{name}.conv", self.convolution_width, bias=bias
        )
        return linear(leave * convolved, f"{name}.out_proj", size, bias=bias)

    def rotated(self, q: Stream, k: Stream, name: str, cos_sin: CosSin) -> tuple[Stream, Stream]:
        eps = self.rms_norm_eps
        q, k = rms_norm(q, f"{name}.q_layernorm", eps), rms_norm(k, f"{name}.k_layernorm", eps)
        return super().rotated(q, k, name, cos_sin)

    def mlp(self, x: Stream, name: str) -> Stream:
        hidden = silu(linear(x, f"{name}.w1", self.mlp_width)) * linear(x, f"{name}.w3", self.mlp_width)
        return linear(hidden, f"{name}.w2", self.hidden_size)


FAMILIES = {"lfm2": Family(Lfm2, LLAMA_NAMING)}
