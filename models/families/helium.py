"""Helium: a Llama that turns neighbouring elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..family import LLAMA_NAMING, Family
from ..spec import Size
from .llama import Llama


@dataclass(frozen=True, kw_only=True)
class Helium(Llama):
    interleaved: ClassVar[bool] = True
    default_theta: ClassVar[float] = 100000.0

    max_position_embeddings: Size = 4096
    num_key_value_heads: Size | None = 20
    head_dim: Size | None = 128
    rms_norm_eps: float = 1e-8

    @property
    def output_bias(self) -> bool:
        return False


FAMILIES = {"helium": Family(Helium, LLAMA_NAMING)}
