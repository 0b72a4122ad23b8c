"""The frame of text encoders: every position sees the whole text, and heads follow from the class that
wrote the file.

A family declares the fields of its config.json and how its files call the parts of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..compiler.language import absolute, parameter, position, tanh, where, whole
from ..compiler.recording import scope
from ..compiler.stream import Stream
from ..ir.errors import SystolicError
from .blocks import activation, at_position, embedding, layer_norm, linear, mlp, two_sided_attention
from .positions import learned_positions
from .spec import Config, Size

# The outputs beside last_hidden, by what follows the family's name in the name of the class.
Heads = Mapping[str, tuple[str, ...]]
PLAIN: Heads = {"Model": (), "ForMaskedLM": ("mlm_logits",)}
POOLED: Heads = {"Model": ("pooled",), "ForMaskedLM": ("mlm_logits",)}


class LayerNames(NamedTuple):
    """How the parts of a layer are called, behind the layer's own name."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    mlp_norm: str = "output.LayerNorm"


class PredictionNames(NamedTuple):
    """How the parts are called that predict the token at a position."""

    dense: str
    norm: str
    decoder: str
    bias: str  # that of a decoder whose weight is the embedding

    @property
    def unused(self) -> tuple[str, ...]:
        """Patterns of what a file may hold although its class does not predict tokens."""
        parts = dict.fromkeys((self.dense, self.norm, self.decoder))
        return (*(rf"{part}\.\w+" for part in parts), self.bias)

    def tied(self, table: str) -> dict[str, str]:
        """What a file may repeat where the decoder's weight is the embedding's ``table``."""
        copies = {f"{self.decoder}.weight": f"{table}.weight", f"{self.decoder}.bias": self.bias}
        return {name: other for name, other in copies.items() if name != other}


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Layers over an embedded text, and the heads behind them."""

    family: ClassVar[str]  # what the names of its classes begin with
    heads: ClassVar[Heads] = PLAIN
    predictions: ClassVar[PredictionNames]
    table: ClassVar[str]  # the embedding of the tokens

    architectures: tuple[str, ...] | None = None
    vocab_size: Size
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    max_position_embeddings: Size = 512
    is_decoder: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.is_decoder:
            raise SystolicError(f"is_decoder is true, but {self.family} is built as an encoder only")

    @property
    def context_length(self) -> int:
        return self.max_position_embeddings

    # ---- what families differ in ----

    def embed(self, token: Stream) -> Stream:
        """i32[] -> f32[D]"""
        raise NotImplementedError

    def layer(self, x: Stream, i: int) -> Stream:
        """f32[D] -> f32[D]"""
        raise NotImplementedError

    def last(self, x: Stream) -> Stream:
        """What stands behind the last layer."""
        return x

    def norm(self, x: Stream, name: str) -> Stream:
        raise NotImplementedError

    @property
    def prediction_act(self) -> str:
        """The activation of what predicts tokens."""
        return "gelu"

    def pool(self, x: Stream) -> Stream:
        """One vector for the text."""
        raise NotImplementedError

    def classify(self, pooled: Stream) -> Stream:
        """A logit for each class of the text."""
        raise NotImplementedError

    # ---- the model ----

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"last_hidden": f32[D]} and what the heads yield: ``pooled`` f32[D], ``mlm_logits``
        f32[V], logits of the text"""
        with scope("embed"):
            x = self.embed(token)
        return self.outputs(x)

    def outputs(self, x: Stream) -> dict[str, Stream]:
        """What layers and heads make of an embedded text."""
        for i in range(self.num_hidden_layers):
            with scope(f"layers.{i}"):
                x = self.layer(x, i)
        outputs = {"last_hidden": self.last(x)}
        with scope("head"):
            for name in self.heads_of_file():
                outputs[name] = self.head(name, outputs).named(name)
        return outputs

    def heads_of_file(self) -> tuple[str, ...]:
        """The outputs of the first class in ``architectures``, by default the bare model.

        Raises ``SystolicError`` with the known classes.
        """
        name = self.architectures[0] if self.architectures else f"{self.family}Model"
        known = {self.family + suffix: heads for suffix, heads in self.heads.items()}
        if name not in known:
            raise SystolicError(f"architectures: {name!r} is unknown; known: {', '.join(known)}")
        return known[name]

    def head(self, name: str, outputs: Mapping[str, Stream]) -> Stream:
        """One output from those before it."""
        if name == "pooled":
            return self.pool(outputs["last_hidden"])
        if name == "mlm_logits":
            return self.predict(outputs["last_hidden"])
        return self.classify(outputs["pooled"])

    def predict(self, x: Stream) -> Stream:
        """A logit for each token that could be at this position: [V]."""
        names, width = self.predictions, self.prediction_width
        hidden = activation(self.prediction_act)(linear(x, names.dense, width, bias=self.has_prediction_bias))
        hidden = self.norm(hidden, names.norm)
        if not self.tie_word_embeddings:
            return linear(hidden, names.decoder, self.vocab_size, bias=self.has_decoder_bias)
        logits = linear(hidden, self.table, self.vocab_size)
        return logits + parameter(names.bias, (self.vocab_size,)) if self.has_decoder_bias else logits

    @property
    def prediction_width(self) -> int:
        return self.hidden_size

    @property
    def has_prediction_bias(self) -> bool:
        return True

    @property
    def has_decoder_bias(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class PostNormEncoder(Encoder):
    """Layers like those of BERT: a norm behind each residual sum, biases everywhere."""

    prefix: ClassVar[str]
    names: ClassVar[LayerNames] = LayerNames()

    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise SystolicError("hidden_size is not a multiple of num_attention_heads")
        if self.position_embedding_type != "absolute":
            raise SystolicError(f"position_embedding_type {self.position_embedding_type!r} is not supported")

    @property
    def embedding_width(self) -> int:
        return self.hidden_size

    def embed(self, token: Stream) -> Stream:
        name = f"{self.prefix}.embeddings"
        return self.norm(self.words(token) + self.places(token), f"{name}.LayerNorm")

    def words(self, token: Stream) -> Stream:
        table = f"{self.prefix}.embeddings.word_embeddings"
        return embedding(token, table, self.vocab_size, self.embedding_width)

    def places(self, token: Stream) -> Stream:
        table = f"{self.prefix}.embeddings.position_embeddings"
        return learned_positions(table, self.max_position_embeddings, self.embedding_width)

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, self.layer_norm_eps)

    def layer(self, x: Stream, i: int) -> Stream:
        return self.block(x, f"{self.prefix}.encoder.layer.{i}")

    def block(self, x: Stream, name: str) -> Stream:
        with scope("attn"):
            branch = linear(self.attend(x, name), f"{name}.{self.names.output}", self.hidden_size, bias=True)
            x = self.norm(x + branch, f"{name}.{self.names.attention_norm}").named("x")
        with scope("mlp"):
            up, down = f"{name}.{self.names.up}", f"{name}.{self.names.down}"
            branch = mlp(x, up, down, self.intermediate_size, self.hidden_act)
            return self.norm(x + branch, f"{name}.{self.names.mlp_norm}").named("x")

    def attend(self, x: Stream, name: str) -> Stream:
        heads, size = self.num_attention_heads, self.hidden_size // self.num_attention_heads
        parts = (self.names.query, self.names.key, self.names.value)
        q, k, v = (
            linear(x, f"{name}.{part}", self.hidden_size, bias=True).reshape(heads, size) for part in parts
        )
        mixed = two_sided_attention(q[:, None], k, v, scale=size**-0.5, bias=self.distances())
        return mixed.reshape(self.hidden_size)

    def distances(self) -> Stream | None:
        """What the scores gain by distance, if anything: [H, 1, whole]."""
        return None

    def pool(self, x: Stream) -> Stream:
        return tanh(linear(at_position(x, 0), f"{self.prefix}.pooler.dense", self.hidden_size, bias=True))


