"""BERT: every position sees the whole text; norms behind each residual sum."""

from __future__ import annotations

from dataclasses import dataclass

from ...compiler.language import parameter, tanh
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, at_position, embedding, layer_norm, linear, mlp, two_sided_attention
from ..encoder import heads_of
from ..family import Family
from ..positions import learned_positions
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Bert:
    architectures: tuple[str, ...] | None = None
    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    intermediate_size: Size
    hidden_act: str = "gelu"
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    is_decoder: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise SystolicError("hidden_size is not a multiple of num_attention_heads")
        if self.position_embedding_type != "absolute":
            raise SystolicError(f"position_embedding_type {self.position_embedding_type!r} is not supported")
        if self.is_decoder:
            raise SystolicError("is_decoder is true, but BERT is built as an encoder only")

    @property
    def context_length(self) -> int:
        return self.max_position_embeddings

    def step(self, token: Stream, token_type_ids: Stream) -> dict[str, Stream]:
        """i32[], i32[] -> {"last_hidden": f32[D]} and what the heads yield: ``pooled`` f32[D],
        ``mlm_logits`` f32[V], ``nsp_logits`` f32[2]"""
        with scope("embed"):
            x = self.embed(token, token_type_ids)
        for i in range(self.num_hidden_layers):
            with scope(f"layers.{i}"):
                x = self.layer(x, f"bert.encoder.layer.{i}")
        outputs, heads = {"last_hidden": x}, heads_of(self.architectures, "Bert")
        with scope("head"):
            if "pooler" in heads:
                pooled = tanh(linear(at_position(x, 0), "bert.pooler.dense", self.hidden_size, bias=True))
                outputs["pooled"] = pooled.named("pooled")
            if "tokens" in heads:
                outputs["mlm_logits"] = self.predict(x).named("mlm_logits")
            if "next_sentence" in heads:
                logits = linear(outputs["pooled"], "cls.seq_relationship", 2, bias=True)
                outputs["nsp_logits"] = logits.named("nsp_logits")
        return outputs

    def embed(self, token: Stream, token_type: Stream) -> Stream:
        name, width = "bert.embeddings", self.hidden_size
        words = embedding(token, f"{name}.word_embeddings", self.vocab_size, width)
        types = embedding(token_type, f"{name}.token_type_embeddings", self.type_vocab_size, width)
        places = learned_positions(f"{name}.position_embeddings", self.max_position_embeddings, width)
        return self.norm(words + types + places, name)

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, f"{name}.LayerNorm", self.layer_norm_eps)

    def layer(self, x: Stream, name: str) -> Stream:
        with scope("attn"):
            mixed = self.attend(x, f"{name}.attention.self")
            branch = linear(mixed, f"{name}.attention.output.dense", self.hidden_size, bias=True)
            x = self.norm(x + branch, f"{name}.attention.output").named("x")
        with scope("mlp"):
            up, down = f"{name}.intermediate.dense", f"{name}.output.dense"
            branch = mlp(x, up, down, self.intermediate_size, self.hidden_act)
            return self.norm(x + branch, f"{name}.output").named("x")

    def attend(self, x: Stream, name: str) -> Stream:
        heads, size = self.num_attention_heads, self.hidden_size // self.num_attention_heads
        q, k, v = (
            linear(x, f"{name}.{part}", self.hidden_size, bias=True).reshape(heads, size)
            for part in ("query", "key", "value")
        )
        mixed = two_sided_attention(q[:, None], k, v, scale=size**-0.5)
        return mixed.reshape(self.hidden_size)

    def predict(self, x: Stream) -> Stream:
        """A logit for each token that could be at this position: [V]."""
        name = "cls.predictions"
        hidden = linear(x, f"{name}.transform.dense", self.hidden_size, bias=True)
        hidden = self.norm(activation(self.hidden_act)(hidden), f"{name}.transform")
        tied = self.tie_word_embeddings
        table = "bert.embeddings.word_embeddings" if tied else f"{name}.decoder"
        return linear(hidden, table, self.vocab_size) + parameter(f"{name}.bias", (self.vocab_size,))


_NAMING = Naming(
    "bert.",
    (r"embeddings\.position_ids",),
    (r"bert\.pooler\.dense\.\w+", r"cls\.predictions\.[\w.]+", r"cls\.seq_relationship\.\w+"),
    {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)
FAMILIES = {"bert": Family(Bert, _NAMING)}
