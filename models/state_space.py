"""Selective state spaces, the mixers of Mamba and Mamba 2: tokens decide what stays, enters and leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..compiler.language import (
    constant,
    einsum,
    exp,
    feedback,
    maximum,
    mean,
    minimum,
    parameter,
    rsqrt,
    split,
    zeros,
)
from ..compiler.recording import scope
from ..compiler.stream import Stream
from ..ir.errors import SystolicError
from .blocks import activation, depthwise_convolution, embedding, linear, rms_norm, silu, softplus
from .positions import UNLIMITED
from .spec import Size

Normalise = Callable[[Stream, str], Stream]


@dataclass(frozen=True, kw_only=True)
class ChannelStates:
    """Mamba's mixer: ``state_size`` numbers for each of ``width`` channels, each with a decay of its own.

    ``normalise`` is applied to the time step (in ``rank`` numbers), to what enters and to what leaves,
    which are called dt, b and c.
    """

    hidden_size: int
    width: int
    state_size: int
    rank: int
    kernel: int
    activation: str = "silu"
    bias: bool = False
    convolution_bias: bool = True
    normalise: Normalise = lambda x, name: x

    def mix(self, x: Stream, name: str) -> Stream:
        """f32[hidden_size] -> f32[hidden_size]"""
        width, act = self.width, activation(self.activation)
        projected = linear(x, f"{name}.in_proj", 2 * width, bias=self.bias)
        inner, gate = split(projected, [width, width])
        convolved = depthwise_convolution(
            inner.named("inner"), f"{name}.conv1d", self.kernel, bias=self.convolution_bias
        )
        y = self.scan(act(convolved), name)
        return linear(y * silu(gate), f"{name}.out_proj", self.hidden_size, bias=self.bias)

    def scan(self, x: Stream, name: str) -> Stream:
        """y = C s + D x, where s = exp(dt A) s' + dt B x, and s' is the state before: [width]."""
        width, size, normalise = self.width, self.state_size, self.normalise
        parts = [self.rank, size, size]
        low, enter, leave = split(linear(x, f"{name}.x_proj", sum(parts)), parts)
        low, enter, leave = normalise(low, "dt"), normalise(enter, "b"), normalise(leave, "c")
        dt = softplus(linear(low, f"{name}.dt_proj", width, bias=True)).named("dt")
        rate = -exp(parameter(f"{name}.A_log", (width, size)))
        before = feedback(zeros((width, size)))
        state = before.close((exp(dt[:, None] * rate) * before + (dt * x)[:, None] * enter).named("state"))
        return einsum("cn,n->c", state, leave) + parameter(f"{name}.D", (width,)) * x


@dataclass(frozen=True, kw_only=True)
class HeadStates:
    """Mamba 2's mixer: a matrix [head_size, state_size] for each head, decaying as a whole.

    The heads are in ``groups`` which share what enters and what leaves. ``time_step_limit`` bounds the
    time step. ``normalised`` says whether the output has a norm, by groups; with ``gate_first`` what the
    norm sees is gated already. ``multipliers`` scale the five parts of the projection.
    """

    hidden_size: int
    heads: int
    head_size: int
    groups: int
    state_size: int
    kernel: int
    eps: float
    activation: str = "silu"
    bias: bool = False
    output_bias: bool = False
    convolution_bias: bool = True
    time_step_limit: tuple[float, ...] = (0.0, math.inf)
    normalised: bool = True
    gate_first: bool = True
    multipliers: tuple[float, ...] = (1.0,) * 5

    def __post_init__(self) -> None:
        if self.heads % self.groups:
            raise SystolicError(f"{self.heads} heads cannot be in {self.groups} groups of one size")
        if len(self.time_step_limit) != 2:
            raise SystolicError("time_step_limit must hold two numbers")
        if len(self.multipliers) != 5:
            raise SystolicError("ssm_multipliers must hold five numbers")

    def mix(self, x: Stream, name: str) -> Stream:
        """f32[hidden_size] -> f32[hidden_size]"""
        width, shared = self.heads * self.head_size, self.groups * self.state_size
        parts = [width, width, shared, shared, self.heads]
        projected = linear(x, f"{name}.in_proj", sum(parts), bias=self.bias)
        gate, inner, dt = split(projected * self._scales(parts), [width, width + 2 * shared, self.heads])
        convolved = depthwise_convolution(
            inner.named("inner"), f"{name}.conv1d", self.kernel, bias=self.convolution_bias
        )
        x, enter, leave = split(activation(self.activation)(convolved), [width, shared, shared])
        y = self.gate(self.scan(x, enter, leave, dt, name), gate, name)
        return linear(y, f"{name}.out_proj", self.hidden_size, bias=self.output_bias)

    def _scales(self, parts: list[int]) -> Stream | float:
        if all(scale == 1.0 for scale in self.multipliers):
            return 1.0
        scales = zip(self.multipliers, parts, strict=True)
        return constant([scale for scale, size in scales for _ in range(size)], "f32")

    def scan(self, x: Stream, enter: Stream, leave: Stream, dt: Stream, name: str) -> Stream:
        """y = S C + D x, where S = exp(dt A) S' + (dt x) B, and S' is the state before: [width]."""
        groups, each = self.groups, self.heads // self.groups
        by_head = (groups, each)
        x = x.reshape(*by_head, self.head_size)
        enter, leave = (part.reshape(groups, self.state_size) for part in (enter, leave))
        low, high = self.time_step_limit
        dt = softplus(dt + parameter(f"{name}.dt_bias", (self.heads,)))
        dt = maximum(dt, low) if low > 0 else dt  # softplus is positive
        dt = (minimum(dt, high) if high < math.inf else dt).reshape(*by_head).named("dt")
        rate = -exp(parameter(f"{name}.A_log", (self.heads,)).reshape(*by_head))
        skip = parameter(f"{name}.D", (self.heads,)).reshape(*by_head, 1)
        before = feedback(zeros((*by_head, self.head_size, self.state_size)))
        inflow = einsum("ghp,gn->ghpn", x * dt[..., None], enter)
        state = before.close((exp(dt * rate)[..., None, None] * before + inflow).named("state"))
        y = einsum("ghpn,gn->ghp", state, leave) + skip * x
        return y.reshape(self.heads * self.head_size)

    def gate(self, y: Stream, gate: Stream, name: str) -> Stream:
        if not self.normalised:
            return y * silu(gate)
        if self.gate_first:
            return self.norm(y * silu(gate), f"{name}.norm")
        return self.norm(y, f"{name}.norm") * silu(gate)

    def norm(self, y: Stream, name: str) -> Stream:
        """``y`` divided by the root of its mean square in each group, times a weight."""
        (width,) = y.node.tensor.static_shape
        parts = y.reshape(self.groups, width // self.groups)
        normal = parts * rsqrt(mean(parts * parts, axis=-1, keepdims=True) + self.eps)
        return normal.reshape(width) * parameter(f"{name}.weight", (width,))


@dataclass(frozen=True, kw_only=True)
class StateSpaceDecoder:
    """The frame of Mamba and Mamba 2: nothing but layers of a mixer behind a norm, added to the stream."""

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Size
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    @property
    def context_length(self) -> int:
        return UNLIMITED

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        table, eps = "backbone.embeddings", self.layer_norm_epsilon
        with scope("embed"):
            x = embedding(token, table, self.vocab_size, self.hidden_size)
        mixer = self.mixer()
        for i in range(self.num_hidden_layers):
            name = f"backbone.layers.{i}"
            with scope(f"layers.{i}"):
                x = (x + mixer.mix(rms_norm(x, f"{name}.norm", eps), f"{name}.mixer")).named("x")
        with scope("head"):
            x = rms_norm(x, "backbone.norm_f", eps)
            head = table if self.tie_word_embeddings else "lm_head"
            return {"logits": linear(x, head, self.vocab_size).named("logits")}

    def mixer(self) -> ChannelStates | HeadStates:
        """What the layers have between their norm and the stream."""
        raise NotImplementedError
