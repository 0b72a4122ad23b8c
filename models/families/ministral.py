"""Ministral: a Mistral that may list which of its layers slide. Ministral 3: queries that grow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.language import floor, log1p, position
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..decoder import LayerTypes, RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..rope import CosSin
from ..spec import Config, Size


@dataclass(frozen=True, kw_only=True)
class Ministral(LayerTypes, RotaryDecoder):
    turns_whole_heads: ClassVar[bool] = True

    max_position_embeddings: Size = 131072
    num_key_value_heads: Size | None = 8

    def slides(self, i: int) -> bool:
        return self.sliding_window is not None


@dataclass(frozen=True, kw_only=True)
class Ministral3(RotaryDecoder):
    turns_whole_heads: ClassVar[bool] = True

    max_position_embeddings: Size = 262144
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = None
    # Taken out of rope_parameters, where files have it.
    llama_4_scaling_beta: float | None = None

    def window(self, i: int) -> int | None:
        return self.sliding_window

    def rotated(self, q: Stream, k: Stream, name: str, cos_sin: CosSin) -> tuple[Stream, Stream]:
        """Queries grow with the logarithm of how often the original context has passed."""
        if self.llama_4_scaling_beta is None:
            raise SystolicError("rope_parameters: llama_4_scaling_beta is missing")
        q, k = super().rotated(q, k, name, cos_sin)
        passed = floor(position().cast("f32") / float(self.rope().original))
        return q * (log1p(passed) * self.llama_4_scaling_beta + 1.0), k


# What the library assumes of a file that says nothing of its rotary positions.
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def with_scaling_of_queries(config: Config, stored: Collection[str] | None) -> Config:
    """The growth of the queries beside the rotary settings, which other families have, too."""
    given = config.values.get("rope_scaling") or config.values.get("rope_parameters") or _YARN
    settings = Config(f"{config.source}: rope_parameters", given)
    beta = settings.number("llama_4_scaling_beta") if "llama_4_scaling_beta" in given else None
    rest = {name: value for name, value in given.items() if name != "llama_4_scaling_beta"}
    fields = {"rope_parameters": rest, "rope_scaling": None, "llama_4_scaling_beta": beta}
    return replace(config, values={**config.values, **fields})


FAMILIES = {
    "ministral": Family(Ministral, LLAMA_NAMING),
    "ministral3": Family(Ministral3, LLAMA_NAMING, with_scaling_of_queries),
}
