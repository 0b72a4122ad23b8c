"""Mamba 2: layers of a state space whose heads decay as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...ir.errors import SystolicError
from ..family import Family
from ..spec import Size
from ..state_space import HeadStates, StateSpaceDecoder
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Mamba2(StateSpaceDecoder):
    # How training began, how residuals are rounded in half precision, and how the library computes: whatever
    # norm_before_gate and rms_norm say, it gates first, and there is a norm.
    harmless: ClassVar[frozenset[str]] = frozenset({
        "time_step_rank", "time_step_min", "time_step_max", "time_step_floor", "residual_in_fp32",
        "rescale_prenorm_residual", "chunk_size", "norm_before_gate", "rms_norm",
    })  # fmt: skip

    vocab_size: Size = 32768
    hidden_size: Size = 4096
    num_heads: Size = 128
    head_dim: Size = 64
    state_size: Size = 128
    num_hidden_layers: Size = 64
    layer_norm_epsilon: float = 1e-5
    expand: float = 2.0
    conv_kernel: Size = 4
    n_groups: Size = 8
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    time_step_limit: tuple[float, ...] = (0.0, math.inf)
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.num_heads * self.head_dim != int(self.expand * self.hidden_size):
            raise SystolicError("num_heads * head_dim is not expand * hidden_size")

    def mixer(self) -> HeadStates:
        return HeadStates(
            hidden_size=self.hidden_size,
            heads=self.num_heads,
            head_size=self.head_dim,
            groups=self.n_groups,
            state_size=self.state_size,
            kernel=self.conv_kernel,
            eps=self.layer_norm_epsilon,
            activation=self.hidden_act,
            bias=self.use_bias,
            output_bias=self.use_bias,
            convolution_bias=self.use_conv_bias,
            time_step_limit=self.time_step_limit,
        )


_NAMING = Naming("backbone.", tied={"lm_head.weight": "backbone.embeddings.weight"})
FAMILIES = {"mamba2": Family(Mamba2, _NAMING)}
