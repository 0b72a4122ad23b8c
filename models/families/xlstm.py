"""xLSTM: heads with a matrix as memory, behind exponential gates that a running maximum keeps in range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import (
    absolute,
    einsum,
    exp,
    feedback,
    maximum,
    mean,
    parameter,
    rsqrt,
    sigmoid,
    split,
    zeros,
)
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import embedding, linear, silu, soft_cap, softplus, standardize
from ..family import Family
from ..positions import UNLIMITED
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Xlstm:
    # How the library computes and rounds; it has a norm at the output whatever add_out_norm says.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "norm_reduction_force_float32", "add_out_norm", "chunkwise_kernel", "sequence_kernel", "step_kernel",
        "mode", "chunk_size", "return_last_states", "autocast_kernel_dtype", "max_inference_chunksize",
        "tie_word_embeddings",
    })  # fmt: skip

    vocab_size: Size = 50304
    hidden_size: Size = 4096
    embedding_dim: Size | None = None
    num_hidden_layers: Size | None = 32
    num_blocks: Size | None = None
    num_heads: Size = 8
    use_bias: bool = False
    norm_eps: float = 1e-6
    qk_dim_factor: float = 0.5
    v_dim_factor: float = 1.0
    eps: float = 1e-6
    inference_state_dtype: str = "float32"
    ffn_proj_factor: float = 2.667
    ffn_round_up_to_multiple_of: Size = 64
    gate_soft_cap: float = 15.0
    output_logit_soft_cap: float = 30.0
    weight_mode: str = "single"  # or "fused": which weights are stored in one

    def __post_init__(self) -> None:
        if self.embedding_dim not in (None, self.hidden_size):
            raise SystolicError("embedding_dim is not hidden_size")
        if self.key_width % self.num_heads or self.value_width % self.num_heads:
            raise SystolicError("the widths of keys and values are not multiples of num_heads")
        if self.weight_mode not in ("single", "fused"):
            raise SystolicError(f"weight_mode must be single or fused, not {self.weight_mode!r}")
        if self.inference_state_dtype != "float32":
            raise SystolicError(f"states are float32, not {self.inference_state_dtype}")

    @property
    def context_length(self) -> int:
        return UNLIMITED

    @property
    def key_width(self) -> int:
        return int(self.hidden_size * self.qk_dim_factor)

    @property
    def value_width(self) -> int:
        return int(self.hidden_size * self.v_dim_factor)

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        with scope("embed"):
            x = embedding(token, "backbone.embeddings", self.vocab_size, self.hidden_size)
        for i in range(self.num_blocks or self.num_hidden_layers or 32):
            name = f"backbone.blocks.{i}"
            with scope(f"layers.{i}.mlstm"):
                x = (x + self.mix(self.norm(x, f"{name}.norm_mlstm"), f"{name}.mlstm_layer")).named("x")
            with scope(f"layers.{i}.mlp"):
                x = (x + self.mlp(self.norm(x, f"{name}.norm_ffn"), f"{name}.ffn")).named("x")
        with scope("head"):
            logits = linear(self.norm(x, "backbone.out_norm", bias=False), "lm_head", self.vocab_size)
            return {"logits": soft_cap(logits, self.output_logit_soft_cap).named("logits")}

    def norm(self, x: Stream, name: str, *, bias: bool = True) -> Stream:
        y = x * rsqrt(mean(x * x, axis=-1, keepdims=True) + self.norm_eps)
        return self.weighted(y, name, bias=bias)

    def weighted(self, x: Stream, name: str, *, bias: bool = True) -> Stream:
        y = x * parameter(f"{name}.weight", x.shape)
        return y + parameter(f"{name}.bias", x.shape) if bias and self.use_bias else y

    def mix(self, x: Stream, name: str) -> Stream:
        q, k, v, leave, enter, stay = self.projections(x, name)
        heads = self.num_heads
        q, k = (part.reshape(heads, self.key_width // heads) for part in (q, k))
        v = v.reshape(heads, self.value_width // heads)
        enter, stay = soft_cap(enter, self.gate_soft_cap), soft_cap(stay, self.gate_soft_cap)
        mixed = standardize(self.remember(q, k, v, enter, stay), self.norm_eps).reshape(self.value_width)
        mixed = sigmoid(leave) * self.weighted(mixed, f"{name}.multihead_norm")
        return linear(mixed, f"{name}.out_proj", self.hidden_size, bias=self.use_bias)

    def projections(self, x: Stream, name: str) -> list[Stream]:
        """Queries, keys, values, then what gates the output, what enters and what stays."""
        keys, values, heads, bias = self.key_width, self.value_width, self.num_heads, self.use_bias
        if self.weight_mode == "fused":
            parts = [keys, keys, values, values]
            wide = split(linear(x, f"{name}.qkv_opreact", sum(parts), bias=bias), parts)
            return wide + split(linear(x, f"{name}.ifgate_preact", 2 * heads, bias=True), [heads, heads])
        sizes = {"q": keys, "k": keys, "v": values, "ogate_preact": values}
        wide = [linear(x, f"{name}.{part}", size, bias=bias) for part, size in sizes.items()]
        gates = ("igate_preact", "fgate_preact")
        return wide + [linear(x, f"{name}.{gate}", heads, bias=True) for gate in gates]

    def remember(self, q: Stream, k: Stream, v: Stream, enter: Stream, stay: Stream) -> Stream:
        """What queries [H, D] read from the sum of all k v^T so far, divided by what they read from the sum
        of all k, though not by less than 1: [H, E].

        A term enters with weight exp(enter) and keeps sigmoid(stay) of it at each step. Sums are kept
        divided by exp(top), the largest weight so far, so that they neither overflow nor vanish.
        """
        (heads, keys), values = q.node.tensor.static_shape, v.node.tensor.static_shape[1]
        stay = -softplus(-stay)
        top_before = feedback(zeros((heads,)))
        memory_before, norm_before = feedback(zeros((heads, keys, values))), feedback(zeros((heads, keys)))
        top = top_before.close(maximum(top_before + stay, enter).named("top"))
        kept, entering = exp(top_before + stay - top), k * exp(enter - top)[:, None]
        inflow = einsum("hk,hv->hkv", entering, v)
        memory = memory_before.close((kept[:, None, None] * memory_before + inflow).named("memory"))
        norm = norm_before.close((kept[:, None] * norm_before + entering).named("norm"))
        q = q * (1 / math.sqrt(keys))
        weight = maximum(absolute(einsum("hk,hk->h", norm, q)), exp(-top)) + self.eps
        return einsum("hkv,hk->hv", memory, q) / weight[:, None]

    def mlp(self, x: Stream, name: str) -> Stream:
        multiple = self.ffn_round_up_to_multiple_of
        width = int((self.hidden_size * self.ffn_proj_factor + multiple - 1) // multiple * multiple)
        if self.weight_mode == "fused":
            both = linear(x, f"{name}.proj_up_gate_z", 2 * width, bias=self.use_bias)
            gate, up = split(both, [width, width])
        else:
            gate, up = (
                linear(x, f"{name}.{n}", width, bias=self.use_bias) for n in ("proj_up_gate", "proj_up")
            )
        return linear(silu(gate) * up, f"{name}.proj_down", self.hidden_size, bias=self.use_bias)


FAMILIES = {"xlstm": Family(Xlstm, Naming("backbone."))}
