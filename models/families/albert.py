"""ALBERT: groups of layers share their weights; embeddings are narrower than the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.language import tanh
from ...compiler.recording import scope
from ...compiler.stream import Stream
from ..blocks import at_position, linear
from ..encoder import POOLED, Heads, LayerNames, PredictionNames, TypedEncoder, label_count
from ..family import Family
from ..spec import Config, Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class Albert(TypedEncoder):
    family: ClassVar[str] = "Albert"
    prefix: ClassVar[str] = "albert"
    table: ClassVar[str] = "albert.embeddings.word_embeddings"
    heads: ClassVar[Heads] = {**POOLED, "ForPreTraining": ("pooled", "mlm_logits", "sop_logits")}
    names: ClassVar[LayerNames] = LayerNames(
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.dense",
        "attention.LayerNorm",
        "ffn",
        "ffn_output",
        "full_layer_layer_norm",
    )
    predictions: ClassVar[PredictionNames] = PredictionNames(
        "predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias"
    )
    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "classifier_dropout_prob",
            "down_scale_factor",
            "gap_size",
            "net_structure_type",
            "num_memory_blocks",
        }
    )

    vocab_size: Size = 30000
    embedding_size: Size = 128
    hidden_size: Size = 4096
    num_attention_heads: Size = 64
    intermediate_size: Size = 16384
    num_hidden_groups: Size = 1
    inner_group_num: Size = 1
    hidden_act: str = "gelu_new"
    num_labels: Size | None = None
    id2label: Config | None = None

    @property
    def embedding_width(self) -> int:
        return self.embedding_size

    @property
    def prediction_width(self) -> int:
        return self.embedding_size

    @property
    def prediction_act(self) -> str:
        return self.hidden_act

    def outputs(self, x: Stream) -> dict[str, Stream]:
        with scope("embed"):
            x = linear(x, "albert.encoder.embedding_hidden_mapping_in", self.hidden_size, bias=True)
        return super().outputs(x)

    def layer(self, x: Stream, i: int) -> Stream:
        group = int(i / (self.num_hidden_layers / self.num_hidden_groups))
        for inner in range(self.inner_group_num):
            with scope(str(inner)):
                x = self.block(x, f"albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}")
        return x

    def pool(self, x: Stream) -> Stream:
        return tanh(linear(at_position(x, 0), "albert.pooler", self.hidden_size, bias=True))

    def classify(self, pooled: Stream) -> Stream:
        labels = label_count(self.num_labels, self.id2label)
        return linear(pooled, "sop_classifier.classifier", labels, bias=True)


_NAMING = Naming(
    "albert.",
    (r"embeddings\.position_ids", r"embeddings\.token_type_ids"),
    (*Albert.predictions.unused, r"albert\.pooler\.\w+", r"sop_classifier\.classifier\.\w+"),
    Albert.predictions.tied(Albert.table),
)
FAMILIES = {"albert": Family(Albert, _NAMING)}
