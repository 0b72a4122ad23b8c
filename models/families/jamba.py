"""Jamba: a state space in most layers, attention without positions in some, experts in every other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import gated_mlp, rms_norm
from ..decoder import RotaryDecoder
from ..experts import routed_mlp, router_logits, softmax_routing
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin, Rope
from ..spec import Size
from ..state_space import ChannelStates
from .mamba import without_auto


@dataclass(frozen=True, kw_only=True)
class Jamba(RotaryDecoder):
    final_norm: ClassVar[str] = "model.final_layernorm"
    # How the library computes, how many logits it returns, and lists that follow from periods and offsets.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep",
        "layers_block_type", "layer_types", "layers_num_experts", "mamba_inner_layernorms", "sliding_window",
    })  # fmt: skip

    vocab_size: Size = 65536
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 262144
    num_experts_per_tok: Size = 2
    num_experts: Size = 16
    expert_layer_period: Size = 2
    expert_layer_offset: int = 1
    attn_layer_period: Size = 8
    attn_layer_offset: int = 4
    mamba_d_state: Size = 16
    mamba_d_conv: Size = 4
    mamba_expand: int = 2
    mamba_dt_rank: Size | None = None
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in ("expert", "attn"):
            if getattr(self, f"{kind}_layer_offset") >= getattr(self, f"{kind}_layer_period"):
                raise SystolicError(f"{kind}_layer_offset is not below {kind}_layer_period")

    def layer_rope(self, i: int) -> Rope | None:
        return None

    def rotated(self, q: Stream, k: Stream, name: str, cos_sin: CosSin) -> tuple[Stream, Stream]:
        return q, k

    def layer(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        name = f"model.layers.{i}"
        with scope("mix"):
            normed = self.norm(x, f"{name}.input_layernorm")
            attends = i % self.attn_layer_period == self.attn_layer_offset
            mixed = self.attend(normed, i, cos_sin) if attends else self.remember(normed, f"{name}.mamba")
            x = (x + mixed).named("x")
        with scope("mlp"):
            normed = self.norm(x, f"{name}.pre_ff_layernorm")
            return (x + self.layer_mlp(normed, f"{name}.feed_forward", i)).named("x")

    def remember(self, x: Stream, name: str) -> Stream:
        return ChannelStates(
            hidden_size=self.hidden_size,
            width=self.mamba_expand * self.hidden_size,
            state_size=self.mamba_d_state,
            rank=self.mamba_dt_rank or math.ceil(self.hidden_size / 16),
            kernel=self.mamba_d_conv,
            activation=self.hidden_act,
            bias=self.mamba_proj_bias,
            convolution_bias=self.mamba_conv_bias,
            normalise=lambda x, part: rms_norm(x, f"{name}.{part}_layernorm", self.rms_norm_eps),
        ).mix(x, name)

    def layer_mlp(self, x: Stream, name: str, i: int) -> Stream:
        experts, width = self.num_experts, self.intermediate_size
        if experts == 1 or i % self.expert_layer_period != self.expert_layer_offset:
            return gated_mlp(x, name, width, self.hidden_act)
        logits = router_logits(x, f"{name}.router", experts)
        routing = softmax_routing(logits, self.num_experts_per_tok, normalise=False)
        return routed_mlp(x, f"{name}.experts", routing, experts=experts, width=width, act=self.hidden_act)


FAMILIES = {"jamba": Family(Jamba, LLAMA_NAMING, without_auto)}
