"""Models as bytes: whatever they are but the values of weights, which stay in their files."""

from __future__ import annotations

import io
import mmap
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..models.model import Model
from ..models.weights import StoredTensor, map_file


def to_bytes(model: Model) -> bytes | None:
    """The model as ``from_bytes`` takes it; None where something of it is neither plain nor in a file."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(model)
    except (pickle.PicklingError, TypeError, AttributeError):
        return None
    return buffer.getvalue()


def from_bytes(content: bytes) -> Model:
    """The model, its files mapped and not read: they must be those of then."""
    return _Unpickler(io.BytesIO(content)).load()


class _Pickler(pickle.Pickler):
    """Writes a tensor of a file as its place there, and no other array."""

    def persistent_id(self, value: Any) -> Any:
        if type(value) is StoredTensor and value.mapped is not None:
            return str(value.path), value.offset, value.data.nbytes, value.shape, value.dtype
        if isinstance(value, np.ndarray | mmap.mmap | StoredTensor):
            raise pickle.PicklingError("weights that are made of more than a file")
        return None


class _Unpickler(pickle.Unpickler):
    """Reads what ``_Pickler`` wrote, mapping each file once."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._mapped: dict[str, mmap.mmap] = {}

    def persistent_load(self, place: Any) -> StoredTensor:
        name, offset, size, shape, dtype = place
        path = Path(name)
        if name not in self._mapped:
            self._mapped[name] = map_file(path)
        data = np.frombuffer(self._mapped[name], np.uint8, size, offset)
        return StoredTensor(path, data, shape, dtype, mapped=self._mapped[name], offset=offset)
