"""ModernBERT: rotary positions, norms in front of each branch, most layers see a few neighbours only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import split
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..blocks import activation, embedding, layer_norm, linear, two_sided_attention
from ..encoder import Encoder, PredictionNames, bias_of_neighbours
from ..family import Family
from ..rope import Rope, RopeByLayerType, rotate, rotation
from ..spec import Size
from ..weights import Naming

_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, kw_only=True)
class ModernBert(RopeByLayerType, Encoder):
    family: ClassVar[str] = "ModernBert"
    table: ClassVar[str] = "model.embeddings.tok_embeddings"
    predictions: ClassVar[PredictionNames] = PredictionNames(
        "head.dense", "head.norm", "decoder", r"decoder.bias"
    )
    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "classifier_pooling",
            "cls_token_id",
            "deterministic_flash_attn",
            "embedding_dropout",
            "initializer_cutoff_factor",
            "layer_norm_eps",
            "mlp_dropout",
            "position_embedding_type",
            "reference_compile",
            "repad_logits_with_grad",
            "sparse_pred_ignore_index",
            "sparse_prediction",
        }
    )

    vocab_size: Size = 50368
    intermediate_size: Size = 1152
    num_hidden_layers: Size = 22
    max_position_embeddings: Size = 8192
    hidden_activation: str = "gelu"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    decoder_bias: bool = True
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    local_attention: Size = 128
    global_attn_every_n_layers: Size = 3
    layer_types: tuple[str, ...] | None = None
    global_rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise SystolicError("hidden_size is not a multiple of num_attention_heads")
        if self.layer_types is not None and len(self.layer_types) < self.num_hidden_layers:
            raise SystolicError(f"layer_types says nothing about layer {len(self.layer_types)}")
        for kind in self.layer_types or ():
            if kind not in _LAYER_TYPES:
                raise SystolicError(f"layer_types: {kind!r} is neither {' nor '.join(_LAYER_TYPES)}")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def slides(self, i: int) -> bool:
        """Whether layer ``i`` sees only its neighbours."""
        if self.layer_types is not None:
            return self.layer_types[i] == "sliding_attention"
        return i % self.global_attn_every_n_layers != 0

    def ropes(self) -> tuple[Rope, ...]:
        slides = {self.slides(i) for i in range(self.num_hidden_layers)}
        return tuple(self.rope_of(_LAYER_TYPES[each]) for each in slides)

    def rope_of(self, layer_type: str) -> Rope:
        if self.rope_scaling is None:
            return super().rope_of(layer_type)
        if self.rope_parameters is not None or "rope_type" not in self.rope_scaling.values:
            raise SystolicError("rope_scaling must name its rope_type, and stand without rope_parameters")
        return self.scaling(self.rope_scaling, self.theta_of(layer_type))

    def theta_of(self, layer_type: str) -> float:
        return self.local_rope_theta if layer_type == "sliding_attention" else self.global_rope_theta

    def embed(self, token: Stream) -> Stream:
        x = embedding(token, self.table, self.vocab_size, self.hidden_size)
        return self.norm(x, "model.embeddings.norm")

    def norm(self, x: Stream, name: str) -> Stream:
        return layer_norm(x, name, self.norm_eps, bias=self.norm_bias)

    def layer(self, x: Stream, i: int) -> Stream:
        name = f"model.layers.{i}"
        with scope("attn"):
            normal = x if i == 0 else self.norm(x, f"{name}.attn_norm")
            x = (x + self.attend(normal, f"{name}.attn", self.slides(i))).named("x")
        with scope("mlp"):
            normal, width = self.norm(x, f"{name}.mlp_norm"), self.intermediate_size
            both = linear(normal, f"{name}.mlp.Wi", 2 * width, bias=self.mlp_bias)
            activated, gate = split(both, [width, width])
            hidden = activation(self.hidden_activation)(activated) * gate
            return (x + linear(hidden, f"{name}.mlp.Wo", self.hidden_size, bias=self.mlp_bias)).named("x")

    def attend(self, x: Stream, name: str, slides: bool) -> Stream:
        heads, size = self.num_attention_heads, self.head_size
        qkv = linear(x, f"{name}.Wqkv", 3 * self.hidden_size, bias=self.attention_bias)
        q, k, v = (part.reshape(heads, size) for part in split(qkv, [self.hidden_size] * 3))
        cos_sin = rotation(self.rope_of(_LAYER_TYPES[slides]), size)
        mixed = two_sided_attention(
            rotate(q, cos_sin)[:, None],
            rotate(k, cos_sin),
            v,
            scale=size**-0.5,
            bias=bias_of_neighbours(self.local_attention // 2) if slides else None,
        )
        return linear(
            mixed.reshape(self.hidden_size), f"{name}.Wo", self.hidden_size, bias=self.attention_bias
        )

    def last(self, x: Stream) -> Stream:
        return self.norm(x, "model.final_norm")

    @property
    def prediction_act(self) -> str:
        return self.classifier_activation

    @property
    def has_prediction_bias(self) -> bool:
        return self.classifier_bias

    @property
    def has_decoder_bias(self) -> bool:
        return self.decoder_bias


_NAMING = Naming(
    "model.",
    (r"rotary_emb\.\w*inv_freq",),
    ModernBert.predictions.unused,
    ModernBert.predictions.tied(ModernBert.table),
)
FAMILIES = {"modernbert": Family(ModernBert, _NAMING)}
