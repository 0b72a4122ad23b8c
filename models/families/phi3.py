"""Phi-3: a Llama with fused heads, fused gate and up, a window, and two sets of frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import split
from ...compiler.stream import Stream
from ..blocks import fused_gated_mlp, linear
from ..decoder import RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..rope import LongRope, Rope
from ..spec import Config, Size


@dataclass(frozen=True, kw_only=True)
class Phi3(RotaryDecoder):
    harmless: ClassVar[frozenset[str]] = frozenset({"full_attn_mod", "interpolate_factor"})  # read by nothing

    max_position_embeddings: Size = 4096
    original_max_position_embeddings: Size | None = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = None

    def window(self, i: int) -> int | None:
        return self.sliding_window

    def scalings(self, settings: Config) -> dict[str, type[Rope]]:
        """Older files call the same thing su, and by mistake yarn."""
        return {"default": Rope, **dict.fromkeys(("longrope", "su", "yarn"), LongRope)}

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        heads, keys, size = self.num_attention_heads, self.key_heads, self.head_size
        qkv = linear(x, f"{name}.qkv_proj", (heads + 2 * keys) * size)
        q, k, v = split(qkv, [heads * size, keys * size, keys * size])
        return q.reshape(keys, heads // keys, size), k.reshape(keys, size), v.reshape(keys, size)

    def mlp(self, x: Stream, name: str) -> Stream:
        return fused_gated_mlp(x, name, self.intermediate_size, self.hidden_act)


FAMILIES = {"phi3": Family(Phi3, LLAMA_NAMING)}
