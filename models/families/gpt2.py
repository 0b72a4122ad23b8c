"""GPT-2: learned positions, layer norms with bias, weights stored as [in, out]."""

from __future__ import annotations

from dataclasses import dataclass

from ...compiler.language import split
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import attention, embedding, layer_norm, linear, mlp
from ..family import Family
from ..positions import learned_positions
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Gpt2:
    vocab_size: Size
    n_positions: Size = 1024
    n_embd: Size
    n_layer: Size
    n_head: Size
    n_inner: Size | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise SystolicError("n_embd is not a multiple of n_head")

    @property
    def context_length(self) -> int:
        return self.n_positions

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        with scope("embed"):
            x = embedding(token, "transformer.wte", self.vocab_size, self.n_embd)
            x = x + learned_positions("transformer.wpe", self.n_positions, self.n_embd)
        for i in range(self.n_layer):
            with scope(f"layers.{i}"):
                x = self.layer(x, i)
        with scope("head"):
            x = layer_norm(x, "transformer.ln_f", self.layer_norm_epsilon)
            table = "transformer.wte" if self.tie_word_embeddings else "lm_head"
            return {"logits": linear(x, table, self.vocab_size).named("logits")}

    def layer(self, x: Stream, i: int) -> Stream:
        name, width = f"transformer.h.{i}", self.n_inner or 4 * self.n_embd
        with scope("attn"):
            normal = layer_norm(x, f"{name}.ln_1", self.layer_norm_epsilon)
            x = (x + self.attend(normal, f"{name}.attn", i)).named("x")
        with scope("mlp"):
            normal = layer_norm(x, f"{name}.ln_2", self.layer_norm_epsilon)
            up, down = f"{name}.mlp.c_fc", f"{name}.mlp.c_proj"
            return (x + mlp(normal, up, down, width, self.activation_function, axes="dn")).named("x")

    def attend(self, x: Stream, name: str, i: int) -> Stream:
        width, size = self.n_embd, self.n_embd // self.n_head
        qkv = linear(x, f"{name}.c_attn", 3 * width, bias=True, axes="dn")
        q, k, v = (part.reshape(self.n_head, size) for part in split(qkv, [width] * 3))
        scale = size**-0.5 if self.scale_attn_weights else 1.0
        if self.scale_attn_by_inverse_layer_idx:
            scale /= i + 1
        mixed = attention(q.reshape(self.n_head, 1, size), k, v, scale=scale)
        return linear(mixed.reshape(width), f"{name}.c_proj", width, bias=True, axes="dn")


_NAMING = Naming(
    "transformer.",
    (r"h\.\d+\.attn\.(bias|masked_bias)",),
    tied={"lm_head.weight": "transformer.wte.weight"},
)
FAMILIES = {"gpt2": Family(Gpt2, _NAMING)}
