"""MiniMax: lightning attention, a matrix per head that fades at a fixed rate, in every other layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ...compiler.language import constant, einsum, feedback, sigmoid, split, zeros
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, linear, rms_norm
from ..decoder import RotaryDecoder
from ..experts import ExpertNames, routed_mlp, router_logits, softmax_routing
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class MiniMax(RotaryDecoder):
    default_theta: ClassVar[float] = 1e6
    # Rounding of sums in blocks, and what happens only in training.
    harmless: ClassVar[frozenset[str]] = frozenset({"block_size", "router_jitter_noise"})
    aliases: ClassVar[dict[str, str]] = {"num_experts": "num_local_experts"}

    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 4096 * 32
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = None
    num_experts_per_tok: Size = 2
    num_local_experts: Size = 8
    layer_types: tuple[str, ...] | None = None
    full_attn_alpha_factor: float = 1.0
    full_attn_beta_factor: float = 1.0
    linear_attn_alpha_factor: float = 1.0
    linear_attn_beta_factor: float = 1.0
    mlp_alpha_factor: float = 1.0
    mlp_beta_factor: float = 1.0

    def window(self, i: int) -> int | None:
        return self.sliding_window

    def attends(self, i: int) -> bool:
        if self.layer_types is None:
            return i % 2 == 0
        if i >= len(self.layer_types):
            raise SystolicError(f"layer_types says nothing about layer {i}")
        kind = self.layer_types[i]
        if kind not in ("full_attention", "linear_attention"):
            raise SystolicError(f"layer_types: {kind!r} is neither full_attention nor linear_attention")
        return kind == "full_attention"

    def layer(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        """Branches are added to what they read, which is normalised, and not to what came before."""
        name, attends = f"model.layers.{i}", self.attends(i)
        kept, added = (
            (self.full_attn_alpha_factor, self.full_attn_beta_factor)
            if attends
            else (self.linear_attn_alpha_factor, self.linear_attn_beta_factor)
        )
        with scope("attn"):
            x = self.norm(x, f"{name}.input_layernorm")
            mixed = self.attend(x, i, cos_sin) if attends else self.remember(x, f"{name}.self_attn", i)
            x = (x * kept + mixed * added).named("x")
        with scope("mlp"):
            x = self.norm(x, f"{name}.post_attention_layernorm")
            routed = self.mlp(x, f"{name}.block_sparse_moe")
            return (x * self.mlp_alpha_factor + routed * self.mlp_beta_factor).named("x")

    def remember(self, x: Stream, name: str, i: int) -> Stream:
        """What queries read from the sum of all k v^T so far, each faded by its age."""
        heads, size = self.num_attention_heads, self.head_size
        qkv = activation(self.hidden_act)(linear(x, f"{name}.qkv_proj", 3 * heads * size))
        q, k, v = split(qkv.reshape(heads, 3 * size), [size] * 3)
        fade = constant(np.exp(-self.rates(i))[:, None, None].astype(np.float32))
        before = feedback(zeros((heads, size, size)))
        memory = before.close((fade * before + einsum("hd,he->hde", k, v)).named("memory"))
        mixed = einsum("hde,hd->he", memory, q).reshape(heads * size)
        gate = sigmoid(linear(x, f"{name}.output_gate", heads * size))
        return linear(gate * rms_norm(mixed, f"{name}.norm", 1e-6), f"{name}.out_proj", self.hidden_size)

    def rates(self, i: int) -> np.ndarray:
        """How fast the memory of each head in layer ``i`` fades, [H]: slower in later layers and heads."""
        slopes = np.exp2(-8 * np.arange(1, self.num_attention_heads + 1) / self.num_attention_heads)
        return slopes * (1 - i / (self.num_hidden_layers - 1 + 1e-5) + 1e-5)

    def mlp(self, x: Stream, name: str) -> Stream:
        logits = router_logits(x, f"{name}.gate", self.num_local_experts)
        return routed_mlp(
            x,
            f"{name}.experts",
            softmax_routing(logits, self.num_experts_per_tok, normalise=True),
            experts=self.num_local_experts,
            width=self.intermediate_size,
            act=self.hidden_act,
            names=ExpertNames("w1", "w3", "w2"),
        )


# Files hold the powers of the rates, too.
_BUFFERS = (*LLAMA_NAMING.buffers, r"self_attn\.(slope_rate|(query|key|diagonal)_decay)")
FAMILIES = {"minimax": Family(MiniMax, replace(LLAMA_NAMING, buffers=_BUFFERS))}
