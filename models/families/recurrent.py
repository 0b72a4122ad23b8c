"""Language models of LSTM and GRU cells, with the tensor names of torch.nn.LSTM and torch.nn.GRU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import einsum, feedback, parameter, sigmoid, split, tanh, zeros
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ..blocks import embedding, linear
from ..family import Family
from ..positions import UNLIMITED
from ..spec import Size


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """Layers of cells that read the token's embedding and their own last output."""

    prefix: ClassVar[str]
    gates: ClassVar[int]

    vocab_size: Size
    embedding_size: Size
    hidden_size: Size
    num_layers: Size = 1

    @property
    def context_length(self) -> int:
        return UNLIMITED

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        with scope("embed"):
            x = embedding(token, "embedding", self.vocab_size, self.embedding_size)
        for i in range(self.num_layers):
            with scope(f"layers.{i}"):
                x = self.cell(x, i)
        with scope("head"):
            return {"logits": linear(x, "head", self.vocab_size, bias=True).named("logits")}

    def cell(self, x: Stream, i: int) -> Stream:
        """What layer ``i`` makes of the output of the layer before."""
        raise NotImplementedError

    def affine(self, x: Stream, name: str) -> list[Stream]:
        """One part for each gate: weight times ``x``, plus bias."""
        size, count = self.hidden_size, self.gates
        weight = parameter(f"{self.prefix}.weight_{name}", (count * size, *x.shape))
        bias = parameter(f"{self.prefix}.bias_{name}", (count * size,))
        return split(einsum("d,nd->n", x, weight) + bias, [size] * count)


@dataclass(frozen=True, kw_only=True)
class Lstm(Recurrent):
    prefix: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4  # what enters, what is kept, the new value, what leaves

    proj_size: int = 0  # how many elements the output is projected to; 0 leaves it as it is

    def cell(self, x: Stream, i: int) -> Stream:
        h_before = feedback(zeros((self.proj_size or self.hidden_size,)))
        c_before = feedback(zeros((self.hidden_size,)))
        parts = zip(self.affine(x, f"ih_l{i}"), self.affine(h_before, f"hh_l{i}"), strict=True)
        enter, keep, new, leave = (a + b for a, b in parts)
        c = c_before.close((sigmoid(keep) * c_before + sigmoid(enter) * tanh(new)).named("c"))
        h = sigmoid(leave) * tanh(c)
        if self.proj_size:
            weight = parameter(f"{self.prefix}.weight_hr_l{i}", (self.proj_size, self.hidden_size))
            h = einsum("d,nd->n", h, weight)
        return h_before.close(h.named("h"))


@dataclass(frozen=True, kw_only=True)
class Gru(Recurrent):
    prefix: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3  # what the new value sees of the past, what is kept, the new value

    def cell(self, x: Stream, i: int) -> Stream:
        h_before = feedback(zeros((self.hidden_size,)))
        seen, kept, new = self.affine(x, f"ih_l{i}")
        seen_before, kept_before, new_before = self.affine(h_before, f"hh_l{i}")
        keep = sigmoid(kept + kept_before)
        value = tanh(new + sigmoid(seen + seen_before) * new_before)
        return h_before.close(((1.0 - keep) * value + keep * h_before).named("h"))


FAMILIES = {"gru_lm": Family(Gru), "lstm_lm": Family(Lstm)}
