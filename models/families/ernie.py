"""ERNIE 4.5: a Llama that turns neighbouring elements, with biases everywhere or nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..blocks import gated_mlp
from ..decoder import RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Ernie45(RotaryDecoder):
    interleaved: ClassVar[bool] = True
    turns_whole_heads: ClassVar[bool] = True
    default_theta: ClassVar[float] = 500000.0

    max_position_embeddings: Size = 131072
    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 128
    rms_norm_eps: float = 1e-5
    use_bias: bool = False
    tie_word_embeddings: bool = True

    @property
    def qkv_bias(self) -> bool:
        return self.use_bias

    @property
    def output_bias(self) -> bool:
        return self.use_bias

    def mlp(self, x: Stream, name: str) -> Stream:
        return gated_mlp(x, name, self.intermediate_size, self.hidden_act, bias=self.use_bias)


FAMILIES = {"ernie4_5": Family(Ernie45, LLAMA_NAMING)}
