"""Qwen3-Next: a gated delta rule in most layers, gated attention in every fourth, and experts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...compiler.language import (
    concatenate,
    einsum,
    exp,
    feedback,
    parameter,
    rsqrt,
    sigmoid,
    split,
    sum,
    zeros,
)
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, attention, depthwise_convolution, gated_mlp, linear, rms_norm, silu, softplus
from ..decoder import RotaryDecoder
from ..experts import routed_mlp, router_logits, softmax_routing
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin, Rope
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Qwen3Next(RotaryDecoder):
    vocab_size: Size = 151936
    hidden_size: Size = 2048
    intermediate_size: Size = 5632
    num_hidden_layers: Size = 48
    num_attention_heads: Size = 16
    num_key_value_heads: Size | None = 2
    max_position_embeddings: Size = 32768
    head_dim: Size | None = 256
    attention_bias: bool = False
    linear_conv_kernel_dim: Size = 4
    linear_key_head_dim: Size = 128
    linear_value_head_dim: Size = 128
    linear_num_key_heads: Size = 16
    linear_num_value_heads: Size = 32
    decoder_sparse_step: Size = 1
    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Size = 512
    num_experts_per_tok: Size = 10
    num_experts: int = 512
    norm_topk_prob: bool = True
    mlp_only_layers: tuple[int, ...] | None = None
    layer_types: tuple[str, ...] | None = None
    full_attention_interval: Size = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise SystolicError("linear_num_value_heads is not a multiple of linear_num_key_heads")

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def rope(self) -> Rope:
        """A quarter of each head is turned, unless the config says otherwise."""
        part = self.partial_rotary_factor or 0.25
        return RotaryDecoder.rope(replace(self, partial_rotary_factor=part))

    def norm(self, x: Stream, name: str) -> Stream:
        return rms_norm(x, name, self.rms_norm_eps, offset=1.0)

    def attends(self, i: int) -> bool:
        if self.layer_types is None:
            return (i + 1) % self.full_attention_interval == 0
        if i >= len(self.layer_types):
            raise SystolicError(f"layer_types says nothing about layer {i}")
        kind = self.layer_types[i]
        if kind not in ("full_attention", "linear_attention"):
            raise SystolicError(f"layer_types: {kind!r} is neither full_attention nor linear_attention")
        return kind == "full_attention"

    def attend(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        if self.attends(i):
            return self.attend_gated(x, f"model.layers.{i}.self_attn", cos_sin)
        return self.remember(x, f"model.layers.{i}.linear_attn")

    def attend_gated(self, x: Stream, name: str, cos_sin: CosSin) -> Stream:
        """Attention whose output is gated; the weights of queries and gates are one, head by head."""
        heads, keys, size, bias = self.num_attention_heads, self.key_heads, self.head_size, self.qkv_bias
        q = linear(x, f"{name}.q_proj", 2 * heads * size, bias=bias).reshape(heads, 2 * size)
        q, gate = split(q, [size, size])
        k = linear(x, f"{name}.k_proj", keys * size, bias=bias).reshape(keys, size)
        v = linear(x, f"{name}.v_proj", keys * size, bias=bias).reshape(keys, size)
        q, k = self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm")
        q, k = self.rotated(q.reshape(keys, heads // keys, size), k, name, cos_sin)
        mixed = attention(q, k, v, scale=self.score_scale).reshape(heads * size)
        mixed = mixed * sigmoid(gate.reshape(heads * size))
        return linear(mixed, f"{name}.o_proj", self.hidden_size, bias=self.output_bias)

    def remember(self, x: Stream, name: str) -> Stream:
        """The delta rule between a short convolution and a gated norm; each key head serves G value heads."""
        keys, size, value_size = (
            self.linear_num_key_heads,
            self.linear_key_head_dim,
            self.linear_value_head_dim,
        )
        each = self.linear_num_value_heads // keys
        wide = each * value_size
        parts, total = [size, size, wide, wide], 2 * (size + wide)
        qkvz = linear(x, f"{name}.in_proj_qkvz", keys * total).reshape(keys, total)
        *qkv, z = split(qkvz, parts)
        rates = linear(x, f"{name}.in_proj_ba", 2 * keys * each).reshape(keys, 2 * each)
        update, decay = split(rates, [each, each])
        inner = concatenate([part.reshape(keys * width) for part, width in zip(qkv, parts, strict=False)])
        convolved = depthwise_convolution(
            inner.named("inner"), f"{name}.conv1d", self.linear_conv_kernel_dim, bias=False
        )
        q, k, v = split(activation(self.hidden_act)(convolved), [keys * width for width in parts[:3]])
        q, k = unit(q.reshape(keys, size)) * (1 / math.sqrt(size)), unit(k.reshape(keys, size))
        rate = exp(parameter(f"{name}.A_log", (keys * each,)).reshape(keys, each))
        steps = softplus(decay + parameter(f"{name}.dt_bias", (keys * each,)).reshape(keys, each))
        mixed = delta_rule(q, k, v.reshape(keys, each, value_size), exp(-rate * steps), sigmoid(update))
        mixed = rms_norm(mixed, f"{name}.norm", self.rms_norm_eps) * silu(z.reshape(keys, each, value_size))
        return linear(mixed.reshape(keys * each * value_size), f"{name}.out_proj", self.hidden_size)

    def layer_mlp(self, x: Stream, name: str, i: int) -> Stream:
        is_dense = i in (self.mlp_only_layers or ()) or (i + 1) % self.decoder_sparse_step != 0
        if is_dense or self.num_experts == 0:
            return self.mlp(x, name)
        routing = softmax_routing(
            router_logits(x, f"{name}.gate", self.num_experts),
            self.num_experts_per_tok,
            normalise=self.norm_topk_prob,
        )
        routed = routed_mlp(
            x,
            f"{name}.experts",
            routing,
            experts=self.num_experts,
            width=self.moe_intermediate_size,
            act=self.hidden_act,
        )
        shared = gated_mlp(x, f"{name}.shared_expert", self.shared_expert_intermediate_size, self.hidden_act)
        return routed + sigmoid(linear(x, f"{name}.shared_expert_gate", 1)) * shared


def delta_rule(q: Stream, k: Stream, v: Stream, decay: Stream, update: Stream) -> Stream:
    """What ``q`` [K, D] reads from memories [K, G, D, E] that fade by ``decay`` [K, G]: [K, G, E].

    Of what a memory holds for the key ``k`` [K, D], the part ``update`` [K, G] gives way to ``v`` [K, G, E].
    """
    (keys, size), (_, each, value_size) = q.node.tensor.static_shape, v.node.tensor.static_shape
    before = feedback(zeros((keys, each, size, value_size)))
    faded = decay[..., None, None] * before
    change = update[..., None] * (v - einsum("hgde,hd->hge", faded, k))
    memory = before.close((faded + einsum("hd,hge->hgde", k, change)).named("memory"))
    return einsum("hgde,hd->hge", memory, q)


def unit(x: Stream) -> Stream:
    """``x`` with length 1 along the last axis."""
    return x * rsqrt(sum(x * x, axis=-1, keepdims=True) + 1e-6)


FAMILIES = {"qwen3_next": Family(Qwen3Next, replace(LLAMA_NAMING, unused=(r"mtp\..*",)))}
