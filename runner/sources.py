"""What an encoder-decoder reads first: the ids of a text, other numbers, or an encoder's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import SystolicError
from ..ir.types import DTYPES, TensorType

if TYPE_CHECKING:
    from .executable import Executable


@dataclass(frozen=True, eq=False)
class EncoderStates:
    """What an encoder made of a source, f32[S, D]: it is read in place of the source."""

    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


Source = Sequence[int] | np.ndarray | EncoderStates


def positions_of(values: Any, type_: TensorType, name: str) -> np.ndarray:
    """Numbers as one value of ``type_`` for each position: [S, …].

    They may also stand in one row, the positions' last axes joined: Whisper's two frames at a position
    are given as [mel, 2 * S]. Raises ``SystolicError`` for another shape.
    """
    array, shape = np.asarray(values, DTYPES[type_.dtype]), type_.static_shape
    if array.shape[1:] == shape and len(array):
        return array
    *outer, size = shape
    if (
        array.ndim == len(shape)
        and list(array.shape[:-1]) == outer
        and array.shape[-1] % size == 0
        and array.size
    ):
        return np.moveaxis(array.reshape(*outer, -1, size), -2, 0)
    joined = ", ".join(map(str, [*outer, f"{size} * S"]))
    each = ", ".join(map(str, shape))
    raise SystolicError(f"{name} must be numbers [S, {each}] or [{joined}], not {list(array.shape)}")


def shown(source: Source) -> tuple[int, ...]:
    """The ids of a source, or as many zeros as it has positions where it is no text."""
    if isinstance(source, np.ndarray | EncoderStates):
        return (0,) * len(source)
    return tuple(source)


def read_sources(
    executable: Executable, sources: Sequence[Source], room: int, adapters: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What a source for each row leaves for the decoder, by the names of states; empty rows leave nothing.

    ``room`` is how many positions the states must hold, ``adapters`` the input that chooses each row's.
    """
    is_encoded = any(isinstance(source, EncoderStates) for source in sources)
    programs = executable.programs.behind_encoder if is_encoded else executable.programs
    program = programs.source(room)
    stream = executable.inputs.encoded if is_encoded else executable.inputs.source
    assert stream is not None
    (node,) = (node for node in program.program.graph.signature.inputs if node.name == stream.name)
    block = np.zeros(node.tensor.static_shape, DTYPES[node.tensor.dtype])
    for row, source in enumerate(sources):
        if len(source):
            block[row, : len(source)] = source.values if isinstance(source, EncoderStates) else source
    nothing = np.zeros(len(sources), np.int32)
    counts = np.array([len(source) for source in sources], np.int32)
    inputs = {node.name: block, "offset": nothing, "length": nothing, f"length.{stream.clock}": counts}
    _, constants = program.run(executable.parameters, inputs | dict(adapters), {})
    return constants
