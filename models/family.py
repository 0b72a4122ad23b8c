"""What a model family is: the class that reads its config and traces it, and how its files name tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from ..compiler.stream import Stream
from .spec import Config
from .weights import Naming


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
    naming: Naming = Naming()  # noqa: RUF009 (immutable)
    settle: Callable[[Config, Collection[str] | None], Config] = lambda config, stored: config


# Most decoders since Llama leave out this prefix in files of the bare model, and tie the head like this.
LLAMA_NAMING = Naming(
    "model.", (r"rotary_emb\.inv_freq",), tied={"lm_head.weight": "model.embed_tokens.weight"}
)
