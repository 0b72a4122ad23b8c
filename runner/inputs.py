"""What a model takes: token ids on the clock that it continues, perhaps a source, and numbers beside ids."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node
from ..models.load import Model

UNBOUNDED = 2**31


@dataclass(frozen=True)
class Inputs:
    """The inputs of a model with up to ``capacity`` positions, and the checks of what is given for them.

    ``clock`` is the one that the logits tick on. Whatever does not fit raises ``SystolicError``.
    """

    model: Model
    clock: str | None
    capacity: int

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All inputs; each takes numbers i32[]."""
        inputs = self.model.graph.inputs
        if not inputs or any(str(node.type) != "i32[]" for node in inputs):
            shown = ", ".join(f"{node.name}: {node.type}" for node in inputs)
            raise SystolicError(
                f"{self.model.name} takes ({shown}); only one input of token ids i32[], and numbers "
                "beside it, can be run"
            )
        return inputs

    @cached_property
    def token(self) -> Node:
        """The only input of the clock that is continued."""
        first, *others = (node for node in self.nodes if node.clock == self.clock)
        if others:
            raise SystolicError(
                f"{self.model.name} also takes {others[0].name}, which only encode() can give"
            )
        return first

    @cached_property
    def source(self) -> Node | None:
        """The only input of the other clock, which is over when this one starts, if there is one."""
        sources = [node for node in self.nodes if node.clock != self.clock]
        if len(sources) > 1:
            names = " and ".join(node.name for node in sources)
            raise SystolicError(f"{self.model.name} reads {names}; only one source can be run")
        return sources[0] if sources else None

    @property
    def start(self) -> int:
        """The token that the target of an encoder-decoder begins with."""
        start = self.model.bos_id if self.model.start_id is None else self.model.start_id
        if start is None:
            raise SystolicError(
                f"{self.model.name} has no decoder_start_token_id, which its target would begin with"
            )
        return start

    def to_score(self, ids: Sequence[int], target: Sequence[int] | None) -> dict[str, list[int]]:
        """The numbers of each input: of the source, if there is one, and of the text that is scored."""
        if self.source is None:
            if target is not None:
                raise SystolicError(f"{self.model.name} reads one text; only an encoder-decoder has a target")
            return {self.token.name: self.checked(ids, "text")}
        if target is None:
            raise SystolicError(f"{self.model.name} scores a target behind its source: give target=[…]")
        source = self.checked(ids, "source")
        return {self.source.name: source, self.token.name: self.checked(target, "target")}

    def to_encode(self, ids: Sequence[int], others: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """The numbers of each input for one text that is read as a whole: ``others`` by name, or zeros."""
        first, *further = [self.source] if self.source else self.nodes
        texts = {first.name: self.checked(ids, "text")}
        length = len(texts[first.name])
        for node in further:
            texts[node.name] = self._numbers(node, others.get(node.name, [0] * length), length)
        for name in set(others) - {node.name for node in further}:
            known = ", ".join(node.name for node in further) or "nothing"
            raise SystolicError(f"{self.model.name} takes no {name} beside the token ids; it takes {known}")
        return texts

    def _numbers(self, node: Node, numbers: Sequence[int], length: int) -> list[int]:
        limit = table_size(self.model.graph, node)
        checked = [int(number) for number in numbers]
        if len(checked) != length or not all(0 <= number < limit for number in checked):
            raise SystolicError(f"{node.name} must be {length} numbers from 0 to {limit - 1}, one per token")
        return checked

    def checked(self, ids: Sequence[int], kind: str) -> list[int]:
        """Token ids of the vocabulary, at least one and at most as many as fit; ``kind`` names them."""
        try:
            checked = [operator.index(token) for token in ids]
        except TypeError:
            raise SystolicError(f"the {kind} must be a list of integer token ids, not {ids!r}") from None
        if not checked:
            raise SystolicError(f"the {kind} is empty, and {self.model.name} adds no BOS token to begin with")
        for token in checked:
            if not 0 <= token < self.model.vocabulary_size:
                raise SystolicError(
                    f"token id {token} is outside the vocabulary of {self.model.name}, "
                    f"which has ids 0 to {self.model.vocabulary_size - 1}"
                )
        if len(checked) > self.capacity:
            raise SystolicError(
                f"the {kind} has {len(checked)} tokens, more than the capacity of {self.capacity}"
            )
        return checked


def table_size(graph: Graph, numbers: Node) -> int:
    """How many rows the tables have that an input is looked up in: larger ones would be moved inside."""
    tables = [
        table.tensor.shape[node.params["axis"]]
        for node in graph.nodes
        if node.op.name == "take" and node.sources[1] is numbers
        for table in node.sources[:1]
    ]
    return min((size for size in tables if isinstance(size, int)), default=UNBOUNDED)
