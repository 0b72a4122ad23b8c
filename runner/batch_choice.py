"""Choosing on the device for many texts at once, as far as one program made beforehand can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .sampling.chain import Row, row_inputs, structure_of
from .sampling.filters import MinP, Temperature, TopK, TopP

if TYPE_CHECKING:
    from .executable import Executable

# A program is made for these, so that none is made while serving; other chains run on the host.
USUAL = structure_of([Row((Temperature(), TopK(), TopP(), MinP()), draws=True)])


class BatchChooser:
    """Draws the next tokens of rows that ask for temperature, top-k, top-p and min-p at most.

    The numbers of every row are kept; what rows that do not draw get is ignored.
    """

    def __init__(self, executable: Executable) -> None:
        self._executable = executable
        output = executable.model.graph.outputs[executable.logits_output]
        self._is_possible = output.tensor.dtype == "f32"
        if self._is_possible:
            self._program = executable.programs.sample(USUAL, executable.logit_count)
        rows = executable.options.batch
        self._numbers = row_inputs(USUAL, [Row((), draws=True)] * rows)
        self._positions = np.zeros(rows, np.int32)
        self._newest = np.zeros((rows, 1), np.int32)  # no step of the structure reads it

    def enter(self, row: int, sampling: Row) -> bool:
        """Takes the numbers of a row; False if its tokens must be chosen on the host.

        So must greedy ones, for which drawing would be more work than it saves.
        """
        if not self._is_possible or not sampling.draws:
            return False
        try:
            numbers = row_inputs(USUAL, [sampling])
        except ValueError:  # a step that the structure has no room for
            return False
        for name, values in numbers.items():
            self._numbers[name][row] = values[0]
        return True

    def choose(self, logits: Any, lengths: dict[int, int]) -> dict[int, int]:
        """The tokens behind the texts of some rows, which have these lengths, from logits [B, 1, V] on the
        device; or negative numbers, see ``trace_chain``."""
        for row, length in lengths.items():
            self._positions[row] = length - 1
        inputs = {
            "logits": logits,
            "token": self._newest,
            "offset": self._positions,
            "length": np.ones_like(self._positions),
            **self._numbers,
        }
        results, _ = self._program.run({}, inputs, {})
        chosen = self._executable.backend.fetch(results["token"])
        return {row: int(chosen[row, 0]) for row in lengths}
