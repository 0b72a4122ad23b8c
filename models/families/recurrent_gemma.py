"""RecurrentGemma (Griffin): gated linear recurrences, with attention to a window in every third layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import ml_dtypes
import numpy as np

from ...compiler.language import einsum, exp, feedback, parameter, position, sigmoid, sqrt, where, zeros
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, depthwise_convolution, gated_mlp, linear, rms_norm, soft_cap, softplus
from ..decoder import RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..positions import UNLIMITED
from ..rope import CosSin, Rope
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class RecurrentGemma(RotaryDecoder):
    final_norm: ClassVar[str] = "model.final_norm"
    # How training began; the scale that the library always applies.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "w_init_variance_scale", "final_w_init_variance_scale", "embeddings_scale_by_sqrt_dim",
        "layers_block_type", "layer_types",
    })  # fmt: skip
    aliases: ClassVar[dict[str, str]] = {
        "sliding_window": "attention_window_size",
        "_block_types": "block_types",
    }

    vocab_size: Size = 256000
    hidden_size: Size = 2560
    intermediate_size: Size = 3 * 2560
    num_hidden_layers: Size = 26
    num_attention_heads: Size = 10
    lru_width: Size | None = None
    attention_window_size: Size = 2048
    conv1d_width: Size = 4
    logits_soft_cap: float = 30.0
    hidden_activation: str = "gelu_pytorch_tanh"
    block_types: tuple[str, ...] = ("recurrent", "recurrent", "attention")
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.block_types or set(self.block_types) - {"recurrent", "attention"}:
            raise SystolicError("block_types must be a list of recurrent and attention")
        if self.width % self.num_attention_heads:
            raise SystolicError("lru_width is not a multiple of num_attention_heads")

    @property
    def context_length(self) -> int:
        return UNLIMITED

    @property
    def width(self) -> int:
        return self.lru_width or self.hidden_size

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return True

    def window(self, i: int) -> int | None:
        return self.attention_window_size

    def rope(self) -> Rope:
        """Half of each head is turned, unless the config says otherwise."""
        half = self.partial_rotary_factor or 0.5
        return RotaryDecoder.rope(replace(self, partial_rotary_factor=half))

    def norm(self, x: Stream, name: str) -> Stream:
        return rms_norm(x, name, self.rms_norm_eps, offset=1.0)

    def embed(self, token: Stream) -> Stream:
        scale = np.float32(ml_dtypes.bfloat16(math.sqrt(self.hidden_size)))
        return super().embed(token) * float(scale)

    def head(self, x: Stream) -> Stream:
        return soft_cap(super().head(x), self.logits_soft_cap)

    def mlp(self, x: Stream, name: str) -> Stream:
        return gated_mlp(x, name, self.intermediate_size // 2, self.hidden_activation, bias=True)

    def layer(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        name = f"model.layers.{i}"
        with scope("mix"):
            normed = self.norm(x, f"{name}.temporal_pre_norm")
            if self.block_types[i % len(self.block_types)] == "attention":
                branch = self.attend(normed, i, cos_sin)
            else:
                branch = self.recur(normed, f"{name}.temporal_block")
            x = (x + branch).named("x")
        with scope("mlp"):
            return (x + self.mlp(self.norm(x, f"{name}.channel_pre_norm"), f"{name}.mlp_block")).named("x")

    def attention_name(self, i: int) -> str:
        return f"model.layers.{i}.temporal_block"

    def recur(self, x: Stream, name: str) -> Stream:
        """A gate times a convolution whose result runs through the recurrence."""
        gate = activation(self.hidden_activation)(linear(x, f"{name}.linear_y", self.width, bias=True))
        inner = linear(x, f"{name}.linear_x", self.width, bias=True).named("inner")
        inner = depthwise_convolution(inner, f"{name}.conv_1d", self.conv1d_width)
        mixed = self.scan(inner, f"{name}.rg_lru") * gate
        return linear(mixed, f"{name}.linear_out", self.hidden_size, bias=True)

    def scan(self, x: Stream, name: str) -> Stream:
        """h = a h' + sqrt(1 - a^2) gate x, where h' is the value before; the first x enters unscaled."""
        enter, recur = (sigmoid(self.by_heads(x, f"{name}.{part}_gate")) for part in ("input", "recurrent"))
        log_decay = recur * softplus(parameter(f"{name}.recurrent_param", (self.width,))) * -8.0
        scale = where(position() == 0, 1.0, sqrt(1.0 - exp(log_decay * 2.0)))
        before = feedback(zeros((self.width,)))
        return before.close((exp(log_decay) * before + x * enter * scale).named("state"))

    def by_heads(self, x: Stream, name: str) -> Stream:
        """``name``_weight [H, in, out] applied to each of H parts of ``x``, plus ``name``_bias."""
        heads = self.num_attention_heads
        size = self.width // heads
        weight = parameter(f"{name}_weight", (heads, size, size))
        y = einsum("hi,hio->ho", x.reshape(heads, size), weight)
        return (y + parameter(f"{name}_bias", (heads, size))).reshape(self.width)


FAMILIES = {"recurrent_gemma": Family(RecurrentGemma, LLAMA_NAMING)}
