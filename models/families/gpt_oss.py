"""GPT-OSS: attention that may look at nothing (a sink), every other layer with a window, clipped experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import maximum, minimum, parameter, sigmoid
from ...compiler.stream import Stream
from ..blocks import attention
from ..decoder import LayerTypes, RotaryDecoder
from ..experts import mix_experts, routed_linear, router_logits, softmax_of_chosen
from ..family import LLAMA_NAMING, Family
from ..rope import Rope
from ..spec import Config, Size

_STRETCHED = {  # what a file means that says nothing about its rotary positions
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclass(frozen=True, kw_only=True)
class GptOss(LayerTypes, RotaryDecoder):
    default_theta: ClassVar[float] = 150000.0
    turns_whole_heads: ClassVar[bool] = True
    aliases: ClassVar[Mapping[str, str]] = {
        "num_experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
    }
    harmless: ClassVar[frozenset[str]] = frozenset({"initial_context_length"})  # as in rope_scaling

    intermediate_size: Size = 2880
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 64
    sliding_window: Size | None = 128
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    attention_bias: bool = True
    num_local_experts: Size = 128
    num_experts_per_tok: Size = 4
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def slides(self, i: int) -> bool:
        return i % 2 == 0

    def rope(self) -> Rope:
        if self.rope_parameters is None and self.rope_scaling is None:
            return self.scaling(Config("rope_parameters", _STRETCHED), self.rope_theta or self.default_theta)
        return super().rope()

    def mixed(self, q: Stream, k: Stream, v: Stream, i: int) -> Stream:
        sinks = parameter(f"{self.attention_name(i)}.sinks", (self.num_attention_heads,))
        sinks = sinks.reshape(*q.shape[:2])
        return attention(q, k, v, scale=self.score_scale, window=self.window(i), sinks=sinks)

    def mlp(self, x: Stream, name: str) -> Stream:
        experts, width, size = self.num_local_experts, self.intermediate_size, self.hidden_size
        logits = router_logits(x, f"{name}.router", experts, bias=True)
        chosen, shares = softmax_of_chosen(logits, self.num_experts_per_tok)

        def project(x: Stream, part: str, d: int, n: int) -> Stream:
            weight = parameter(f"{name}.experts.{part}", (experts, d, n))
            bias = parameter(f"{name}.experts.{part}_bias", (experts, n))
            return routed_linear(x, weight, chosen, bias=bias, axes="dn")

        pairs = project(x, "gate_up_proj", size, 2 * width).reshape(-1, width, 2)
        hidden = self.gated(pairs[..., 0], pairs[..., 1])
        return mix_experts(project(hidden, "down_proj", width, size), shares)

    def gated(self, gate: Stream, up: Stream) -> Stream:
        limit = self.swiglu_limit
        gate, up = minimum(gate, limit), maximum(minimum(up, limit), -limit)
        return gate * sigmoid(gate * self.swiglu_alpha) * (up + 1.0)


FAMILIES = {"gpt_oss": Family(GptOss, LLAMA_NAMING)}
