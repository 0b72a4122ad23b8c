"""RWKV (version 4): each channel is a mean of all values so far, weighted by keys that fade with age."""

from __future__ import annotations

from dataclasses import dataclass

from ...compiler.language import delay, exp, feedback, maximum, parameter, sigmoid, zeros
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ..blocks import embedding, layer_norm, linear, relu_squared
from ..family import Family
from ..spec import Size
from ..weights import Naming

NOTHING = -1e38  # the logarithm of no weight at all


@dataclass(frozen=True, kw_only=True)
class Rwkv:
    vocab_size: Size = 50277
    context_length: Size = 1024
    hidden_size: Size = 4096
    num_hidden_layers: Size = 32
    attention_hidden_size: Size | None = None
    intermediate_size: Size | None = None
    layer_norm_epsilon: float = 1e-5
    rescale_every: int = 6  # halves the stream after so many layers; not above 0: never
    tie_word_embeddings: bool = False

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""
        eps, every = self.layer_norm_epsilon, self.rescale_every
        with scope("embed"):
            x = embedding(token, "rwkv.embeddings", self.vocab_size, self.hidden_size)
            x = layer_norm(x, "rwkv.blocks.0.pre_ln", eps)
        for i in range(self.num_hidden_layers):
            name, scale = f"rwkv.blocks.{i}", 0.5 ** (i // every) if every > 0 else 1.0
            with scope(f"layers.{i}.attn"):
                branch = self.attend(layer_norm(x, f"{name}.ln1", eps), f"{name}.attention")
                x = (x + branch * scale).named("x")
            with scope(f"layers.{i}.mlp"):
                branch = self.mlp(layer_norm(x, f"{name}.ln2", eps), f"{name}.feed_forward")
                x = x + branch * scale
                x = (x * 0.5 if every > 0 and (i + 1) % every == 0 else x).named("x")
        with scope("head"):
            head = "rwkv.embeddings" if self.tie_word_embeddings else "head"
            return {"logits": linear(layer_norm(x, "rwkv.ln_out", 1e-5), head, self.vocab_size)}

    def attend(self, x: Stream, name: str) -> Stream:
        size = self.attention_hidden_size or self.hidden_size
        before = delay(x.named("x"))
        key, value, receptance = (
            linear(blend(x, before, f"{name}.time_mix_{part}"), f"{name}.{part}", size)
            for part in ("key", "value", "receptance")
        )
        mixed = sigmoid(receptance) * fading_mean(key, value, name)
        return linear(mixed, f"{name}.output", self.hidden_size)

    def mlp(self, x: Stream, name: str) -> Stream:
        width = self.intermediate_size or 4 * self.hidden_size
        before = delay(x.named("x"))
        key, receptance = (blend(x, before, f"{name}.time_mix_{part}") for part in ("key", "receptance"))
        hidden = relu_squared(linear(key, f"{name}.key", width))
        gate = sigmoid(linear(receptance, f"{name}.receptance", self.hidden_size))
        return gate * linear(hidden, f"{name}.value", self.hidden_size)


def blend(x: Stream, before: Stream, name: str) -> Stream:
    """Between the value before (where the weight is 0) and this one (where it is 1)."""
    weight = parameter(name, (1, 1, *x.shape)).reshape(*x.shape)
    return x * weight + before * (1.0 - weight)


def fading_mean(key: Stream, value: Stream, name: str) -> Stream:
    """The mean of all values so far, weighted by exp(key - age * exp(time_decay)), and this one's by
    exp(key + time_first).

    Sums of weights and of weighted values are kept divided by exp(top), the largest weight so far, so
    that they neither overflow nor vanish.
    """
    fade = -exp(parameter(f"{name}.time_decay", key.shape))
    here = key + parameter(f"{name}.time_first", key.shape)
    top_before = feedback(zeros(key.shape) + NOTHING)
    total_before, weights_before = feedback(zeros(key.shape)), feedback(zeros(key.shape))
    highest = maximum(top_before, here)
    old, new = exp(top_before - highest), exp(here - highest)
    mean = (old * total_before + new * value) / (old * weights_before + new)
    top = top_before.close(maximum(top_before + fade, key).named("top"))
    kept, entering = exp(top_before + fade - top), exp(key - top)
    total_before.close((kept * total_before + entering * value).named("total"))
    weights_before.close((kept * weights_before + entering).named("weights"))
    return mean


_NAMING = Naming("rwkv.", tied={"head.weight": "rwkv.embeddings.weight"})
FAMILIES = {"rwkv": Family(Rwkv, _NAMING)}
