"""BERT, and RoBERTa and ELECTRA behind it: norms behind each residual sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.recording import scope
from ...compiler.stream import Stream
from ..blocks import activation, linear
from ..encoder import PLAIN, POOLED, Heads, PredictionNames, TypedEncoder
from ..family import Family
from ..positions import learned_positions_of_text
from ..spec import Size
from ..weights import Naming

_OLDER_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_POOLER = r"pooler\.dense\.\w+"
_POSITIONS = (r"embeddings\.position_ids", r"embeddings\.token_type_ids")


@dataclass(frozen=True, kw_only=True)
class Bert(TypedEncoder):
    family: ClassVar[str] = "Bert"
    prefix: ClassVar[str] = "bert"
    table: ClassVar[str] = "bert.embeddings.word_embeddings"
    heads: ClassVar[Heads] = {
        **POOLED,
        "ForPreTraining": ("pooled", "mlm_logits", "nsp_logits"),
        "ForNextSentencePrediction": ("pooled", "nsp_logits"),
    }
    predictions: ClassVar[PredictionNames] = PredictionNames(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    )

    vocab_size: Size = 30522

    @property
    def prediction_act(self) -> str:
        return self.hidden_act

    def classify(self, pooled: Stream) -> Stream:
        return linear(pooled, "cls.seq_relationship", 2, bias=True)


@dataclass(frozen=True, kw_only=True)
class Roberta(TypedEncoder):
    """Positions count the tokens that are no padding, from behind the number of the padding token."""

    family: ClassVar[str] = "Roberta"
    prefix: ClassVar[str] = "roberta"
    table: ClassVar[str] = "roberta.embeddings.word_embeddings"
    heads: ClassVar[Heads] = POOLED
    predictions: ClassVar[PredictionNames] = PredictionNames(
        "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"
    )

    vocab_size: Size = 50265
    pad_token_id: int = 1

    @property
    def context_length(self) -> int:
        return self.max_position_embeddings - self.pad_token_id - 1

    def places(self, token: Stream) -> Stream:
        table, count = f"{self.prefix}.embeddings.position_embeddings", self.max_position_embeddings
        return learned_positions_of_text(table, count, self.hidden_size, token, self.pad_token_id)


@dataclass(frozen=True, kw_only=True)
class XlmRoberta(Roberta):
    family: ClassVar[str] = "XLMRoberta"

    vocab_size: Size = 30522


@dataclass(frozen=True, kw_only=True)
class Camembert(XlmRoberta):
    family: ClassVar[str] = "Camembert"


@dataclass(frozen=True, kw_only=True)
class Electra(TypedEncoder):
    """Embeddings of another width; one class tells which tokens were replaced."""

    family: ClassVar[str] = "Electra"
    prefix: ClassVar[str] = "electra"
    table: ClassVar[str] = "electra.embeddings.word_embeddings"
    heads: ClassVar[Heads] = {**PLAIN, "ForPreTraining": ("replaced_logits",)}
    predictions: ClassVar[PredictionNames] = PredictionNames(
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head",
        "generator_lm_head.bias",
    )
    harmless: ClassVar[frozenset[str]] = frozenset({"summary_last_dropout"})

    vocab_size: Size = 30522
    embedding_size: Size = 128
    hidden_size: Size = 256
    num_attention_heads: Size = 4
    intermediate_size: Size = 1024

    @property
    def embedding_width(self) -> int:
        return self.embedding_size

    @property
    def prediction_width(self) -> int:
        return self.embedding_size

    def outputs(self, x: Stream) -> dict[str, Stream]:
        with scope("embed"):
            if self.embedding_size != self.hidden_size:
                x = linear(x, "electra.embeddings_project", self.hidden_size, bias=True)
        return super().outputs(x)

    def head(self, name: str, outputs: Mapping[str, Stream]) -> Stream:
        if name != "replaced_logits":
            return super().head(name, outputs)
        hidden = linear(
            outputs["last_hidden"], "discriminator_predictions.dense", self.hidden_size, bias=True
        )
        hidden = activation(self.hidden_act)(hidden)
        return linear(hidden, "discriminator_predictions.dense_prediction", 1, bias=True).reshape(())


def _naming(model: type[TypedEncoder], *unused: str) -> Naming:
    names = model.predictions
    prefix, tied = f"{model.prefix}.", names.tied(model.table)
    return Naming(prefix, _POSITIONS, (*names.unused, *unused), tied, endings=_OLDER_NORMS)


_OF_ELECTRA = (r"discriminator_predictions\.dense(_prediction)?\.\w+",)
FAMILIES = {
    "bert": Family(Bert, _naming(Bert, _POOLER, r"cls\.seq_relationship\.\w+")),
    "camembert": Family(Camembert, _naming(Camembert, _POOLER)),
    "electra": Family(Electra, _naming(Electra, *_OF_ELECTRA)),
    "roberta": Family(Roberta, _naming(Roberta, _POOLER)),
    "xlm-roberta": Family(XlmRoberta, _naming(XlmRoberta, _POOLER)),
}
