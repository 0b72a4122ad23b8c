"""Qwen2: a Llama with biases on queries, keys and values. Qwen3: norms on each query and key head."""

from __future__ import annotations

from dataclasses import dataclass

from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..decoder import LayerTypes, RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class QwenFields(LayerTypes, RotaryDecoder):
    """A window where the file switches it on: then on the layers from ``max_window_layers`` on."""

    max_position_embeddings: Size = 32768
    num_key_value_heads: Size | None = 32
    use_sliding_window: bool = False
    max_window_layers: int = 28

    def slides(self, i: int) -> bool:
        return self.use_sliding_window and i >= self.max_window_layers

    def window(self, i: int) -> int | None:
        window = super().window(i)
        if window is not None and not self.use_sliding_window:
            raise SystolicError(f"layer_types: layer {i} slides, although use_sliding_window is false")
        return window


@dataclass(frozen=True, kw_only=True)
class Qwen2(QwenFields):
    @property
    def qkv_bias(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Qwen3(QwenFields):
    head_dim: Size | None = 128
    attention_bias: bool = False

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        q, k, v = super().heads(x, name)
        return self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm"), v


FAMILIES = {"qwen2": Family(Qwen2, LLAMA_NAMING), "qwen3": Family(Qwen3, LLAMA_NAMING)}
