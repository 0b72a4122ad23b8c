"""Nomic BERT: BERT's norms behind each residual sum, with rotary positions and a gated MLP, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import split
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, embedding, layer_norm, linear, two_sided_attention
from ..encoder import PLAIN, Encoder, Heads, PredictionNames
from ..family import Family
from ..rope import RopeFields, rotate, rotation
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class NomicBert(RopeFields, Encoder):
    family: ClassVar[str] = "NomicBert"
    table: ClassVar[str] = "nomic_bert.embeddings.word_embeddings"
    heads: ClassVar[Heads] = PLAIN
    predictions: ClassVar[PredictionNames] = PredictionNames(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.layer_norm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    )
    default_theta: ClassVar[float] = 1000.0
    # The fields of the files that came before the family was part of the library.
    aliases: ClassVar[Mapping[str, str]] = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "layer_norm_epsilon": "layer_norm_eps",
        "rotary_emb_base": "rope_theta",
        "rotary_emb_fraction": "partial_rotary_factor",
    }
    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "dense_seq_output",
            "fused_bias_fc",
            "fused_dropout_add_ln",
            "max_trained_positions",
            "pad_vocab_size_multiple",
            "scale_attn_weights",
            "use_flash_attn",
            "use_xentropy",
        }
    )

    vocab_size: Size = 30528
    max_position_embeddings: Size = 2048
    hidden_act: str = "silu"
    activation_function: str = "swiglu"
    layer_norm_eps: float = 1e-12
    type_vocab_size: Size = 2
    head_dim: Size | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise SystolicError("hidden_size is not a multiple of num_attention_heads")
        if self.activation_function != "swiglu":
            raise SystolicError(f"activation_function {self.activation_function!r} is not supported")

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def step(self, token: Stream, token_type_ids: Stream) -> dict[str, Stream]:  # type: ignore[override]
        """i32[], i32[] -> {"last_hidden": f32[D]} and what the heads yield, as in ``Encoder.step``"""
        with scope("embed"):
            words = embedding(token, self.table, self.vocab_size, self.hidden_size)
            types = "nomic_bert.embeddings.token_type_embeddings"
            x = words + embedding(token_type_ids, types, self.type_vocab_size, self.hidden_size)
            x = self.norm(x, "nomic_bert.emb_ln")
        return self.outputs(x)

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, self.layer_norm_eps)

    def layer(self, x: Stream, i: int) -> Stream:
        name = f"nomic_bert.encoder.layers.{i}"
        with scope("attn"):
            x = self.norm(x + self.attend(x, f"{name}.attn"), f"{name}.norm1").named("x")
        with scope("mlp"):
            gate = activation(self.hidden_act)(linear(x, f"{name}.mlp.fc12", self.intermediate_size))
            hidden = gate * linear(x, f"{name}.mlp.fc11", self.intermediate_size)
            branch = linear(hidden, f"{name}.mlp.fc2", self.hidden_size)
            return self.norm(x + branch, f"{name}.norm2").named("x")

    def attend(self, x: Stream, name: str) -> Stream:
        heads, size = self.num_attention_heads, self.head_size
        qkv = split(linear(x, f"{name}.Wqkv", 3 * heads * size), [heads * size] * 3)
        q, k, v = (part.reshape(heads, size) for part in qkv)
        cos_sin = rotation(self.rope(), size)
        mixed = two_sided_attention(rotate(q, cos_sin)[:, None], rotate(k, cos_sin), v, scale=size**-0.5)
        return linear(mixed.reshape(heads * size), f"{name}.out_proj", self.hidden_size)

    @property
    def prediction_act(self) -> str:
        return self.hidden_act


_NAMING = Naming(
    "nomic_bert.",
    (r"embeddings\.position_ids", r"rotary_emb\.inv_freq"),
    NomicBert.predictions.unused,
    NomicBert.predictions.tied(NomicBert.table),
)
FAMILIES = {"nomic_bert": Family(NomicBert, _NAMING)}
