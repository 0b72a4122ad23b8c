"""StarCoder2: a Llama with layer norms, biases and an MLP without a gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..blocks import layer_norm, mlp
from ..decoder import RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Starcoder2(RotaryDecoder):
    # What happens in training only, and what is the same in all files.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "residual_dropout", "embedding_dropout", "mlp_type", "norm_type",
    })  # fmt: skip
    turns_whole_heads: ClassVar[bool] = True

    max_position_embeddings: Size = 4096
    num_key_value_heads: Size | None = 2
    hidden_act: str = "gelu_pytorch_tanh"
    norm_epsilon: float = 1e-5
    sliding_window: Size | None = None
    use_bias: bool = True
    tie_word_embeddings: bool = True

    @property
    def qkv_bias(self) -> bool:
        return self.use_bias

    @property
    def output_bias(self) -> bool:
        return self.use_bias

    def window(self, i: int) -> int | None:
        return self.sliding_window

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, self.norm_epsilon)

    def mlp(self, x: Stream, name: str) -> Stream:
        up, down = f"{name}.c_fc", f"{name}.c_proj"
        return mlp(x, up, down, self.intermediate_size, self.hidden_act, bias=self.use_bias)


FAMILIES = {"starcoder2": Family(Starcoder2, LLAMA_NAMING)}
