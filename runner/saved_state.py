"""States on disk: one safetensors file, whose header says in JSON what it is the state of.

Arrays are those of a ``Snapshot``; what is kept by position is cut to the positions that there are, so a
state fits every capacity that has room for it, on every backend.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..compiler.derive.moves import piece_type, row_type
from ..compiler.derive.placed import slot_axis
from ..compiler.program import State
from ..ir.errors import SystolicError
from ..ir.types import DTYPES, TensorType
from .files import write_file
from .snapshot import Snapshot
from .undo import AS_A_WHOLE, BY_POSITION, Checkpoint

if TYPE_CHECKING:
    from .executable import Executable

FORMAT = 1
SAMPLED_BYTES = 4096  # of each end of a weight: enough to tell models apart, and little to read


def fingerprint(executable: Executable) -> str:
    """A digest of what a state depends on: the graph, and the ends of every weight."""
    digest = hashlib.sha256(str(executable.model.graph).encode())
    weights = executable.model.weights or {}
    for node in executable.model.graph.signature.parameters:
        values = np.ascontiguousarray(weights[node.name]).reshape(-1).view(np.uint8)
        digest.update(values[:SAMPLED_BYTES].tobytes() + values[-SAMPLED_BYTES:].tobytes())
    return digest.hexdigest()


def save_state(executable: Executable, snapshot: Snapshot, path: Path) -> None:
    """Writes a state; an existing file is replaced, and nothing is left behind on an error."""
    states = {state.name: state for state in executable.programs.states}
    arrays: dict[str, np.ndarray] = {}

    def add(group: str, values: Mapping[str, Any]) -> None:
        for name, array in values.items():
            arrays[f"{group}.{name}"] = _to_stored(executable.backend.fetch(array))

    positions = slice(len(snapshot))
    for name, array in snapshot.piece.items():
        axis = slot_axis(states[name].value.shape)
        fetched = executable.backend.fetch(array)[(slice(None),) * axis + (positions,)]
        arrays[f"piece.{name}"] = _to_stored(fetched)
    add("whole", snapshot.whole)
    add("constants", snapshot.constants)
    for number, checkpoint in enumerate(snapshot.checkpoints):
        add(f"checkpoint{number}", checkpoint.arrays)
    about = {
        "format": FORMAT,
        "model": executable.model.name,
        "fingerprint": fingerprint(executable),
        "tokens": snapshot.tokens,
        "written": snapshot.written,
        "source": snapshot.source,
        "adapter": snapshot.adapter,
        "checkpoints": [(c.position, c.written) for c in snapshot.checkpoints],
    }
    write_file(path, save(arrays, metadata={"systolic": json.dumps(about)}), force=True)


def load_state(executable: Executable, path: Path) -> Snapshot:
    """Reads a state for a model that was compiled in any way that has room for it."""
    about, arrays = _read(path)
    if about["fingerprint"] != fingerprint(executable):
        raise SystolicError(f"{path} is a state of {about['model']}, not of this {executable.model.name}")
    count, capacity = len(about["tokens"]), executable.options.capacity
    if count > capacity:
        raise SystolicError(f"{path} has {count} positions, more than the capacity of {capacity}")
    programs = executable.programs
    room = executable.options.source_room if executable.inputs.source else 0
    size = min(size for size in executable.options.score_lengths if size >= count)

    def group(name: str, states: tuple[State, ...]) -> dict[str, Any]:
        found = {state.name: arrays.pop(f"{name}.{state.name}", None) for state in states}
        return {
            state.name: _placed(executable, path, found[state.name], row_type(state), state)
            for state in states
        }

    pieces = {}
    for state in programs.states_of(BY_POSITION) if count else ():
        type_ = piece_type(state, size)
        stored = arrays.pop(f"piece.{state.name}", None)
        padded = None if stored is None else _padded(stored, slot_axis(state.value.shape), size)
        pieces[state.name] = _placed(executable, path, padded, type_, state)
    latest = programs.states_of(AS_A_WHOLE)
    return Snapshot(
        tokens=tuple(about["tokens"]),
        written=about["written"],
        piece=pieces,
        whole=group("whole", latest),
        undo=executable.undo,
        checkpoints=tuple(
            Checkpoint(position, written, group(f"checkpoint{number}", latest))
            for number, (position, written) in enumerate(about["checkpoints"])
        ),
        source=tuple(about["source"]),
        adapter=about.get("adapter", 0),
        constants=group("constants", programs.states_of(("constant",), room)),
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {})["systolic"])
            found = about["format"]
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SystolicError(f"{path} is no saved state: {error}") from None
    if found != FORMAT:
        raise SystolicError(f"{path} has format {found}; this version reads format {FORMAT}")
    return about, arrays


def _placed(
    executable: Executable, path: Path, stored: np.ndarray | None, type_: TensorType, state: State
) -> Any:
    found = "nothing" if stored is None else f"{stored.dtype} {list(stored.shape)}"
    array = None if stored is None else _from_stored(stored, DTYPES[type_.dtype])
    if array is None or array.shape != type_.static_shape or array.dtype != DTYPES[type_.dtype]:
        raise SystolicError(
            f"{path} holds {found} for the {state.kind} {state.name}, and {type_} is expected; states "
            "need the state_dtype, and rings and constants the chunk and capacity that they were saved with"
        )
    return executable.backend.place(array)


def _padded(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    widths = [(0, size - array.shape[axis] if i == axis else 0) for i in range(array.ndim)]
    return np.pad(array, widths)


def _to_stored(array: np.ndarray) -> np.ndarray:
    """bfloat16 as its bits: NumPy's view of the format has no name for it."""
    array = np.ascontiguousarray(array)
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def _from_stored(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    is_bits = dtype == ml_dtypes.bfloat16 and array.dtype == np.uint16
    return array.view(dtype) if is_bits else array
