"""ERNIE 4.5 with experts: chosen by probability plus a correction, weighted by probability alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.language import maximum, parameter, softmax, sum
from ...compiler.stream import Stream
from ..blocks import gated_mlp
from ..experts import Routing, choose, routed_mlp, router_logits
from ..family import LLAMA_NAMING, Family
from ..spec import Size
from .ernie import Ernie45


@dataclass(frozen=True, kw_only=True)
class Ernie45Moe(Ernie45):
    aliases: ClassVar[Mapping[str, str]] = {
        "num_experts": "moe_num_experts",
        "num_experts_per_tok": "moe_k",
    }

    intermediate_size: Size = 12288
    num_key_value_heads: Size | None = 4
    head_dim: Size | None = None
    moe_num_experts: Size = 64
    moe_k: Size = 6
    moe_num_shared_experts: int = 2
    moe_intermediate_size: Size = 1536
    moe_layer_start_index: int = 1
    moe_layer_end_index: int = -1
    moe_layer_interval: Size = 1
    moe_norm_min: float = 1e-12

    def head(self, x: Stream) -> Stream:
        logits = super().head(x)
        return logits + parameter("lm_head.bias", (self.vocab_size,)) if self.use_bias else logits

    def layer_mlp(self, x: Stream, name: str, i: int) -> Stream:
        last = self.num_hidden_layers - 1 if self.moe_layer_end_index == -1 else self.moe_layer_end_index
        is_routed = (i + 1) % self.moe_layer_interval == 0 and self.moe_layer_start_index <= i <= last
        return self.experts(x, name) if is_routed else self.mlp(x, name)

    def experts(self, x: Stream, name: str) -> Stream:
        width, act = self.moe_intermediate_size, self.hidden_act
        routed = routed_mlp(
            x, f"{name}.experts", self.route(x, name), experts=self.moe_num_experts, width=width, act=act
        )
        if self.moe_num_shared_experts == 0:
            return routed
        width *= self.moe_num_shared_experts
        return routed + gated_mlp(x, f"{name}.shared_experts", width, act, bias=self.use_bias)

    def route(self, x: Stream, name: str) -> Routing:
        experts = self.moe_num_experts
        scores = softmax(router_logits(x, f"{name}.gate", experts))
        correction = parameter(f"{name}.moe_statics.e_score_correction_bias", (1, experts))
        routing = choose(scores, self.moe_k, by=scores + correction.reshape(experts))
        total = maximum(sum(routing.shares, keepdims=True), self.moe_norm_min)
        return routing._replace(shares=routing.shares / total)


NAMING = replace(LLAMA_NAMING, unused=(r"model\.mtp_\w+\..*",))  # layers that guess tokens ahead
FAMILIES = {"ernie4_5_moe": Family(Ernie45Moe, NAMING)}
