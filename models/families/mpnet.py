"""MPNet: BERT's layers, with one table of distances for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.stream import Stream
from ...ir.errors import SystolicError
from ..encoder import POOLED, Heads, LayerNames, PostNormEncoder, PredictionNames
from ..family import Family
from ..positions import gains_of_buckets, learned_positions_of_text, two_sided_buckets
from ..spec import Size
from ..weights import Naming

_PADDING = 1  # whatever the config calls the padding token
_BUCKETS, _FARTHEST = 32, 128  # the library has no other, however long the table is


@dataclass(frozen=True, kw_only=True)
class MpNet(PostNormEncoder):
    family: ClassVar[str] = "MPNet"
    prefix: ClassVar[str] = "mpnet"
    table: ClassVar[str] = "mpnet.embeddings.word_embeddings"
    heads: ClassVar[Heads] = POOLED
    names: ClassVar[LayerNames] = LayerNames(
        "attention.attn.q",
        "attention.attn.k",
        "attention.attn.v",
        "attention.attn.o",
        "attention.LayerNorm",
    )
    predictions: ClassVar[PredictionNames] = PredictionNames(
        "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"
    )

    vocab_size: Size = 30527
    relative_attention_num_buckets: Size = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relative_attention_num_buckets < _BUCKETS:
            raise SystolicError(f"relative_attention_num_buckets must be at least {_BUCKETS}")

    @property
    def context_length(self) -> int:
        return self.max_position_embeddings - _PADDING - 1

    def places(self, token: Stream) -> Stream:
        table, count = "mpnet.embeddings.position_embeddings", self.max_position_embeddings
        return learned_positions_of_text(table, count, self.hidden_size, token, _PADDING)

    def distances(self) -> Stream:
        shape = (self.relative_attention_num_buckets, self.num_attention_heads)
        buckets = two_sided_buckets(_BUCKETS, _FARTHEST)
        return gains_of_buckets("mpnet.encoder.relative_attention_bias", shape, buckets)


_NAMING = Naming(
    "mpnet.",
    (r"embeddings\.position_ids",),
    (*MpNet.predictions.unused, r"pooler\.dense\.\w+"),
    MpNet.predictions.tied(MpNet.table),
)
FAMILIES = {"mpnet": Family(MpNet, _NAMING)}
