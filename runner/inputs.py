"""What a model takes: token ids on the clock that it continues, perhaps a source, and numbers beside ids."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node
from ..ir.ports import Port
from ..ir.types import FLOATS
from ..models.model import Model
from .sources import EncoderStates, Source, positions_of

UNBOUNDED = 2**31
Sized = TypeVar("Sized", list[int], np.ndarray, EncoderStates)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a model with up to ``capacity`` positions, and the checks of what is given for them.

    ``clock`` is the one that the logits tick on; a source has at most ``source_room`` positions. Whatever
    does not fit raises ``SystolicError``.
    """

    model: Model
    clock: str | None
    capacity: int
    source_room: int

    @cached_property
    def ports(self) -> tuple[Port, ...]:
        """All inputs of some position; each takes numbers i32[], but a source may be of other numbers."""
        inputs = tuple(port for port in self.model.graph.signature.inputs if port.clock is not None)
        tokens = [node for node in inputs if node.clock == self.clock or node.tensor.dtype not in FLOATS]
        if not tokens or any(str(node.type) != "i32[]" for node in tokens):
            shown = ", ".join(f"{node.name}: {node.type}" for node in inputs)
            raise SystolicError(
                f"{self.model.name} takes ({shown}); only one input of token ids i32[], and numbers "
                "beside it, can be run"
            )
        return inputs

    @cached_property
    def token(self) -> Port:
        """The only input of the clock that is continued."""
        first, *others = (node for node in self.ports if node.clock == self.clock)
        if others:
            raise SystolicError(
                f"{self.model.name} also takes {others[0].name}, which only encode() can give"
            )
        return first

    @cached_property
    def source(self) -> Port | None:
        """The only input of the other clock, which is over when this one starts, if there is one."""
        sources = [node for node in self.ports if node.clock != self.clock]
        if len(sources) > 1:
            names = " and ".join(node.name for node in sources)
            raise SystolicError(f"{self.model.name} reads {names}; only one source can be run")
        return sources[0] if sources else None

    @cached_property
    def encoded(self) -> Node:
        """The stream of the source that is read, if it is one: an encoder's output."""
        from ..compiler.derive import source_graph

        streams = list(source_graph(self.model.graph, str(self.clock)).outputs.values())
        if self.source is None or len(streams) != 1:
            raise SystolicError(f"{self.model.name} has no encoder whose states could be given")
        return streams[0]

    @property
    def start(self) -> int:
        """The token that the target of an encoder-decoder begins with."""
        start = self.model.bos_id if self.model.start_id is None else self.model.start_id
        if start is None:
            raise SystolicError(
                f"{self.model.name} has no decoder_start_token_id, which its target would begin with"
            )
        return start

    def checked_source(self, source: Source, kind: str = "source") -> Source:
        """A source as it is read: token ids, other numbers as an array, or the states of an encoder."""
        if isinstance(source, EncoderStates):
            states = EncoderStates(positions_of(source.values, self.encoded.tensor, "encoder_states"))
            return self._fitting(states, kind, self.source_room)
        assert self.source is not None
        if str(self.source.type) != "i32[]":
            name = f"the {kind} of {self.model.name}"
            return self._fitting(positions_of(source, self.source.tensor, name), kind, self.source_room)
        return self.checked(source, kind, self.source)  # type: ignore[arg-type]

    def to_score(self, ids: Source, target: Sequence[int] | None) -> dict[str, Any]:
        """The numbers of each input: of the source, if there is one, and of the text that is scored."""
        if self.source is None:
            if target is not None:
                raise SystolicError(f"{self.model.name} reads one text; only an encoder-decoder has a target")
            return {self.token.name: self.checked(ids, "text")}  # type: ignore[arg-type]
        if target is None:
            raise SystolicError(f"{self.model.name} scores a target behind its source: give target=[…]")
        source, tokens = self.checked_source(ids), self.checked(target, "target", self.token)
        if isinstance(source, EncoderStates):
            return {self.encoded.name: source.values, self.token.name: tokens}
        return {self.source.name: source, self.token.name: tokens}

    def to_encode(self, ids: Source, others: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """The numbers of each input for one text that is read as a whole: ``others`` by name, or zeros."""
        first, *further = [self.source] if self.source else self.ports
        text = self.checked_source(ids) if self.source else self.checked(ids, "text")  # type: ignore[arg-type]
        texts: dict[str, Any] = {first.name: text}
        length = len(texts[first.name])
        for node in further:
            texts[node.name] = self._numbers(node, others.get(node.name, [0] * length), length)
        for name in set(others) - {node.name for node in further}:
            known = ", ".join(node.name for node in further) or "nothing"
            raise SystolicError(f"{self.model.name} takes no {name} beside the token ids; it takes {known}")
        return texts

    def _numbers(self, node: Port, numbers: Sequence[int], length: int) -> list[int]:
        limit = table_size(self.model.graph, node)
        checked = [int(number) for number in numbers]
        if len(checked) != length or not all(0 <= number < limit for number in checked):
            raise SystolicError(f"{node.name} must be {length} numbers from 0 to {limit - 1}, one per token")
        return checked

    def checked(self, ids: Sequence[int], kind: str, node: Port | None = None) -> list[int]:
        """Token ids of the vocabulary, at least one and at most as many as fit; ``kind`` names them.

        ``node`` is the input that they are for, where two can have vocabularies of their own.
        """
        try:
            checked = [operator.index(token) for token in ids]
        except TypeError:
            raise SystolicError(f"the {kind} must be a list of integer token ids, not {ids!r}") from None
        if not checked:
            raise SystolicError(f"the {kind} is empty, and {self.model.name} adds no BOS token to begin with")
        table = UNBOUNDED if node is None else table_size(self.model.graph, node)
        learned = sum(len(choice.prompt) for choice in self.model.adapters.values())
        size = self.model.vocabulary_size + learned if table == UNBOUNDED else table
        for token in checked:
            if not 0 <= token < size:
                raise SystolicError(
                    f"token id {token} is outside the vocabulary of {self.model.name}, "
                    f"which has ids 0 to {size - 1}"
                )
        is_source = node is not None and node.clock != self.clock
        return self._fitting(checked, kind, self.source_room if is_source else self.capacity)

    def _fitting(self, tokens: Sized, kind: str, room: int) -> Sized:
        if len(tokens) > room:
            raise SystolicError(f"the {kind} has {len(tokens)} tokens, more than the capacity of {room}")
        return tokens


def table_size(graph: Graph, numbers: Port) -> int:
    """How many rows the tables have that an input is looked up in: larger ones would be moved inside."""
    tables = [
        table.tensor.shape[node.params["axis"]]
        for node in graph.nodes
        if node.op.name == "take" and node.sources[1] in graph.inputs and node.sources[1].name == numbers.name
        for table in node.sources[:1]
    ]
    return min((size for size in tables if isinstance(size, int)), default=UNBOUNDED)
