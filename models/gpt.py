"""The frame of the decoders that descend from GPT: layer norms with biases, an MLP without a gate.

A family declares the fields of its config.json, says how its files name the parts of a layer, and
overrides what it does differently: how heads are projected, and how they know positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..compiler.language import parameter, split
from ..compiler.recording import scope
from ..compiler.stream import Stream
from ..ir.errors import SystolicError
from .blocks import attention, embedding, layer_norm, linear, mlp
from .rope import CosSin, RopeFields, rotate, rotation
from .spec import Size


class Names(NamedTuple):
    """What files call the parts: of the model, then of a layer (below ``layers``.i).

    Without ``mlp_norm``, the MLP reads what attention reads.
    """

    embedding: str
    layers: str
    final_norm: str
    attention: str
    output: str
    up: str
    down: str
    head: str = "lm_head"
    attention_norm: str = "ln_1"
    mlp_norm: str | None = "ln_2"


class Positions(NamedTuple):
    """What the attention of every layer knows of positions: an angle of each pair, gains of the scores."""

    rotation: CosSin | None = None
    bias: Stream | None = None  # [K, G, past], or what broadcasts to it


Heads = tuple[Stream, Stream, Stream]  # queries [K, G, D], keys [K, D], values [K, D]: G queries share a key


@dataclass(frozen=True, kw_only=True)
class GptDecoder:
    """Layers of attention and an MLP, each a branch whose result is added to the stream."""

    names: ClassVar[Names]
    aliases: ClassVar[Mapping[str, str]] = {}  # what files call the fields below
    fixed: ClassVar[tuple[str, ...]] = ()  # fields that no file of the family can change
    axes: ClassVar[str] = "nd"  # how linear weights are stored
    interleaved: ClassVar[bool] = False  # which elements of a head rotary positions turn in pairs

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    intermediate_size: Size | None = None  # four times hidden_size
    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5
    max_position_embeddings: Size = 2048
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            names = (self._in_files(name) for name in ("hidden_size", "num_attention_heads"))
            raise SystolicError(" is not a multiple of ".join(names))
        for field in dataclasses.fields(self):
            if field.name in self.fixed and getattr(self, field.name) != field.default:
                raise SystolicError(f"{self._in_files(field.name)} is always {field.default} in this family")

    def _in_files(self, field: str) -> str:
        return next((alias for alias, meant in self.aliases.items() if meant == field), field)

    # ---- what families differ in ----

    @property
    def context_length(self) -> int:
        return self.max_position_embeddings

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def qkv_bias(self) -> bool:
        return True

    @property
    def output_bias(self) -> bool:
        return True

    @property
    def mlp_bias(self) -> bool:
        return True

    @property
    def head_bias(self) -> bool:
        return False

    @property
    def is_parallel(self) -> bool:
        """Whether attention and the MLP read the same stream, instead of one after the other."""
        return self.names.mlp_norm is None

    @property
    def key_heads(self) -> int:
        return self.num_attention_heads

    def norms(self) -> tuple[str, str | None]:
        """What the norms before attention and before the MLP are called."""
        return self.names.attention_norm, self.names.mlp_norm

    def score_scale(self, i: int) -> float:
        """What layer ``i`` multiplies its scores by."""
        return float(self.head_size**-0.5)

    def window(self, i: int) -> int | None:
        """How many positions the attention of layer ``i`` sees; None is all of them."""
        return None

    def embed(self, token: Stream) -> Stream:
        return embedding(token, self.names.embedding, self.vocab_size, self.hidden_size)

    def positions(self) -> Positions:
        """What every layer's attention knows of positions, computed once."""
        return Positions()

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, self.layer_norm_eps)

    def heads(self, x: Stream, name: str) -> Heads:
        """The heads of the attention ``name``, before rotation: by default three projections."""
        heads, keys, size, bias = self.num_attention_heads, self.key_heads, self.head_size, self.qkv_bias
        q = linear(x, f"{name}.q_proj", heads * size, bias=bias).reshape(keys, heads // keys, size)
        k = linear(x, f"{name}.k_proj", keys * size, bias=bias).reshape(keys, size)
        v = linear(x, f"{name}.v_proj", keys * size, bias=bias).reshape(keys, size)
        return q, k, v

    # ---- the model ----

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        with scope("embed"):
            x, positions = self.embed(token), self.positions()
        for i in range(self.num_hidden_layers):
            with scope(f"layers.{i}"):
                x = self.layer(x, i, positions)
        with scope("head"):
            return {"logits": self.head(self.final_norm(x)).named("logits")}

    def final_norm(self, x: Stream) -> Stream:
        return self.norm(x, self.names.final_norm)

    def head(self, x: Stream) -> Stream:
        """The logits; a head that is tied to the embedding may still have a bias of its own."""
        table = self.names.embedding if self.tie_word_embeddings else self.names.head
        logits = linear(x, table, self.vocab_size)
        return logits + parameter(f"{self.names.head}.bias", logits.shape) if self.head_bias else logits

    def layer(self, x: Stream, i: int, positions: Positions) -> Stream:
        name, (before_attention, before_mlp) = f"{self.names.layers}.{i}", self.norms()
        with scope("attn"):
            normal = self.norm(x, f"{name}.{before_attention}")
            attended = self.attend(normal, i, positions)
            if not self.is_parallel:
                x = (x + attended).named("x")
        with scope("mlp"):
            if before_mlp is not None:
                normal = self.norm(x, f"{name}.{before_mlp}")
            y = x + self.mlp(normal, i)
            return (y + attended if self.is_parallel else y).named("x")

    def attend(self, x: Stream, i: int, positions: Positions) -> Stream:
        name = f"{self.names.layers}.{i}"
        q, k, v = self.heads(x, f"{name}.{self.names.attention}")
        if positions.rotation is not None:
            q, k = (rotate(part, positions.rotation, interleaved=self.interleaved) for part in (q, k))
        scale, window = self.score_scale(i), self.window(i)
        mixed = attention(q, k, v, scale=scale, window=window, bias=positions.bias)
        mixed = mixed.reshape(self.num_attention_heads * self.head_size)
        output = f"{name}.{self.names.output}"
        return linear(mixed, output, self.hidden_size, bias=self.output_bias, axes=self.axes)

    def mlp(self, x: Stream, i: int) -> Stream:
        up, down = (f"{self.names.layers}.{i}.{part}" for part in (self.names.up, self.names.down))
        width = self.intermediate_size or 4 * self.hidden_size
        return mlp(x, up, down, width, self.hidden_act, bias=self.mlp_bias, axes=self.axes)


@dataclass(frozen=True, kw_only=True)
class RotaryGpt(RopeFields, GptDecoder):
    """The frame with rotary positions, as the fields of newer files describe them."""

    def positions(self) -> Positions:
        return Positions(rotation=rotation(self.rope(), self.head_size))


def heads_by_key(qkv: Stream, keys: int, size: int) -> Heads:
    """The heads of a fused projection that holds, for each of ``keys`` keys, its queries, it, its value."""
    (total,) = qkv.node.tensor.static_shape
    queries = total // (keys * size) - 2
    q, k, v = split(qkv.reshape(keys, queries + 2, size), [queries, 1, 1], axis=1)
    return q, k[:, 0], v[:, 0]


def heads_in_blocks(qkv: Stream, heads: int, size: int) -> Heads:
    """The heads of a fused projection that holds all queries, then all keys, then all values."""
    q, k, v = (part.reshape(heads, size) for part in split(qkv, [heads * size] * 3))
    return q[:, None], k, v
