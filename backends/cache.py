"""Files that spare a later process work: found by name, written whole or not at all, checked when read.

A cache may be cleared, damaged, or on a disk that is full or read-only: what cannot be read is made again,
and what cannot be written is not kept. Neither is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size


def default_cache_directory() -> Path:
    """``systolic/xla`` in the user's cache directory, as XDG_CACHE_HOME has it."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "systolic" / "xla"


def read_entry(entry: Path) -> bytes | None:
    """What ``write_entry`` wrote; None where it is not there, or not as it was written."""
    try:
        data = entry.read_bytes()
    except OSError:
        return None
    content = memoryview(data)[_DIGEST:]
    return bytes(content) if hashlib.sha256(content).digest() == data[:_DIGEST] else None


def write_entry(entry: Path, content: bytes) -> None:
    """Keeps ``content`` under the name ``entry`` with its digest in front, if the disk lets it."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=entry.parent)
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        os.replace(name, entry)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
