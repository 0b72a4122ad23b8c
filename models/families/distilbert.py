"""DistilBERT: BERT's layers under other names, without token types and without a pooler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ..encoder import LayerNames, PostNormEncoder, PredictionNames
from ..family import Family
from ..spec import Size
from ..weights import Naming


@dataclass(frozen=True, kw_only=True)
class DistilBert(PostNormEncoder):
    family: ClassVar[str] = "DistilBert"
    prefix: ClassVar[str] = "distilbert"
    table: ClassVar[str] = "distilbert.embeddings.word_embeddings"
    names: ClassVar[LayerNames] = LayerNames(
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    )
    predictions: ClassVar[PredictionNames] = PredictionNames(
        "vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"
    )
    aliases: ClassVar[Mapping[str, str]] = {
        "dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size",
        "activation": "hidden_act",
    }
    # Files hold sinusoidal positions as they hold learned ones.
    harmless: ClassVar[frozenset[str]] = frozenset(
        {"dropout", "qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds", "tie_weights_"}
    )

    vocab_size: Size = 30522
    num_hidden_layers: Size = 6

    @property
    def prediction_act(self) -> str:
        return self.hidden_act

    def layer(self, x: Stream, i: int) -> Stream:
        return self.block(x, f"distilbert.transformer.layer.{i}")


_NAMING = Naming(
    "distilbert.",
    (r"embeddings\.position_ids",),
    DistilBert.predictions.unused,
    DistilBert.predictions.tied(DistilBert.table),
)
FAMILIES = {"distilbert": Family(DistilBert, _NAMING)}
