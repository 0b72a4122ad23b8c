"""Which backend a checkpoint was compiled for last, so that loading it can begin at once.

A hint: nothing is computed from it, and a wrong one costs time only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..backends.cache import default_cache_directory, read_entry, write_entry
from ..backends.xla_library import load_library_ahead

ENDING = ".last"


def begin_as_last(checkpoint: Path, dtype: str) -> None:
    """Begins to load what the last start from a checkpoint with this dtype went on with."""
    if read_entry(_entry(checkpoint, dtype)) == b"xla":
        load_library_ahead()


def remember_start(checkpoint: Path, dtype: str, backend: str) -> None:
    """Keeps the name of the backend for the next start."""
    entry = _entry(checkpoint, dtype)
    if read_entry(entry) != backend.encode():
        write_entry(entry, backend.encode())


def _entry(checkpoint: Path, dtype: str) -> Path:
    name = hashlib.sha256(f"{checkpoint.absolute()}\n{dtype}".encode()).hexdigest()
    return default_cache_directory() / f"{name}{ENDING}"
