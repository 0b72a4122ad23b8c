"""The frame of the decoders that descend from Llama: rotary positions, RMS norms, a gated MLP.

A family declares the fields of its config.json and overrides what it does differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..compiler.recording import scope
from ..compiler.stream import Stream
from ..ir.errors import SystolicError
from .blocks import attention, embedding, gated_mlp, linear, rms_norm
from .rope import CosSin, Rope, RopeFields, rotate, rotation
from .spec import Size


class Norms(NamedTuple):
    """How a layer's norms are called: in front of each branch, and on what it adds; None is no norm."""

    before_attention: str | None = "input_layernorm"
    behind_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    behind_mlp: str | None = None


@dataclass(frozen=True, kw_only=True)
class RotaryDecoder(RopeFields):
    """Layers of attention and an MLP, each a branch whose result is added to the stream."""

    norms: ClassVar[Norms] = Norms()
    final_norm: ClassVar[str] = "model.norm"
    output_projection: ClassVar[str] = "o_proj"
    interleaved: ClassVar[bool] = False  # which elements of a head rotary positions turn in pairs

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise SystolicError("hidden_size is not a multiple of num_attention_heads")
        if self.num_attention_heads % self.key_heads:
            raise SystolicError("num_attention_heads is not a multiple of num_key_value_heads")

    # ---- what families differ in ----

    @property
    def key_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def qkv_bias(self) -> bool:
        return False

    @property
    def output_bias(self) -> bool:
        return False

    @property
    def score_scale(self) -> float:
        return float(self.head_size**-0.5)

    @property
    def score_cap(self) -> float | None:
        """The bound of the attention scores, if they have one."""
        return None

    def window(self, i: int) -> int | None:
        """How many positions the attention of layer ``i`` sees; None is all of them."""
        return None

    def layer_rope(self, i: int) -> Rope | None:
        """The rotary positions of layer ``i``; None turns nothing."""
        return self.rope()

    def ropes(self) -> tuple[Rope, ...]:
        ropes = dict.fromkeys(self.layer_rope(i) for i in range(self.num_hidden_layers))
        return tuple(rope for rope in ropes if rope)

    def norm(self, x: Stream, name: str) -> Stream:
        return rms_norm(x, name, self.rms_norm_eps)

    def mlp(self, x: Stream, name: str) -> Stream:
        return gated_mlp(x, name, self.intermediate_size, self.hidden_act)

    def layer_mlp(self, x: Stream, name: str, i: int) -> Stream:
        """The MLP of layer ``i``, where not all are alike."""
        return self.mlp(x, name)

    # ---- the model ----

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        with scope("embed"):
            x = self.embed(token)
            ropes = [self.layer_rope(i) for i in range(self.num_hidden_layers)]
            rotations = {rope: rotation(rope, self.head_size) for rope in dict.fromkeys(ropes) if rope}
        for i, rope in enumerate(ropes):
            with scope(f"layers.{i}"):
                x = self.layer(x, i, rotations[rope] if rope else None)
        with scope("head"):
            return {"logits": self.head(self.norm(x, self.final_norm)).named("logits")}

    def embed(self, token: Stream) -> Stream:
        return embedding(token, "model.embed_tokens", self.vocab_size, self.hidden_size)

    def head(self, x: Stream) -> Stream:
        table = "model.embed_tokens" if self.tie_word_embeddings else "lm_head"
        return linear(x, table, self.vocab_size)

    def layer(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        name, norms = f"model.layers.{i}", self.norms
        with scope("attn"):
            branch = self.attend(self._normed(x, name, norms.before_attention), i, cos_sin)
            x = (x + self._normed(branch, name, norms.behind_attention)).named("x")
        with scope("mlp"):
            branch = self.layer_mlp(self._normed(x, name, norms.before_mlp), f"{name}.mlp", i)
            return (x + self._normed(branch, name, norms.behind_mlp)).named("x")

    def _normed(self, x: Stream, layer: str, name: str | None) -> Stream:
        return x if name is None else self.norm(x, f"{layer}.{name}")

    def attend(self, x: Stream, i: int, cos_sin: CosSin) -> Stream:
        name = self.attention_name(i)
        q, k, v = self.heads(x, name)
        q, k = self.rotated(q, k, name, cos_sin)
        mixed = self.mixed(q, k, v, i).reshape(self.num_attention_heads * self.head_size)
        return linear(mixed, f"{name}.{self.output_projection}", self.hidden_size, bias=self.output_bias)

    def mixed(self, q: Stream, k: Stream, v: Stream, i: int) -> Stream:
        """What the queries [K, G, D] of layer ``i`` read: [K, G, D]."""
        return attention(q, k, v, scale=self.score_scale, window=self.window(i), softcap=self.score_cap)

    def attention_name(self, i: int) -> str:
        """What the tensors of the attention in layer ``i`` begin with."""
        return f"model.layers.{i}.self_attn"

    def rotated(self, q: Stream, k: Stream, name: str, cos_sin: CosSin) -> tuple[Stream, Stream]:
        """Queries and keys, turned by their position where the layer has rotary positions."""
        turned = [rotate(x, cos_sin, interleaved=self.interleaved) for x in (q, k)]
        return turned[0], turned[1]

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        """Queries [K, G, D], keys [K, D] and values [K, D] before rotation: G queries share a key."""
        heads, keys, size, bias = self.num_attention_heads, self.key_heads, self.head_size, self.qkv_bias
        q = linear(x, f"{name}.q_proj", heads * size, bias=bias).reshape(keys, heads // keys, size)
        k = linear(x, f"{name}.k_proj", keys * size, bias=bias).reshape(keys, size)
        v = linear(x, f"{name}.v_proj", keys * size, bias=bias).reshape(keys, size)
        return q, k, v


@dataclass(frozen=True, kw_only=True)
class LayerTypes:
    """Which layers see only a window of the past: newer files list it, older ones leave it to a rule."""

    sliding_window: Size | None = 4096
    layer_types: tuple[str, ...] | None = None

    def slides(self, i: int) -> bool:
        """The rule for layer ``i`` of a file that has no list."""
        raise NotImplementedError

    def window(self, i: int) -> int | None:
        """How many positions the attention of layer ``i`` sees; None is all of them.

        Raises ``SystolicError`` for a list that does not fit the layers.
        """
        if self.layer_type(i) == "full_attention":
            return None
        if self.sliding_window is None and self.layer_types is not None:
            raise SystolicError(f"layer_types: layer {i} slides, but there is no sliding_window")
        return self.sliding_window

    def layer_type(self, i: int) -> str:
        """full_attention or sliding_attention; ``SystolicError`` where the list says something else."""
        if self.layer_types is None:
            return "sliding_attention" if self.slides(i) else "full_attention"
        if i >= len(self.layer_types):
            raise SystolicError(f"layer_types says nothing about layer {i}")
        kind = self.layer_types[i]
        if kind not in ("full_attention", "sliding_attention"):
            raise SystolicError(f"layer_types: {kind!r} is neither full_attention nor sliding_attention")
        return kind
