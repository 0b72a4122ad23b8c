"""Mamba: layers of a selective state space, and the same with norms inside, Falcon Mamba."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.language import mean, rsqrt
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..family import Family
from ..spec import Config, Size
from ..state_space import ChannelStates, StateSpaceDecoder
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Mamba(StateSpaceDecoder):
    # How training began, which kernel runs, and how residuals are rounded in half precision.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor",
        "rescale_prenorm_residual", "residual_in_fp32", "use_mambapy", "use_associative_scan",
    })  # fmt: skip

    vocab_size: Size
    hidden_size: Size
    state_size: Size = 16
    num_hidden_layers: Size = 32
    layer_norm_epsilon: float = 1e-5
    expand: float = 2.0
    intermediate_size: Size | None = None  # repeats expand * hidden_size
    conv_kernel: Size = 4
    use_bias: bool = True
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    time_step_rank: Size | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.intermediate_size not in (None, self.width):
            raise SystolicError("intermediate_size is not expand * hidden_size")

    @property
    def width(self) -> int:
        """How many channels have a state of their own."""
        return int(self.expand * self.hidden_size)

    def mixer(self) -> ChannelStates:
        return ChannelStates(
            hidden_size=self.hidden_size,
            width=self.width,
            state_size=self.state_size,
            rank=self.time_step_rank or math.ceil(self.hidden_size / 16),
            kernel=self.conv_kernel,
            activation=self.hidden_act,
            bias=self.use_bias,
            convolution_bias=self.use_conv_bias,
        )


@dataclass(frozen=True, kw_only=True)
class FalconMamba(Mamba):
    """Mamba with norms, without weights, on the time step, on what enters and on what leaves."""

    harmless: ClassVar[frozenset[str]] = Mamba.harmless | {"use_falcon_mambapy"}

    use_bias: bool = False
    mixer_rms_eps: float = 1e-6

    def mixer(self) -> ChannelStates:
        return replace(super().mixer(), normalise=self.normalise)

    def normalise(self, x: Stream, name: str) -> Stream:
        return x * rsqrt(mean(x * x, axis=-1, keepdims=True) + self.mixer_rms_eps)


def without_auto(config: Config, stored: Collection[str] | None) -> Config:
    """A config in which "auto" is what it means: the same as leaving the field out."""
    given = {name: value for name, value in config.values.items() if value != "auto"}
    return Config(config.source, given)


_NAMING = Naming("backbone.", tied={"lm_head.weight": "backbone.embeddings.weight"})
FAMILIES = {
    "falcon_mamba": Family(FalconMamba, _NAMING, without_auto),
    "mamba": Family(Mamba, _NAMING, without_auto),
}
