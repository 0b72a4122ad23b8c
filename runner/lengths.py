"""Texts whose length decides how all of their positions are computed: read again when that changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..ir.errors import SystolicError
from ..ir.types import TEXT
from ..models.model import Model

if TYPE_CHECKING:
    from .executable import Executable

LENGTH_INPUT = f"length.{TEXT}"  # of the programs of such a model: i32[B]


class TextLengths:
    """The texts of some rows, where their lengths decide something; else nothing is done here."""

    def __init__(self, executable: Executable) -> None:
        self._shortest_like = executable.model.shortest_like
        self._texts: list[list[int]] = [[] for _ in range(executable.options.batch)]
        self._computed_like = np.ones(len(self._texts), np.int32)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """What the programs are given: for each row the length of a text that is computed alike."""
        return {} if self._shortest_like is None else {LENGTH_INPUT: self._computed_like}

    def grow(self, tokens: Iterable[Sequence[int]]) -> None:
        """Each row has read more tokens, or is about to."""
        if self._shortest_like is not None:
            for text, more in zip(self._texts, tokens, strict=True):
                text += more

    def again(self, ahead: Sequence[int]) -> dict[int, list[int]]:
        """Rows that are computed differently once they have read ``ahead`` more tokens, and what of them
        has been read: it must be read again, from position 0."""
        rows = {}
        for row, (text, more) in enumerate(zip(self._texts, ahead, strict=True)):
            if self._shortest_like is None or not more:
                continue
            like = self._shortest_like(len(text) + more)
            if like != self._computed_like[row]:
                rows[row] = list(text)
                self._computed_like = self._computed_like.copy()
                self._computed_like[row] = like
        return rows

    def alike(self, limits: np.ndarray) -> np.ndarray:
        """How many tokens of at most ``limits`` i32[B] each row can read until it is computed differently."""
        if self._shortest_like is None:
            return limits
        counts = limits.copy()
        for row, text in enumerate(self._texts):
            while (
                counts[row] > 1
                and self._shortest_like(len(text) + int(counts[row])) != self._computed_like[row]
            ):
                counts[row] -= 1
        return counts


def require_one_length(model: Model, capacity: int) -> None:
    """``SystolicError`` for a model that computes texts of up to ``capacity`` positions in several ways."""
    if model.shortest_like is not None:
        alike = next(n for n in range(capacity, 0, -1) if model.shortest_like(n) == 1)
        raise SystolicError(
            f"{model.name} computes a text anew when it grows beyond {alike} positions, because its rotary "
            "frequencies depend on the length; only generate, steps, stream and score do that: compile it "
            f"with a capacity of at most {alike}"
        )
