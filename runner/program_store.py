"""Programs that an earlier process derived and lowered, found again by everything that they were made from.

What a program depends on is the graph of the model, the options, the backend, and this package itself. All
of it is in the name of an entry, so there is nothing to invalidate: what changes has another name.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..backends.cache import default_cache_directory, read_entry, write_entry
from ..backends.interface import Backend
from ..compiler.collection import paused_collection
from ..ir.graph import Graph
from .options import Options
from .package import package_digest

Kept = TypeVar("Kept")


class ProgramStore:
    """Values by name, in the files of one directory, for programs that are made from ``origin``."""

    def __init__(self, directory: Path, origin: str) -> None:
        self.directory = directory
        self.origin = origin

    def within(self, *parts: object) -> ProgramStore:
        """The same directory for programs that are made from more."""
        return ProgramStore(self.directory, _digest(self.origin, *parts))

    def find(self, name: str, kind: type[Kept]) -> Kept | None:
        """The value that an earlier process kept under ``name``, if one did."""
        with paused_collection():
            content = read_entry(self._entry(name))
            found = None if content is None else pickle.loads(content)
        return found if isinstance(found, kind) else None

    def put(self, name: str, value: object) -> None:
        """Keeps a value under ``name`` from now on."""
        write_entry(self._entry(name), pickle.dumps(value, pickle.HIGHEST_PROTOCOL))

    def _entry(self, name: str) -> Path:
        return self.directory / f"{_digest(self.origin, name)}.program"

    def keep(self, name: str, make: Callable[[], Kept], kind: type[Kept]) -> Kept:
        """The value that an earlier process kept under ``name``, or what ``make`` makes of it now."""
        found = self.find(name, kind)
        if found is not None:
            return found
        with paused_collection():
            made = make()
        self.put(name, made)
        return made


def program_store(graph: Graph, options: Options, backend: Backend) -> ProgramStore:
    """The store of the programs of a model's graph."""
    directory = options.cache_directory or default_cache_directory()
    made_for = {name: value for name, value in vars(options).items() if name != "cache_directory"}
    return ProgramStore(directory, _digest(package_digest(), graph.digest, made_for, backend.lowering))


def _digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
