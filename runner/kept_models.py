"""Checkpoints that an earlier process has read: their graph and where their weights lie, found again.

Reading config.json, tracing the model and matching every tensor takes a tenth of a second. What comes of it
depends on the files of the checkpoint, on the dtype that was asked for and on this package; all of it is in
the name of an entry. A file counts as the same as long as ``file_identity`` does not change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends.cache import default_cache_directory, read_entry, write_entry
from ..compiler.collection import paused_collection
from ..models.embedded import DEFAULT, locate
from .last_start import last_start
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

    ``dtype`` is how weights are kept: f32, bf16, f16; f32 or bf16 in fewer bytes (``packed.PACKINGS``), or
    integers with scales (``quantised.SCHEMES``). They are computed with as f32. ``adapter`` is a directory
    with LoRA factors as the peft library writes them, or several: they are merged into the weights, each when
    it is read. Raises ``SystolicError`` naming the file and what was expected of it.
    """
    directory = locate(path_or_name)
    if adapter or not directory.is_dir():
        return _read(path_or_name, dtype, adapter)
    last = last_start(directory, dtype)
    last.begin()
    from .pickled_models import from_bytes, to_bytes  # NumPy, meanwhile

    last.load_programs()
    entry = default_cache_directory() / f"{_digest(directory, dtype)}{ENDING}"
    content = read_entry(entry)
    if content is not None:
        with paused_collection():
            return from_bytes(content)
    model = _read(path_or_name, dtype, ())
    content = to_bytes(model)
    if content is not None:
        write_entry(entry, content)
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
