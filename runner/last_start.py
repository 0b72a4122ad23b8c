"""How a checkpoint was started last, so that the next start can begin before it knows what it needs.

A hint: nothing is computed from it. A program is asked for by everything that it was made from, whether it
was loaded ahead or not, so a wrong hint costs time only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends.cache import default_cache_directory, read_entry, write_entry
from ..backends.xla_library import load_library_ahead

if TYPE_CHECKING:
    from ..backends.interface import Backend

ENDING = ".last"


@dataclass(frozen=True)
class LastStart:
    """The name of the backend, and the files of compiled programs that the first text took."""

    backend: str = ""
    programs: tuple[str, ...] = ()

    def begin(self) -> None:
        """Begins to load what takes no imports."""
        if self.backend == "xla":
            load_library_ahead()

    def load_programs(self) -> None:
        """Begins to load the programs; NumPy is loaded and needed."""
        if self.backend == "xla" and self.programs:
            from ..backends.xla import load_ahead

            load_ahead(map(Path, self.programs))


def last_start(checkpoint: Path, dtype: str) -> LastStart:
    """How a checkpoint with this dtype was started last; nothing if it never was."""
    content = read_entry(_entry(checkpoint, dtype))
    try:
        given = json.loads(content or b"{}")
        return LastStart(str(given["backend"]), tuple(map(str, given["programs"])))
    except (ValueError, KeyError, TypeError):  # there is none, or another version wrote it
        return LastStart()


def remember_start(checkpoint: Path, dtype: str, backend: Backend) -> None:
    """Keeps for the next start what ``backend`` has loaded up to now."""
    start = LastStart(backend.name, tuple(map(str, getattr(backend, "loaded", ()))))
    last = last_start(checkpoint, dtype)
    if (start.backend, {*start.programs}) != (last.backend, {*last.programs}):  # threads load in any order
        write_entry(_entry(checkpoint, dtype), json.dumps(asdict(start)).encode())


def _entry(checkpoint: Path, dtype: str) -> Path:
    name = hashlib.sha256(f"{checkpoint.absolute()}\n{dtype}".encode()).hexdigest()
    return default_cache_directory() / f"{name}{ENDING}"
