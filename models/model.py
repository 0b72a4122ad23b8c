"""A model: its graph, its weights, and what generation needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import SystolicError

if TYPE_CHECKING:
    import numpy as np

    from ..ir.graph import Graph
    from .chat_template import ChatTemplate, Message
    from .spec import Config


@dataclass(frozen=True)
class Constraints:
    """What generation_config.json forces and bans: the tokens of which one must come ``first`` (behind a
    single token) and ``last`` (where the length ends a text), and those that are ``banned`` everywhere or
    at the start of what is new."""

    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()
    banned_at_start: tuple[int, ...] = ()


NO_CONSTRAINTS = Constraints()


@dataclass(frozen=True)
class AdapterChoice:
    """What a text is given so that an adapter speaks: the ``number`` for the input ``adapter`` (0: none), and
    the ids of learned vectors in front of its tokens."""

    number: int = 0
    prompt: tuple[int, ...] = ()


@dataclass(frozen=True)
class Model:
    """A model that is ready to be compiled. ``weights`` is None for a bare config.json.

    ``graph`` computes ``logits`` f32[vocabulary_size] from ``token`` i32[]. ``context_length`` is how
    many positions the model was made for, ``is_bounded`` whether it has none beyond, ``dtype``
    how its weights are kept. ``add_bos`` says
    whether a text begins with ``bos_id``;
    ``start_id`` is what an encoder-decoder's target begins with; ``source_length`` how many positions its
    source can have, where that is not the context.
    ``sampling`` is how generation_config.json asks tokens to be drawn (temperature, top_k, top_p); it is
    empty where the most likely token is to be taken. ``shortest_like`` is for a model that computes all
    positions of a text by the text's length: how long the shortest text is that it computes like one of
    a given length; None where the length decides nothing. ``adapters`` are those that a text can choose,
    by name.
    """

    name: str
    path: Path
    config: Config
    graph: Graph
    weights: Mapping[str, np.ndarray] | None
    vocabulary_size: int
    context_length: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    tokenizer_path: Path | None
    add_bos: bool
    start_id: int | None
    sampling: Mapping[str, float]
    constraints: Constraints = NO_CONSTRAINTS
    source_length: int | None = None
    shortest_like: Callable[[int], int] | None = None
    chat_template: ChatTemplate | None = None
    adapters: Mapping[str, AdapterChoice] = field(default_factory=dict)
    is_bounded: bool = False
    dtype: str = "f32"

    def chat_prompt(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """A conversation (``role`` and ``content`` of each message) as the model was trained to read it.

        ``variables`` are given to the template, as ``tools`` are. ``SystolicError`` without a template.
        """
        if self.chat_template is None:
            raise SystolicError(f"{self.name} has no chat template, so it has no form for conversations")
        return self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, **variables)

    def for_texts_up_to(self, capacity: int) -> Model:
        """The same model, not asking how long a text is where that changes nothing up to ``capacity``."""
        if self.shortest_like is None or self.shortest_like(capacity) > 1:
            return self
        from .length import with_text_length  # few models ask how long a text is

        return replace(self, graph=with_text_length(self.graph, 1), shortest_like=None)