@dataclass(frozen=True, kw_only=True)
class TypedEncoder(PostNormEncoder):
    """One that also reads a number beside each token: which part of the text the token is in."""

    type_vocab_size: Size = 2

    def step(self, token: Stream, token_type_ids: Stream) -> dict[str, Stream]:  # type: ignore[override]
        """i32[], i32[] -> {"last_hidden": f32[D]} and what the heads yield, as in ``Encoder.step``"""
        with scope("embed"):
            name = f"{self.prefix}.embeddings"
            types = f"{name}.token_type_embeddings"
            x = self.words(token) + self.places(token)
            x = x + embedding(token_type_ids, types, self.type_vocab_size, self.embedding_width)
            x = self.norm(x, f"{name}.LayerNorm")
        return self.outputs(x)


def bias_of_neighbours(reach: int) -> Stream:
    """Nothing for the scores of positions up to ``reach`` away, and an end to all others: [1, 1, whole]."""
    distance = absolute(whole(position()) - position())
    return where(distance <= reach, 0.0, -1e30).reshape(1, 1, *distance.shape)


def label_count(num_labels: int | None, id2label: Config | None) -> int:
    """How many classes a head has: as many as are named, else as the config counts, else two."""
    return len(id2label.values) if id2label is not None else num_labels or 2
