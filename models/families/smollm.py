"""SmolLM 3: a Llama in which every fourth layer has no positions, and may see only a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir.errors import SystolicError
from ..decoder import LayerTypes
from ..family import LLAMA_NAMING, Family
from ..rope import Rope
from ..spec import Size
from .llama import Llama


@dataclass(frozen=True, kw_only=True)
class SmolLm3(LayerTypes, Llama):
    harmless: ClassVar[frozenset[str]] = frozenset({"max_window_layers"})  # which nothing reads
    default_theta: ClassVar[float] = 2000000.0

    max_position_embeddings: Size = 32768
    num_key_value_heads: Size | None = 4
    sliding_window: Size | None = None
    use_sliding_window: bool = False
    no_rope_layers: tuple[int, ...] | None = None  # 1 for a layer that has positions
    no_rope_layer_interval: Size = 4
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.no_rope_layers is not None and len(self.no_rope_layers) < self.num_hidden_layers:
            raise SystolicError(f"no_rope_layers says nothing about layer {len(self.no_rope_layers)}")

    def turns(self, i: int) -> bool:
        if self.no_rope_layers is not None:
            return bool(self.no_rope_layers[i])
        return (i + 1) % self.no_rope_layer_interval != 0

    def slides(self, i: int) -> bool:
        return self.use_sliding_window and self.sliding_window is not None and not self.turns(i)

    def layer_rope(self, i: int) -> Rope | None:
        return self.rope() if self.turns(i) else None


FAMILIES = {"smollm3": Family(SmolLm3, LLAMA_NAMING)}
