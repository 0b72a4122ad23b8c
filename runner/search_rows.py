"""Rows that a search continues: each goes on from the states of any row, and lists what could follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .adapters import adapter_choice
from .decode_loop import Memory, sampling_inputs
from .rows import Rows
from .sampling import Row
from .sampling.structure import structure_of
from .sources import Source

if TYPE_CHECKING:
    from .executable import Executable


class SearchRows:
    """The rows of an executable, the first of which has read all of a prompt but its last token.

    ``sampling`` is the chain whose scores are listed, ``candidates`` how many of the best; ``beside`` are
    outputs of the model that are wanted with them.
    """

    def __init__(
        self,
        executable: Executable,
        prompt: Sequence[int],
        source: Source,
        *,
        sampling: Row,
        candidates: int,
        adapter: str | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        self._executable, batch = executable, executable.options.batch
        sources = [source] * batch if executable.inputs.source else ()
        number = adapter_choice(executable.model, adapter).number
        self._rows = Rows(executable, sources, [number] * batch)
        structure = replace(structure_of([sampling] * batch), yields_scores=True)
        names = (executable.inputs.token.name, executable.logits_output)
        programs, longest = executable.programs, self._rows.longest_source
        count = min(candidates, executable.logit_count)
        self._program = programs.beams(structure, count, names, longest, beside)
        self._memory = Memory(executable, self._program.program, programs.recall(structure, names))
        self._numbers = sampling_inputs(structure, [sampling] * batch, self._program.program)
        unused: list[Sequence[int]] = [()] * (batch - 1)
        before = [prompt[:-1], *unused]
        self._memory.read(before, self._rows.seen)
        self._rows.read(before)
        self._seen = len(prompt) - 1

    def run(
        self, parents: Sequence[int], newest: Sequence[int], totals: Sequence[float] = ()
    ) -> dict[str, np.ndarray]:
        """Reads one token in each of the first rows, behind what the row's parent has read.

        Results by row: ``tokens``, the best that could follow, the best first; their ``scores``, with what
        ``totals`` has for the row; and what the model yields beside, [rows, 1, …].
        """
        executable, batch, used = self._executable, self._executable.options.batch, len(newest)
        unused = batch - used
        inputs = {
            executable.inputs.token.name: np.array([*newest, *[0] * unused], np.int32)[:, None],
            "offset": np.full(batch, self._seen, np.int32),
            "length": np.array([1] * used + [0] * unused, np.int32),
            "parent": np.array([*parents, *range(used, batch)], np.int32),
            "total": np.array([*(totals or [0.0] * used), *[0.0] * unused], np.float32),
            **self._numbers,
            **self._rows.inputs,
        }
        states = {**self._rows.states, **self._memory.states}
        results, updated = self._program.run(executable.parameters, inputs, states)
        self._rows.states |= self._memory.keep(updated)
        self._seen += 1
        return {name: executable.backend.fetch(array)[:used] for name, array in results.items()}
