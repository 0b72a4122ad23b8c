"""The table of model families: which ``model_type`` is built by what, and how its files name tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from ...compiler.stream import Stream
from ...compiler.trace import trace
from ...ir.errors import GraphError, SystolicError
from ...ir.graph import Graph
from ..spec import Config
from ..weights import Naming
from .bert import Bert
from .gemma import Gemma2
from .glm import Glm4
from .gpt2 import Gpt2
from .llama import Llama, Mistral
from .mamba import Mamba
from .qwen import Qwen2, Qwen3
from .recurrent import Gru, Lstm
from .t5 import T5, Mt5, Umt5, with_head_of_file
from .wavenet import Wavenet


class LanguageModel(Protocol):
    """A model: its config's fields, and the function of one token."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int:
        """How many positions the model was made for."""

    def step(self, token: Stream) -> dict[str, Stream]:
        """i32[] -> {"logits": f32[V]}"""


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint: its model, and how its files name tensors.

    ``settle`` completes a config by the names of the stored tensors (None: not known), where they decide.
    """

    model: type[Any]
    naming: Naming
    settle: Callable[[Config, Collection[str] | None], Config] = lambda config, stored: config


_LLAMA = Naming("model.", (r"rotary_emb\.inv_freq",), tied={"lm_head.weight": "model.embed_tokens.weight"})
_GPT2 = Naming(
    "transformer.",
    (r"h\.\d+\.attn\.(bias|masked_bias)",),
    tied={"lm_head.weight": "transformer.wte.weight"},
)
_BERT = Naming(
    "bert.",
    (r"embeddings\.position_ids",),
    (r"bert\.pooler\.dense\.\w+", r"cls\.predictions\.[\w.]+", r"cls\.seq_relationship\.\w+"),
    {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)
_T5 = Naming(
    unused=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    tied={f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")},
)
FAMILIES: dict[str, Family] = {
    "bert": Family(Bert, _BERT),
    "gemma2": Family(Gemma2, _LLAMA),
    "glm4": Family(Glm4, _LLAMA),
    "gpt2": Family(Gpt2, _GPT2),
    "gru_lm": Family(Gru, Naming()),
    "llama": Family(Llama, _LLAMA),
    "lstm_lm": Family(Lstm, Naming()),
    "mamba": Family(Mamba, Naming("backbone.", tied={"lm_head.weight": "backbone.embeddings.weight"})),
    "mistral": Family(Mistral, _LLAMA),
    "mt5": Family(Mt5, _T5, with_head_of_file),
    "qwen2": Family(Qwen2, _LLAMA),
    "qwen3": Family(Qwen3, _LLAMA),
    "t5": Family(T5, _T5, with_head_of_file),
    "umt5": Family(Umt5, _T5, with_head_of_file),
    # The last layer adds to a stream that nothing reads.
    "wavenet_lm": Family(Wavenet, Naming(unused=(r"residual\.\d+\.\w+",))),
}


def family_of(config: Config) -> Family:
    """The family that ``model_type`` names; ``SystolicError`` lists the known ones."""
    model_type = config.text("model_type")
    if model_type not in FAMILIES:
        raise SystolicError(
            f"{config.source}: model_type {model_type!r} is unknown; known: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def build(config: Config, stored: Collection[str] | None = None) -> tuple[LanguageModel, Graph]:
    """The model that a config describes, and its per-token graph: ``token`` i32[] to ``logits`` f32[V].

    ``stored`` names the tensors of the checkpoint, where there is one. Raises ``SystolicError`` naming
    the config's field that is missing, unknown or of another type.
    """
    family = family_of(config)
    model: LanguageModel = family.settle(config, stored).read(family.model)
    inputs = getattr(family.model, "inputs", {})  # with their clocks, where there is more than one
    try:
        return model, trace(model.step, name=config.text("model_type"), **inputs)
    except GraphError:
        raise
    except SystolicError as error:
        prefix = "" if str(error).startswith(config.source) else f"{config.source}: "
        raise SystolicError(f"{prefix}{error}") from None
