"""EXAONE 4: norms on what the branches add and on each head; no positions where all is seen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.stream import Stream
from ..decoder import LayerTypes, Norms, RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..rope import Rope
from ..spec import Config, Size


@dataclass(frozen=True, kw_only=True)
class Exaone4(LayerTypes, RotaryDecoder):
    norms: ClassVar[Norms] = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
    turns_whole_heads: ClassVar[bool] = True

    num_key_value_heads: Size | None = 32
    rms_norm_eps: float = 1e-5
    sliding_window_pattern: int | None = 4

    def slides(self, i: int) -> bool:
        every = self.sliding_window_pattern if self.sliding_window is not None else None
        return bool(every) and (i + 1) % (every or 1) != 0

    def layer_rope(self, i: int) -> Rope | None:
        """A model whose layers all see everything has positions in all of them."""
        has_positions = self.sliding_window is None or self.layer_type(i) == "sliding_attention"
        return self.rope() if has_positions else None

    def heads(self, x: Stream, name: str) -> tuple[Stream, Stream, Stream]:
        q, k, v = super().heads(x, name)
        return self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm"), v


def with_pattern_as_list(config: Config, stored: Collection[str] | None) -> Config:
    """A pattern like LLLG, of layers that slide and layers that see all, repeats; the last sees all."""
    pattern = config.values.get("sliding_window_pattern")
    if not isinstance(pattern, str) or not pattern or set(pattern) - {"L", "G"}:
        return config
    values = {name: value for name, value in config.values.items() if name != "sliding_window_pattern"}
    if values.get("layer_types") is None:
        count = config.size("num_hidden_layers")
        slides = [pattern[i % len(pattern)] == "L" and i + 1 < count for i in range(count)]
        values["layer_types"] = ["sliding_attention" if s else "full_attention" for s in slides]
    return replace(config, values=values)


FAMILIES = {"exaone4": Family(Exaone4, LLAMA_NAMING, with_pattern_as_list)}
