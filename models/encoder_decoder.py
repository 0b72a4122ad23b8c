"""The frame of the encoder-decoders that descend from BART: two stacks, each on a clock of its own.

A family says where its norms stand and where its positions come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ..compiler.language import einsum, parameter, whole
from ..compiler.recording import scope
from ..compiler.stream import Stream
from ..ir.errors import SystolicError
from .blocks import attention, embedding, layer_norm, linear, mix, mlp, two_sided_attention
from .positions import learned_positions
from .spec import Config, Size
from .weights import Naming

_EPS = 1e-5  # of every norm; no config says another


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """Two stacks of layers: the encoder's see the whole source, the decoder's their past and the source.

    The last three fields are no part of a config.json: what the checkpoint holds decides them.
    """

    inputs: ClassVar[Mapping[str, str]] = {"source": "i32[]@source", "target": "i32[]@target"}
    # How training went, and what older files say of their family although nothing reads it.
    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "activation_dropout",
            "add_bias_logits",
            "add_final_layer_norm",
            "classif_dropout",
            "decoder_layerdrop",
            "dropout",
            "encoder_layerdrop",
            "extra_pos_embeddings",
            "force_bos_token_to_be_generated",
            "init_std",
            "normalize_before",
            "normalize_embedding",
            "num_hidden_layers",
            "save_step",
            "static_position_embeddings",
        }
    )
    norms_first: ClassVar[bool] = False  # in front of each branch and behind each stack, or behind each sum
    norms_embedding: ClassVar[bool] = False
    key_bias: ClassVar[bool] = True
    head_table: ClassVar[str] = "lm_head"

    vocab_size: Size = 50265
    d_model: Size = 1024
    encoder_layers: Size = 12
    decoder_layers: Size = 12
    encoder_attention_heads: Size = 16
    decoder_attention_heads: Size = 16
    encoder_ffn_dim: Size = 4096
    decoder_ffn_dim: Size = 4096
    max_position_embeddings: Size = 1024
    activation_function: str = "gelu"
    scale_embedding: bool = False
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    has_final_bias: bool = True
    has_own_tables: bool = False  # an embedding of tokens in each stack, instead of a shared one
    has_stored_positions: bool = False

    def __post_init__(self) -> None:
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise SystolicError(f"d_model is not a multiple of {name}")
        if not self.is_encoder_decoder:
            raise SystolicError("is_encoder_decoder is false, but the model is built with both")

    @property
    def context_length(self) -> int:
        return self.max_position_embeddings

    # ---- what families differ in ----

    def places(self, token: Stream, stack: str) -> Stream:
        """What is added to the embedding of a position of ``stack`` (encoder or decoder)."""
        table = f"model.{stack}.embed_positions"
        return learned_positions(table, self.max_position_embeddings, self.d_model, clock=clock_of(stack))

    def table(self, stack: str) -> str:
        """The embedding of the tokens of ``stack``."""
        return f"model.{stack}.embed_tokens" if self.has_own_tables else "model.shared"

    @property
    def target_vocabulary(self) -> int:
        return self.vocab_size

    # ---- the model ----

    def step(self, source: Stream, target: Stream) -> dict[str, Stream]:
        """i32[]@source, i32[]@target -> {"logits": f32[V]@target}"""
        with scope("encoder"):
            memory = whole(self.encode(self.embed(source, "encoder", self.vocab_size)))
        with scope("decoder"):
            x = self.decode(self.embed(target, "decoder", self.target_vocabulary), memory)
        with scope("head"):
            table = self.table("decoder") if self.tie_word_embeddings else self.head_table
            logits = linear(x, table, self.target_vocabulary)
            if self.has_final_bias:
                bias = parameter("final_logits_bias", (1, self.target_vocabulary))
                logits = logits + bias.reshape(self.target_vocabulary)
            return {"logits": logits.named("logits")}

    def embed(self, token: Stream, stack: str, count: int) -> Stream:
        x = embedding(token, self.table(stack), count, self.d_model)
        if self.scale_embedding:
            x = x * math.sqrt(self.d_model)
        x = x + self.places(token, stack)
        return self.norm(x, f"model.{stack}.layernorm_embedding") if self.norms_embedding else x

    def encode(self, x: Stream) -> Stream:
        """f32[D] -> f32[D]: what the decoder reads of each position of the source."""
        for i in range(self.encoder_layers):
            name, heads = f"model.encoder.layers.{i}", self.encoder_attention_heads
            with scope(f"layers.{i}"):
                with scope("attn"):
                    x = self.branch(x, f"{name}.self_attn", self.attend(two_sided_attention, heads))
                x = self.feed_forward(x, name, self.encoder_ffn_dim)
        return self.last(x, "encoder").named("encoded")

    def decode(self, x: Stream, memory: Stream) -> Stream:
        """f32[D], f32[whole@source,D] -> f32[D]"""
        for i in range(self.decoder_layers):
            name, heads = f"model.decoder.layers.{i}", self.decoder_attention_heads
            with scope(f"layers.{i}"):
                with scope("attn"):
                    x = self.branch(x, f"{name}.self_attn", self.attend(attention, heads))
                with scope("cross"):
                    x = self.branch(x, f"{name}.encoder_attn", self.read(memory))
                x = self.feed_forward(x, name, self.decoder_ffn_dim)
        return self.last(x, "decoder")

    def last(self, x: Stream, stack: str) -> Stream:
        return self.norm(x, f"model.{stack}.layer_norm") if self.norms_first else x

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, _EPS)

    def branch(self, x: Stream, name: str, read: Callable[[Stream, str], Stream]) -> Stream:
        """``x`` and what ``read`` adds to it; the norm is called like the branch."""
        norm = f"{name}_layer_norm"
        if self.norms_first:
            return (x + read(self.norm(x, norm), name)).named("x")
        return self.norm(x + read(x, name), norm).named("x")

    def feed_forward(self, x: Stream, name: str, width: int) -> Stream:
        def read(x: Stream, _: str) -> Stream:
            return mlp(x, f"{name}.fc1", f"{name}.fc2", width, self.activation_function)

        with scope("mlp"):
            return self.branch(x, f"{name}.final", read)

    def attend(self, see: Callable[..., Stream], heads: int) -> Callable[[Stream, str], Stream]:
        """Attention of a stack to itself, of which ``see`` says how far it sees."""

        def read(x: Stream, name: str) -> Stream:
            size = self.d_model // heads
            k = linear(x, f"{name}.k_proj", self.d_model, bias=self.key_bias).reshape(heads, size)
            v = linear(x, f"{name}.v_proj", self.d_model, bias=True).reshape(heads, size)
            return self.output(see(self.queries(x, name, heads), k, v, scale=size**-0.5), name)

        return read

    def read(self, memory: Stream) -> Callable[[Stream, str], Stream]:
        """Attention to the source, whose keys and values change no more."""
        heads, size = self.decoder_attention_heads, self.d_model // self.decoder_attention_heads

        def project(name: str, bias: bool) -> Stream:
            weight = parameter(f"{name}.weight", (self.d_model, self.d_model)).reshape(heads, size, -1)
            y = einsum("sm,hdm->shd", memory, weight)
            return y + parameter(f"{name}.bias", (self.d_model,)).reshape(heads, size) if bias else y

        def read(x: Stream, name: str) -> Stream:
            keys = project(f"{name}.k_proj", self.key_bias).named("k")
            values = project(f"{name}.v_proj", bias=True).named("v")
            return self.output(mix(self.queries(x, name, heads), keys, values, scale=size**-0.5), name)

        return read

    def queries(self, x: Stream, name: str, heads: int) -> Stream:
        return linear(x, f"{name}.q_proj", self.d_model, bias=True).reshape(heads, 1, self.d_model // heads)

    def output(self, mixed: Stream, name: str) -> Stream:
        return linear(mixed.reshape(self.d_model), f"{name}.out_proj", self.d_model, bias=True)


def clock_of(stack: str) -> str:
    """The clock that the positions of ``stack`` (encoder or decoder) tick on."""
    return {"encoder": "source", "decoder": "target"}[stack]


def with_tensors_of_file(config: Config, stored: Collection[str] | None) -> Config:
    """The config with what only the names of the ``stored`` tensors tell, where they are known.

    A bias of zeros may be left out; positions that could be computed may be stored; and where nothing is
    tied, files of older versions still hold one embedding for both stacks.
    """
    tied = config.boolean("tie_word_embeddings") if "tie_word_embeddings" in config.values else True

    def holds(name: str) -> bool:
        return any(other.endswith(name) for other in stored or ())

    settled = {
        "has_final_bias": stored is None or holds("final_logits_bias"),
        "has_own_tables": not tied and (stored is None or holds("encoder.embed_tokens.weight")),
        "has_stored_positions": holds("encoder.embed_positions.weight"),
    }
    return replace(config, values={**config.values, **settled})


NAMING = Naming(
    "model.",
    (r"embed_positions\.weights",),
    (r"model\.shared\.weight",),
    {
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
)
