"""Nemotron: norms with mean and bias whose weights are offsets from one; an MLP without a gate.

Arcee is a Llama with the same MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..blocks import layer_norm, mlp
from ..family import LLAMA_NAMING, Family
from ..spec import Size
from .llama import Llama


@dataclass(frozen=True, kw_only=True)
class Arcee(Llama):
    max_position_embeddings: Size = 4096
    hidden_act: str = "relu2"
    rms_norm_eps: float = 1e-5

    def mlp(self, x: Stream, name: str) -> Stream:
        up, down = f"{name}.up_proj", f"{name}.down_proj"
        return mlp(x, up, down, self.intermediate_size, self.hidden_act, bias=self.mlp_bias)


@dataclass(frozen=True, kw_only=True)
class Nemotron(Arcee):
    turns_whole_heads: ClassVar[bool] = False

    partial_rotary_factor: float | None = 0.5
    norm_eps: float = 1e-5

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, self.norm_eps, offset=1.0)


FAMILIES = {"arcee": Family(Arcee, LLAMA_NAMING), "nemotron": Family(Nemotron, LLAMA_NAMING)}
