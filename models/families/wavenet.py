"""WaveNet over tokens: gated convolutions that look further and further back."""

from __future__ import annotations

from dataclasses import dataclass

from ...compiler.language import sigmoid, split, tanh
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import causal_convolution, embedding, relu
from ..family import Family
from ..positions import UNLIMITED
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Wavenet:
    vocab_size: Size
    channels: Size
    gate_channels: Size
    skip_channels: Size
    kernel_size: Size = 2
    dilations: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.dilations or min(self.dilations) < 1:
            raise SystolicError("dilations must be a list of whole numbers of at least 1")

    @property
    def context_length(self) -> int:
        return UNLIMITED

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        with scope("embed"):
            x = embedding(token, "embedding", self.vocab_size, self.channels)
        skips = []
        for i, dilation in enumerate(self.dilations):
            with scope(f"layers.{i}"):
                gated = self.gated(x, i, dilation)
                skips.append(causal_convolution(gated, f"skip.{i}", self.skip_channels))
                if i + 1 < len(self.dilations):  # what the last layer would add, nothing reads
                    residual = causal_convolution(gated, f"residual.{i}", self.channels)
                    x = (x + residual).named("x")
        with scope("head"):
            hidden = relu(causal_convolution(relu(sum(skips[1:], skips[0])), "out1", self.skip_channels))
            return {"logits": causal_convolution(hidden, "out2", self.vocab_size).named("logits")}

    def gated(self, x: Stream, i: int, dilation: int) -> Stream:
        size, kernel = self.gate_channels, self.kernel_size
        both = causal_convolution(x, f"dilated.{i}", 2 * size, kernel=kernel, dilation=dilation)
        value, gate = split(both, [size, size])
        return tanh(value) * sigmoid(gate)


# The last layer adds to a stream that nothing reads.
FAMILIES = {"wavenet_lm": Family(Wavenet, Naming(unused=(r"residual\.\d+\.\w+",)))}
