"""Qwen2-MoE and Qwen3-MoE: Qwen with experts in place of the MLP of some layers.

Qwen2-MoE has one more expert that every token visits, weighted by a gate of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import sigmoid
from ...compiler.stream import Stream
from ..blocks import gated_mlp, linear
from ..decoder import RotaryDecoder
from ..experts import routed_mlp, router_logits, softmax_routing
from ..family import LLAMA_NAMING, Family
from ..spec import Size
from .qwen import QwenFields


@dataclass(frozen=True, kw_only=True)
class QwenExperts(RotaryDecoder):
    """Experts in every ``decoder_sparse_step``-th layer that is not listed as one with a plain MLP."""

    max_position_embeddings: Size = 32768
    num_experts: int
    num_experts_per_tok: Size
    moe_intermediate_size: Size
    norm_topk_prob: bool = False
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[int, ...] | None = None

    def layer_mlp(self, x: Stream, name: str, i: int) -> Stream:
        is_plain = i in (self.mlp_only_layers or ()) or (i + 1) % self.decoder_sparse_step != 0
        return self.mlp(x, name) if is_plain or self.num_experts == 0 else self.experts(x, name)

    def experts(self, x: Stream, name: str) -> Stream:
        logits = router_logits(x, f"{name}.gate", self.num_experts)
        return routed_mlp(
            x,
            f"{name}.experts",
            softmax_routing(logits, self.num_experts_per_tok, normalise=self.norm_topk_prob),
            experts=self.num_experts,
            width=self.moe_intermediate_size,
            act=self.hidden_act,
        )


@dataclass(frozen=True, kw_only=True)
class Qwen2Moe(QwenExperts, QwenFields):
    aliases: ClassVar[Mapping[str, str]] = {"qkv_bias": "has_qkv_bias"}

    intermediate_size: Size = 5632
    num_key_value_heads: Size | None = 16
    has_qkv_bias: bool = True
    sliding_window: int | None = 4096  # 0 where use_sliding_window is off
    num_experts: int = 60
    num_experts_per_tok: Size = 4
    moe_intermediate_size: Size = 1408
    shared_expert_intermediate_size: Size = 5632

    @property
    def qkv_bias(self) -> bool:
        return self.has_qkv_bias

    def slides(self, i: int) -> bool:
        return self.use_sliding_window and i % 2 == 0 and i < self.max_window_layers

    def experts(self, x: Stream, name: str) -> Stream:
        gate = sigmoid(linear(x, f"{name}.shared_expert_gate", 1))
        width = self.shared_expert_intermediate_size
        shared = gated_mlp(x, f"{name}.shared_expert", width, self.hidden_act)
        return super().experts(x, name) + gate * shared


@dataclass(frozen=True, kw_only=True)
class Qwen3Moe(QwenExperts):
    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}
    harmless: ClassVar[frozenset[str]] = frozenset({"max_window_layers"})  # all layers slide, or none

    intermediate_size: Size = 6144
    num_key_value_heads: Size | None = 4
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    num_experts: int = 128
    num_experts_per_tok: Size = 8
    moe_intermediate_size: Size = 768

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def window(self, i: int) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        q, k, v = super().heads(x, name)
        return self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm"), v


FAMILIES = {"qwen2_moe": Family(Qwen2Moe, LLAMA_NAMING), "qwen3_moe": Family(Qwen3Moe, LLAMA_NAMING)}
