"""Checkpoints that an earlier process has read: their graph and where their weights lie, found again.

Reading config.json, tracing the model and matching every tensor takes a tenth of a second. What comes of it
depends on the files of the checkpoint, on the dtype that was asked for and on this package; all of it is in
the name of an entry. A file counts as the same as long as ``file_identity`` does not change.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends.cache import default_cache_directory, read_entry, write_entry
from ..compiler.collection import paused_collection
from ..models.embedded import DEFAULT, locate
from ..models.weights import StoredTensor, map_file
from .package import file_identity, package_digest

if TYPE_CHECKING:
    from ..models.model import Model

ENDING = ".model"


def load(
    path_or_name: str | Path = DEFAULT,
    dtype: str = "f32",
    *,
    adapter: str | Path | Sequence[str | Path] = (),
) -> Model:
    """Reads a checkpoint directory, a bare config.json, or an embedded model by its name.

    ``dtype`` is how weights are kept: f32, bf16, f16, or integers with scales (``quantised.SCHEMES``);
    they are computed with as f32. ``adapter`` is a directory with LoRA factors as the peft library writes
    them, or several: they are merged into the weights, each when it is read. Raises ``SystolicError`` naming
    the file and what was expected of it.
    """
    directory = locate(path_or_name)
    if adapter or not directory.is_dir():
        return _read(path_or_name, dtype, adapter)
    entry = default_cache_directory() / f"{_digest(directory, dtype)}{ENDING}"
    with paused_collection():
        content = read_entry(entry)
        found = None if content is None else _Unpickler(io.BytesIO(content)).load()
    if found is not None:
        return found
    model = _read(path_or_name, dtype, ())
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(model)
    except (pickle.PicklingError, TypeError, AttributeError):  # it has something that is no plain value
        return model
    write_entry(entry, buffer.getvalue())
    return model


def _read(path_or_name: str | Path, dtype: str, adapter: str | Path | Sequence[str | Path]) -> Model:
    from ..models.load import load as read  # all families, and what traces them

    return read(path_or_name, dtype, adapter=adapter)


def _digest(directory: Path, dtype: str) -> str:
    """What tells apart all that can come of a checkpoint."""
    with os.scandir(directory) as entries:
        files = sorted((entry.name, *file_identity(entry.stat())) for entry in entries if entry.is_file())
    config = (directory / "config.json").read_bytes() if (directory / "config.json").is_file() else b""
    parts = (package_digest(), str(directory), str(directory.absolute()), dtype, files, config)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


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
