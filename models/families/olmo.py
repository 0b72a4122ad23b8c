"""OLMo: norms without weights, clipped heads. OLMo 2 norms what its branches add, and queries and keys
before they are heads; OLMo 3 sees a window in three layers of four."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import maximum, mean, minimum, rsqrt
from ...compiler.stream import Stream
from ..blocks import linear
from ..decoder import LayerTypes, Norms, RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..rope import Rope, RopeByLayerType


@dataclass(frozen=True, kw_only=True)
class OlmoFields(RotaryDecoder):
    turns_whole_heads: ClassVar[bool] = True

    attention_bias: bool = False

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        heads, keys, size = self.num_attention_heads, self.key_heads, self.head_size
        counts = {"q": heads, "k": keys, "v": keys}
        q, k, v = (
            self.settled(linear(x, f"{name}.{part}_proj", count * size, bias=self.qkv_bias), name, part)
            for part, count in counts.items()
        )
        return q.reshape(keys, heads // keys, size), k.reshape(keys, size), v.reshape(keys, size)

    def settled(self, x: Stream, name: str, part: str) -> Stream:
        """The queries, keys or values of all heads side by side, before they are taken apart."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Olmo(OlmoFields):
    clip_qkv: float | None = None

    def norm(self, x: Stream, name: str) -> Stream:
        centred = x - mean(x, axis=-1, keepdims=True)
        return centred * rsqrt(mean(centred * centred, axis=-1, keepdims=True) + 1e-5)

    def settled(self, x: Stream, name: str, part: str) -> Stream:
        bound = self.clip_qkv
        return x if bound is None else minimum(maximum(x, -bound), bound)


@dataclass(frozen=True, kw_only=True)
class Olmo2(OlmoFields):
    norms: ClassVar[Norms] = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")

    rms_norm_eps: float = 1e-5

    def settled(self, x: Stream, name: str, part: str) -> Stream:
        return x if part == "v" else self.norm(x, f"{name}.{part}_norm")


@dataclass(frozen=True, kw_only=True)
class Olmo3(RopeByLayerType, LayerTypes, Olmo2):
    default_theta: ClassVar[float] = 500000.0

    def slides(self, i: int) -> bool:
        return (i + 1) % 4 != 0

    def layer_rope(self, i: int) -> Rope:
        return self.rope_of(self.layer_type(i))

    def theta_of(self, layer_type: str) -> float:
        """A theta beside the settings is one of the layers that see all of the past."""
        given = self.rope_theta if layer_type == "full_attention" else None
        return given or self.default_theta


FAMILIES = {
    name: Family(model, LLAMA_NAMING) for name, model in (("olmo", Olmo), ("olmo2", Olmo2), ("olmo3", Olmo3))
}
