"""Files that are read while something else is done."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from threading import Thread

_LOOKS = 16  # at whether a file is in memory


def read_ahead(paths: Iterable[Path]) -> Thread:
    """Has files read into the system's cache by a thread, while something else is done.

    Advice to the system (WILLNEED) would have the same purpose, but reads a small part only.
    """
    reader = Thread(target=_read_through, args=(tuple(paths),), name="read ahead", daemon=True)
    reader.start()
    return reader


def _read_through(paths: Iterable[Path]) -> None:
    """Reads files and keeps nothing; what cannot be read is an error for those who want it."""
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            if not _is_in_memory(file):
                buffer = bytearray(1 << 24)
                while file.readinto(buffer):
                    pass


def _is_in_memory(file: FileIO) -> bool:
    """Whether the system has all of a file in its cache, as far as a few looks show."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    size, page = os.fstat(file.fileno()).st_size, bytearray(mmap.PAGESIZE)
    try:
        for at in range(0, size, max(1, size // _LOOKS)):
            os.preadv(file.fileno(), [page], at, os.RWF_NOWAIT)
    except OSError:  # it would have to wait, or cannot say
        return False
    return True
