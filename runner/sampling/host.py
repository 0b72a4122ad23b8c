"""Choosing tokens on the host, one text at a time: what a scheduler does between calls.

The program is the one that runs inside the decode loop, as NumPy, so the tokens are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ...backends import backend_named
from ...backends.interface import Prepared
from .programs import SamplingPrograms
from .structure import Row, Structure, row_inputs, structure_of

_KEPT_PROGRAMS = 32


@lru_cache(_KEPT_PROGRAMS)
def _prepared(structure: Structure, vocabulary: int, capacity: int) -> tuple[Prepared, Prepared | None]:
    programs, backend = SamplingPrograms(structure, vocabulary, 1, capacity), backend_named("numpy")
    read = programs.read
    return backend.prepare(programs.choose), None if read is None else backend.prepare(read)


class HostSampler:
    """Chooses the tokens of one text of up to ``capacity`` positions.

    ``yields_scores``: that it can also tell what is left to choose from.
    """

    def __init__(self, row: Row, vocabulary: int, capacity: int, *, yields_scores: bool = False) -> None:
        structure = replace(structure_of([row]), yields_scores=yields_scores)
        self._choose, self._read = _prepared(structure, vocabulary, capacity)
        self._numbers = row_inputs(structure, [row])
        self._known: list[int] = []
        backend = backend_named("numpy")
        kept = self._choose.program.states
        self._states = {s.name: backend.zeros(s.type.static_shape, s.type.dtype) for s in kept}

    @property
    def learns(self) -> bool:
        """Whether later choices depend on its own earlier ones, and not just on the text."""
        return any(state.kind == "carry" for state in self._choose.program.states)

    def scores(self, logits: np.ndarray, text: Sequence[int]) -> np.ndarray:
        """The scores [V] that the token behind ``text`` is drawn from; -inf for what was removed."""
        return self._results(logits, text, (), 0)["scores"][0, 0]

    def choose(
        self, logits: np.ndarray, text: Sequence[int], banned: Collection[int] = (), stream: int = 0
    ) -> int:
        """The token behind ``text``, prompt and all, where the model gave ``logits`` [V]; or a negative
        number, see ``trace_chain``. ``banned`` tokens are not chosen."""
        return int(self._results(logits, text, banned, stream)["token"][0, 0])

    def _results(
        self, logits: np.ndarray, text: Sequence[int], banned: Collection[int], stream: int
    ) -> dict[str, np.ndarray]:
        self._remember(list(text[:-1]))
        scores = np.array(logits, np.float32)
        scores[list(banned)] = -np.inf
        given = {"logits": scores[None, None], **self._at(text[-1:])}
        numbers = {**self._numbers, "stream": np.full((1, 1), stream, np.uint32)}
        results, updated = self._choose.run({}, {**given, **numbers}, self._states)
        self._states |= updated
        self._known.append(text[-1])
        return results

    def _remember(self, text: list[int]) -> None:
        """Takes in what has been said; a text that was changed is read anew."""
        if self._known != text[: len(self._known)]:
            self._known = []
        fresh = text[len(self._known) :]
        if fresh and self._read is not None:
            block = np.zeros((1, self._read.program.chunk), np.int32)
            block[0, : len(fresh)] = fresh
            names = [state.name for state in self._read.program.states]
            given = {**self._at(fresh), "token": block}
            _, updated = self._read.run({}, given, {name: self._states[name] for name in names})
            self._states |= updated
        self._known = text

    def _at(self, tokens: Sequence[int]) -> dict[str, np.ndarray]:
        return {
            "token": np.array([tokens], np.int32),
            "offset": np.array([len(self._known)], np.int32),
            "length": np.array([len(tokens)], np.int32),
        }
