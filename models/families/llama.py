"""Llama, and Mistral, which is a Llama that sees only a window of the past."""

from __future__ import annotations

from dataclasses import dataclass

from ...compiler.trace import Stream, scope
from ...ir.errors import SystolicError
from ..blocks import attention, embedding, gated_mlp, linear, rms_norm
from ..rope import CosSin, RopeFields, rotate, rotation
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Llama(RopeFields):
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise SystolicError("hidden_size is not a multiple of num_attention_heads")
        if self.num_attention_heads % self.key_heads:
            raise SystolicError("num_attention_heads is not a multiple of num_key_value_heads")

    @property
    def key_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def window(self) -> int | None:
        """How many positions attention sees; None is all of them."""
        return None

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        with scope("embed"):
            x = embedding(token, "model.embed_tokens", self.vocab_size, self.hidden_size)
            cos_sin = rotation(self.rope(), self.head_size)
        for i in range(self.num_hidden_layers):
            with scope(f"layers.{i}"):
                x = self.layer(x, f"model.layers.{i}", cos_sin)
        with scope("head"):
            x = rms_norm(x, "model.norm", self.rms_norm_eps)
            table = "model.embed_tokens" if self.tie_word_embeddings else "lm_head"
            return {"logits": linear(x, table, self.vocab_size).named("logits")}

    def layer(self, x: Stream, name: str, cos_sin: CosSin) -> Stream:
        with scope("attn"):
            normal = rms_norm(x, f"{name}.input_layernorm", self.rms_norm_eps)
            x = (x + self.attend(normal, f"{name}.self_attn", cos_sin)).named("x")
        with scope("mlp"):
            normal = rms_norm(x, f"{name}.post_attention_layernorm", self.rms_norm_eps)
            width, act = self.intermediate_size, self.hidden_act
            return (x + gated_mlp(normal, f"{name}.mlp", width, act, bias=self.mlp_bias)).named("x")

    def attend(self, x: Stream, name: str, cos_sin: CosSin) -> Stream:
        heads, keys, size = self.num_attention_heads, self.key_heads, self.head_size
        bias = self.attention_bias
        q = linear(x, f"{name}.q_proj", heads * size, bias=bias).reshape(keys, heads // keys, size)
        k = linear(x, f"{name}.k_proj", keys * size, bias=bias).reshape(keys, size)
        v = linear(x, f"{name}.v_proj", keys * size, bias=bias).reshape(keys, size)
        mixed = attention(rotate(q, cos_sin), rotate(k, cos_sin), v, scale=size**-0.5, window=self.window)
        return linear(mixed.reshape(heads * size), f"{name}.o_proj", self.hidden_size, bias=bias)


@dataclass(frozen=True, kw_only=True)
class Mistral(Llama):
    # What the library assumes where a config is silent; a window of null sees all of the past.
    max_position_embeddings: Size = 131072
    num_key_value_heads: Size | None = 8
    sliding_window: Size | None = 4096

    @property
    def window(self) -> int | None:
        return self.sliding_window
