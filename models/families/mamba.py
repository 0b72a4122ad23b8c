"""Mamba: a selective state space, whose step and whose input and output depend on the token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import einsum, exp, feedback, parameter, split, zeros
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, depthwise_convolution, embedding, linear, rms_norm, softplus
from ..family import Family
from ..positions import UNLIMITED
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Mamba:
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
    def context_length(self) -> int:
        return UNLIMITED

    @property
    def width(self) -> int:
        """How many channels have a state of their own."""
        return int(self.expand * self.hidden_size)

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        table, eps = "backbone.embeddings", self.layer_norm_epsilon
        with scope("embed"):
            x = embedding(token, table, self.vocab_size, self.hidden_size)
        for i in range(self.num_hidden_layers):
            name = f"backbone.layers.{i}"
            with scope(f"layers.{i}"):
                x = (x + self.mix(rms_norm(x, f"{name}.norm", eps), f"{name}.mixer")).named("x")
        with scope("head"):
            x = rms_norm(x, "backbone.norm_f", eps)
            head = table if self.tie_word_embeddings else "lm_head"
            return {"logits": linear(x, head, self.vocab_size).named("logits")}

    def mix(self, x: Stream, name: str) -> Stream:
        width, act = self.width, activation(self.hidden_act)
        projected = linear(x, f"{name}.in_proj", 2 * width, bias=self.use_bias)
        inner, gate = split(projected, [width, width])
        convolved = depthwise_convolution(
            inner.named("inner"), f"{name}.conv1d", self.conv_kernel, bias=self.use_conv_bias
        )
        y = self.scan(act(convolved), name)
        return linear(y * act(gate), f"{name}.out_proj", self.hidden_size, bias=self.use_bias)

    def scan(self, x: Stream, name: str) -> Stream:
        """y = C s + D x, where s = exp(dt A) s' + dt B x, and s' is the state before: [width]."""
        width, size = self.width, self.state_size
        rank = self.time_step_rank or math.ceil(self.hidden_size / 16)
        low, enter, leave = split(linear(x, f"{name}.x_proj", rank + 2 * size), [rank, size, size])
        dt = softplus(linear(low, f"{name}.dt_proj", width, bias=True)).named("dt")
        rate = -exp(parameter(f"{name}.A_log", (width, size)))
        before = feedback(zeros((width, size)))
        state = before.close((exp(dt[:, None] * rate) * before + (dt * x)[:, None] * enter).named("state"))
        return einsum("cn,n->c", state, leave) + parameter(f"{name}.D", (width,)) * x


_NAMING = Naming("backbone.", tied={"lm_head.weight": "backbone.embeddings.weight"})
FAMILIES = {"mamba": Family(Mamba, _NAMING)}
