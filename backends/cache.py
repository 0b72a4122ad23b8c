"""Files that spare a later process work: found by name, written whole or not at all, checked when read.

A cache may be cleared, damaged, or on a disk that is full or read-only: what cannot be read is made again,
and what cannot be written is not kept. Neither is an error. What was not used for longest is removed where
there is more than ``SYSTOLIC_PROGRAM_CACHE`` says, 2GB by default; ``0`` keeps nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from ..ir.errors import SystolicError

PROGRAM_LIMIT, PROGRAM_DEFAULT = "SYSTOLIC_PROGRAM_CACHE", 2 << 30
PROGRAM_ENDINGS = (".xla", ".program", ".model", ".last", ".so")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
WRITER = "keep weights"  # what threads are called that a process waits for when it ends
_half_written: set[str] = set()  # files that some thread is about to finish
_beginning = Lock()  # held while one is begun, and for good once no more are to be
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
    mark_used(entry)
    content = memoryview(data)[_DIGEST:]
    return bytes(content) if hashlib.sha256(content).digest() == data[:_DIGEST] else None


def write_entry(entry: Path, content: bytes) -> None:
    """Keeps ``content`` as ``entry`` with its digest in front, if the disk and the limit let it."""
    limit = size_limit(PROGRAM_LIMIT, PROGRAM_DEFAULT)
    if len(content) > limit:
        return

    def write(file: BinaryIO) -> None:
        file.write(hashlib.sha256(content).digest())
        file.write(content)

    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_whole(entry, write)
    remove_oldest(entry.parent, PROGRAM_ENDINGS, limit)


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """A file that is called ``path`` once ``write`` has written all of it. Raises what writing raises."""
    with _beginning:
        handle, name = tempfile.mkstemp(path.suffix, dir=path.parent)  # left by a crash, it goes in turn
        _half_written.add(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    finally:
        _half_written.discard(name)


def remove_half_written() -> None:
    """Removes what threads are writing, and lets none begin: for a process that ends without them."""
    _beginning.acquire(timeout=1)  # a disk that takes longer than that keeps nobody here
    for name in tuple(_half_written):
        with contextlib.suppress(OSError):
            os.unlink(name)


def mark_used(entry: Path) -> None:
    """Makes an entry the last to be removed."""
    with contextlib.suppress(OSError):
        os.utime(entry)


def remove_oldest(directory: Path, endings: tuple[str, ...], limit: int) -> None:
    """Removes the files with these ``endings`` that were not used for longest until at most ``limit`` bytes
    are left. Whoever has one of them open or mapped keeps it."""
    with contextlib.suppress(OSError):
        found = [(file, file.stat()) for file in os.scandir(directory) if file.name.endswith(endings)]
        total = sum(status.st_size for _, status in found)
        for file, status in sorted(found, key=lambda pair: pair[1].st_mtime_ns):
            if total <= limit:
                break
            os.unlink(file)
            total -= status.st_size


def size_limit(variable: str, default: int) -> int:
    """Bytes, as an environment variable has them (``500MB``, ``20GB``, ``0``), or else ``default``.

    ``SystolicError`` that names the variable for what is no size.
    """
    text = os.environ.get(variable, "")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B|)", text.strip().upper())
    if text and found is None:
        raise SystolicError(f"{variable} must be a size like 500MB, 20GB or 0, not {text!r}")
    return default if found is None else int(float(found[1]) * _UNITS[found[2] if found[2] != "B" else ""])
