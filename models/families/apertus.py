"""Apertus: norms on each query and key head, and an MLP whose activation is learned."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.language import exp, minimum, parameter, where
from ...compiler.stream import Stream
from ..blocks import linear, mlp, softplus
from ..decoder import Norms, RotaryDecoder
from ..family import LLAMA_NAMING, Family
from ..spec import Config, Size


@dataclass(frozen=True, kw_only=True)
class Apertus(RotaryDecoder):
    harmless: ClassVar[frozenset[str]] = frozenset({"qk_norm"})  # which nothing reads
    norms: ClassVar[Norms] = Norms("attention_layernorm", None, "feedforward_layernorm", None)
    turns_whole_heads: ClassVar[bool] = True
    default_theta: ClassVar[float] = 12000000.0

    max_position_embeddings: Size = 65536
    hidden_act: str = "xielu"
    rms_norm_eps: float = 1e-5
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

    def mlp(self, x: Stream, name: str) -> Stream:
        up, down = f"{name}.up_proj", f"{name}.down_proj"
        if self.hidden_act != "xielu":
            return mlp(x, up, down, self.intermediate_size, self.hidden_act, bias=False)
        hidden = xielu(linear(x, up, self.intermediate_size), f"{name}.act_fn")
        return linear(hidden, down, self.hidden_size)


def xielu(x: Stream, name: str) -> Stream:
    """A parabola above zero and an exponential below, of learned steepness (arXiv:2411.13010)."""
    above, below = (softplus(parameter(f"{name}.alpha_{side}", (1,))) for side in "pn")
    slope, limit = (parameter(f"{name}.{part}", ()) for part in ("beta", "eps"))
    fall = (exp(minimum(x, limit)) - 1.0 - x) * (below + slope)
    return where(x > 0.0, x * x * above, fall) + x * slope


def with_default_scaling(config: Config, stored: Collection[str] | None) -> Config:
    """A file without rotary settings has those of the first Apertus, whatever theta is beside them."""
    if config.values.get("rope_parameters") or config.values.get("rope_scaling"):
        return config
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 12000000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    return replace(config, values={**config.values, "rope_parameters": scaling, "rope_theta": None})


FAMILIES = {"apertus": Family(Apertus, LLAMA_NAMING, with_default_scaling)}
