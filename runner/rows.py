"""Rows that run side by side: their states, and how far each of them has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .adapters import adapter_inputs
from .lengths import TextLengths
from .sources import Source, read_sources

if TYPE_CHECKING:
    from .executable import Executable


class Rows:
    """The states of rows that run side by side, and how many positions each has seen.

    ``sources`` are what an encoder-decoder reads first, and once: a text for each row, or nothing.
    ``adapters`` are the numbers of the adapters that the first rows speak with.
    """

    def __init__(
        self, executable: Executable, sources: Sequence[Source] = (), adapters: Sequence[int] = ()
    ) -> None:
        self._executable = executable
        self.states = executable.fresh_states()
        self.seen = np.zeros(executable.options.batch, np.int32)
        self.lengths = TextLengths(executable)
        self.longest_source = 0
        self._source_lengths: dict[str, np.ndarray] = {}
        graph, count = executable.model.graph, executable.options.batch
        self._adapters = adapter_inputs(graph, count, dict(enumerate(adapters)))
        source = executable.inputs.source
        if source is not None:
            counts = np.array([len(text) for text in sources], np.int32)
            self.longest_source = int(counts.max())
            self._source_lengths = {f"length.{source.clock}": counts}
            self.states |= read_sources(executable, sources, self.longest_source, self._adapters)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """What every program is given beside tokens and positions."""
        return self._source_lengths | self._adapters | self.lengths.inputs

    def read(self, tokens: Sequence[Sequence[int]]) -> Mapping[str, Any]:
        """Reads more tokens of each row, any number; rows without any stay as they are.

        What the last call yields, on the device: [B, 1, …] behind the last token of each row that ends in it.
        """
        self.prepare([len(row) + 1 if row else 0 for row in tokens])  # the newest is read by the loop
        results = self._read(tokens)
        self.lengths.grow(tokens)
        return results

    def prepare(self, ahead: Sequence[int]) -> None:
        """Reads again what is computed differently once rows have read so many more tokens."""
        again = self.lengths.again(ahead)
        if again:
            self.seen = np.array(
                [0 if row in again else seen for row, seen in enumerate(self.seen)], np.int32
            )
            self._read([again.get(row, []) for row in range(len(self.seen))])

    def _read(self, tokens: Sequence[Sequence[int]]) -> Mapping[str, Any]:
        counts = np.array([len(row) for row in tokens], np.int32)
        start, results = 0, dict[str, Any]()
        for size in self._executable.options.cut(int(counts.max())):
            lengths = np.clip(counts - start, 0, size).astype(np.int32)
            block = np.zeros((len(tokens), size), np.int32)
            for row, length in enumerate(lengths):
                block[row, :length] = tokens[row][start : start + length]
            program = self._executable.programs.chunk(size, self.longest_source)
            inputs = {self._executable.inputs.token.name: block, "offset": self.seen, "length": lengths}
            results, updated = program.run(self._executable.parameters, inputs | self.inputs, self.states)
            self.states = {**self.states, **updated}
            self.seen = self.seen + lengths
            start += size
        return results
