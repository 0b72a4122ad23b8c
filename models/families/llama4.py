"""Llama 4, the text model: attention within chunks, layers without positions that see everything, and
experts whose inputs are weighted, beside one that every token visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import (
    floor,
    history,
    log1p,
    mean,
    parameter,
    position,
    rsqrt,
    sigmoid,
    split,
    sum,
    top_k,
    where,
)
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, attention, gated_mlp
from ..decoder import RotaryDecoder
from ..experts import routed_linear, router_logits
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin, Rope
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Llama4Text(RotaryDecoder):
    interleaved: ClassVar[bool] = True
    turns_whole_heads: ClassVar[bool] = True
    default_theta: ClassVar[float] = 500000.0
    # Noise of training, and a switch for tools that compress.
    harmless: ClassVar[frozenset[str]] = frozenset({"router_jitter_noise", "for_llm_compressor"})

    intermediate_size: Size = 8192
    intermediate_size_mlp: Size = 16384
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    use_qk_norm: bool = True
    no_rope_layers: tuple[int, ...] | None = None  # 1 for a layer with rotary positions, 0 for one without
    no_rope_layer_interval: Size = 4
    layer_types: tuple[str, ...] | None = None
    attention_chunk_size: Size | None = 8192
    attn_temperature_tuning: bool = True
    floor_scale: float = 8192.0
    attn_scale: float = 0.1
    num_local_experts: Size = 16
    num_experts_per_tok: Size = 1
    moe_layers: tuple[int, ...] | None = None
    interleave_moe_layer_step: Size = 1

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    # ---- attention ----

    def turns(self, i: int) -> bool:
        """Whether layer ``i`` has rotary positions."""
        if not self.no_rope_layers:
            return (i + 1) % self.no_rope_layer_interval != 0
        if i >= len(self.no_rope_layers):
            raise SystolicError(f"no_rope_layers says nothing about layer {i}")
        return bool(self.no_rope_layers[i])

    def layer_rope(self, i: int) -> Rope | None:
        return self.rope() if self.turns(i) else None

    def window(self, i: int) -> int | None:
        """The size of the chunks within which layer ``i`` attends; None where it sees everything."""
        kind = "chunked_attention" if self.turns(i) else "full_attention"
        if self.layer_types is not None:
            if i >= len(self.layer_types):
                raise SystolicError(f"layer_types says nothing about layer {i}")
            kind = self.layer_types[i]
        if kind == "full_attention":
            return None
        if kind != "chunked_attention":
            raise SystolicError(f"layer_types: {kind!r} is neither full_attention nor chunked_attention")
        if self.attention_chunk_size is None:
            raise SystolicError(f"layer {i} attends within chunks, but there is no attention_chunk_size")
        return self.attention_chunk_size

    def rotated(self, q: Stream, k: Stream, name: str, cos_sin: CosSin) -> tuple[Stream, Stream]:
        q, k = super().rotated(q, k, name, cos_sin)
        if cos_sin is not None:
            return (self.unit(q), self.unit(k)) if self.use_qk_norm else (q, k)
        if not self.attn_temperature_tuning:
            return q, k
        count = position().cast("f32") + 1.0
        return q * (log1p(floor(count / self.floor_scale)) * self.attn_scale + 1.0), k

    def unit(self, x: Stream) -> Stream:
        return x * rsqrt(mean(x * x, axis=-1, keepdims=True) + self.rms_norm_eps)

    def mixed(self, q: Stream, k: Stream, v: Stream, i: int) -> Stream:
        size, bias = self.window(i), None
        if size is not None:
            chunk = position() // size
            same = history(position(), size) // size == chunk
            bias = where(same, 0.0, -1e30)  # not infinite: padding may see nothing of its chunk
        return attention(q, k, v, scale=self.score_scale, window=size, bias=bias)

    # ---- experts ----

    def layer_mlp(self, x: Stream, name: str, i: int) -> Stream:
        name = name.replace(".mlp", ".feed_forward")
        step, listed = self.interleave_moe_layer_step, self.moe_layers
        if (i + 1) % step == 0 if listed is None else i in listed:
            shared = gated_mlp(x, f"{name}.shared_expert", self.intermediate_size, self.hidden_act)
            return shared + self.experts(x, name)
        return gated_mlp(x, name, self.intermediate_size_mlp, self.hidden_act)

    def experts(self, x: Stream, name: str) -> Stream:
        experts, width, size = self.num_local_experts, self.intermediate_size, self.hidden_size
        scores, chosen = top_k(router_logits(x, f"{name}.router", experts), self.num_experts_per_tok)
        first = parameter(f"{name}.experts.gate_up_proj", (experts, size, 2 * width))
        second = parameter(f"{name}.experts.down_proj", (experts, width, size))
        weighted = sigmoid(scores).reshape(-1, 1) * x
        gate, up = split(routed_linear(weighted, first, chosen, axes="dn"), [width, width])
        hidden = up * activation(self.hidden_act)(gate)
        return sum(routed_linear(hidden, second, chosen, axes="dn"), axis=0)


FAMILIES = {"llama4_text": Family(Llama4Text, LLAMA_NAMING)}
