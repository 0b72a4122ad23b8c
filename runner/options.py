"""The one record of choices that a compiled model was made with."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends import ROLLING
from ..compiler.chunks import (
    MOST,
    Chunk,
    ChunkSeconds,
    choose_chunks,
    cut_prompt,
    nominal_seconds,
    predicted_seconds,
)
from ..compiler.program import STRATEGIES
from ..ir.errors import SystolicError
from .sampling import is_integer

if TYPE_CHECKING:
    from ..compiler.pipeline import Pass
    from ..models.model import Model

DEFAULT_CAPACITY = 1024  # of a model that was made for at least as many positions
GRAPH_CAPACITY = 256  # of a bare graph, which does not say, and at least of a model that has no bound
DEFAULT_CHUNK = 512  # the largest where nobody has predicted which is best
SMALLEST_LENGTH = 16  # of a program that reads a whole text


@dataclass(frozen=True)
class Options:
    """How a model is compiled.

    ``batch`` rows run side by side, each with up to ``capacity`` positions; prompts are read in
    ``chunks``, the largest of ``chunk`` positions (nominal ones if they are not given); ``state`` says how
    the states are chosen (auto, sources, tokens), ``state_dtype`` what the past is kept as (f32, bf16, f16,
    int8; recurrent states stay f32).
    The source of an encoder-decoder can have ``source_capacity`` positions (None: as many
    as a row). ``roll`` says whether layers that repeat are compiled as one loop body (auto, always, never).
    ``transposed`` are the matrices that are kept the other way round than files have them.
    ``cache_directory`` keeps compiled programs from run to run, None the default place.
    """

    backend: str = "xla"
    batch: int = 1
    capacity: int = GRAPH_CAPACITY
    chunk: int = DEFAULT_CHUNK
    state: str = "auto"
    cache_directory: Path | None = None
    source_capacity: int | None = None
    state_dtype: str = "f32"
    roll: str = "auto"
    chunks: tuple[Chunk, ...] = ()
    transposed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch", "capacity", "chunk", "source_capacity"):
            value = getattr(self, name)
            if value is None and name == "source_capacity":
                continue
            if not is_integer(value) or value < 1:
                raise SystolicError(f"{name} must be an integer of at least 1, not {value!r}")
        if self.state not in STRATEGIES:
            raise SystolicError(f"state must be one of {', '.join(STRATEGIES)}, not {self.state!r}")
        if self.roll not in ROLLING:
            raise SystolicError(f"roll must be one of {', '.join(ROLLING)}, not {self.roll!r}")
        if self.chunk > self.capacity:
            raise SystolicError(f"a chunk of {self.chunk} is longer than the capacity of {self.capacity}")
        if not self.chunks or self.chunks[-1].size != self.chunk:
            chosen = choose_chunks(nominal_seconds(self.batch), self.capacity, self.chunk)
            object.__setattr__(self, "chunks", chosen)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What a graph goes through before programs are derived from it."""
        from ..compiler.pipeline import passes_with

        return passes_with(self.state_dtype, self.state, self.transposed)

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """The chunk lengths that have a program: 1 to decode, and a few to read prompts with."""
        return tuple(chunk.size for chunk in self.chunks)

    def cut(self, length: int) -> list[int]:
        """The sizes of the chunks that ``length`` positions are read in."""
        return [chunk.size for chunk in cut_prompt(length, self.chunks)]

    def reads_to_end(self, length: int) -> bool:
        """Whether a prompt is read sooner to its end than to its last token and that by a step."""
        whole, but_last = (cut_prompt(count, self.chunks) for count in (length, length - 1))
        step = self.chunks[0]
        return whole == but_last or predicted_seconds(whole) < predicted_seconds([*but_last, step])

    def with_chunks(self, seconds: ChunkSeconds, chunk: int | None) -> Options:
        """The same with the chunks that are the best by predicted ``seconds``; the largest is ``chunk`` if it
        is given."""
        chunks = choose_chunks(seconds, min(self.capacity, MOST), chunk)
        return replace(self, chunk=chunks[-1].size, chunks=chunks)

    @property
    def score_lengths(self) -> tuple[int, ...]:
        """The text lengths that have a scoring program."""
        return _doubling(self.capacity)

    @property
    def source_room(self) -> int:
        """How many positions a source can have."""
        return self.source_capacity or self.capacity

    @property
    def source_lengths(self) -> tuple[int, ...]:
        """The lengths of sources that have programs."""
        return _doubling(self.source_room)


def options_for(
    model: Model,
    backend: str = "xla",
    batch: int = 1,
    capacity: int | None = None,
    chunk: int | None = None,
    state: str = "auto",
    cache_directory: Path | None = None,
    state_dtype: str = "f32",
    roll: str = "auto",
) -> Options:
    """The options for a model. A capacity that is not given follows from its context; a chunk is nominal.

    Texts may be longer than the context that a model was made for, unless its positions end there.
    """
    if capacity is None:
        capacity = min(model.context_length, DEFAULT_CAPACITY)
        if not model.is_bounded and model.shortest_like is None:
            capacity = max(capacity, GRAPH_CAPACITY)
    chunk = min(capacity, DEFAULT_CHUNK) if chunk is None else chunk
    source = model.source_length
    options = Options(backend, batch, capacity, chunk, state, cache_directory, source, state_dtype, roll)
    if capacity > model.context_length and model.is_bounded:
        limit = f"the {model.context_length} positions that {model.name} has"
        raise SystolicError(f"a capacity of {capacity} is more than {limit}")
    if capacity > max(model.context_length, GRAPH_CAPACITY):
        made_for = f"{model.name} was made for {model.context_length} positions"
        warnings.warn(f"{made_for}; what it says behind them may make little sense", stacklevel=3)
    return options


def _doubling(largest: int) -> tuple[int, ...]:
    """16, 32, … below ``largest``, and ``largest``."""
    sizes, size = [], SMALLEST_LENGTH
    while size < largest:
        sizes.append(size)
        size *= 2
    return (*sizes, largest)
