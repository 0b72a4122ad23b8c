"""Choosing on the device for many texts at once, as far as programs made beforehand can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler.program import SAMPLING
from .batch import Batch
from .decode_loop import loop_programs, token_and_logits
from .sampling.filters import MinP, Temperature, TopK, TopP
from .sampling.structure import NONE, Row, Structure, row_inputs, structure_of

if TYPE_CHECKING:
    from .executable import Executable

# Programs are made for these, so that none is made while serving; other chains run on the host.
GREEDY = Structure()
USUAL = structure_of([Row((Temperature(), TopK(), TopP(), MinP()), draws=True), Row()])


class BatchChooser:
    """Chooses the next tokens of rows that ask for temperature, top-k, top-p and min-p at most.

    The numbers of every row are kept; what is made for rows that nobody asks for is ignored.
    """

    def __init__(self, executable: Executable, rows: Batch) -> None:
        self._executable = executable
        self._rows = rows
        output = executable.model.graph.signature.output(executable.logits_output)
        self._is_possible = output.tensor.dtype == "f32"
        count = len(rows.rows)
        if self._is_possible:
            self._sample = executable.programs.sample(USUAL, executable.logit_count)
            stops, room = len(executable.model.eos_ids), rows.room
            names = token_and_logits(executable)
            self._loops = {
                structure: loop_programs(executable.programs, names, structure, stops, room)[0]
                for structure in (GREEDY, USUAL)
            }
            ports = self._loops[GREEDY].program.graph.signature.inputs
            (stop,) = (port for port in ports if port.name == "stop")
            self._stops = np.full(stop.tensor.static_shape, NONE, np.int32)
        self._numbers = row_inputs(USUAL, [Row()] * count)
        self._newest = np.zeros((count, 1), np.int32)  # no step of the structure reads it

    def enter(self, row: int, sampling: Row, stops: Sequence[int]) -> bool:
        """Takes the numbers of a row, and the tokens that end it; False if its tokens must be chosen on
        the host."""
        if not self._is_possible or len(stops) > self._stops.shape[1]:
            return False
        try:
            numbers = row_inputs(USUAL, [sampling])
        except ValueError:  # a step that the structure has no room for
            return False
        for name, values in numbers.items():
            self._numbers[name][row] = values[0]
        self._stops[row] = NONE
        self._stops[row, : len(stops)] = stops
        return True

    def choose(self, logits: Any, lengths: Mapping[int, int]) -> dict[int, int]:
        """The tokens behind the texts of some rows, which have these lengths, from logits [B, 1, V] on the
        device; or negative numbers, see ``trace_chain``."""
        positions = np.zeros(len(self._newest), np.int32)
        for row, length in lengths.items():
            positions[row] = length - 1
        inputs = {
            "logits": logits,
            "token": self._newest,
            "offset": positions,
            "length": np.ones_like(positions),
            **self._numbers,
        }
        results, _ = self._sample.run({}, inputs, {})
        chosen = self._executable.backend.fetch(results["token"])
        return {row: int(chosen[row, 0]) for row in lengths}

    def make(
        self, newest: Mapping[int, int], limits: Mapping[int, int], *, draws: bool
    ) -> dict[int, list[int]]:
        """Up to ``limits`` tokens for each of some rows in one call, behind its ``newest`` one; ``draws``:
        whether any of them is not greedy."""
        numbers: dict[str, Any] = {"stop": self._stops}
        if draws:
            numbers |= {SAMPLING + name: array for name, array in self._numbers.items()}
        return self._rows.make(self._loops[USUAL if draws else GREEDY], numbers, newest, limits)
