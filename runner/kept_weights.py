"""Weights as they are placed, made once and found in a file at the next start.

Rounding weights to fewer bits takes longer than reading them, and so does moving what a file has where it
cannot be used: writers of safetensors align tensors to 8 bytes, XLA wants 64. What is made of a checkpoint is
therefore written to a safetensors file in the cache, whose name is a digest of all that it was made from, and
mapped from then on. The least recently used of these files are removed where there is more than
``SYSTOLIC_WEIGHT_CACHE`` says, 64GB by default; ``0`` keeps none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

import numpy as np

from ..backends.cache import (
    WRITER,
    default_cache_directory,
    mark_used,
    remove_oldest,
    size_limit,
    write_whole,
)
from ..ir.errors import SystolicError
from ..ir.ops import packing
from ..ir.ports import Port
from ..ir.types import DTYPES
from ..models import compact, derived, packed, quantised, weights
from ..models.derived import DerivedWeights
from ..models.read_ahead import read_ahead
from ..models.weights import ALIGNMENT, STORED, StoredTensor, Weights, read_file

LIMIT, DEFAULT_LIMIT = "SYSTOLIC_WEIGHT_CACHE", 64 << 30
ENDING = ".weights"
LEAST = 1 << 25  # bytes that are made of a checkpoint; fewer are made as quickly as they are found
_NAMES = {np.dtype(DTYPES[ours]): stored for stored, ours in STORED.items()}


def kept_weights(
    given: Mapping[str, np.ndarray] | None, ports: Iterable[Port], alignment: int, directory: Path | None
) -> Mapping[str, np.ndarray] | None:
    """The weights for some parameters, kept in ``directory`` (None is the user's cache) where that spares
    work."""
    if not isinstance(given, Weights | DerivedWeights):
        return given
    made = {port.name: port.tensor for port in ports if not given.is_in_place(port.name, alignment)}
    size, limit = sum(type_.bytes for type_ in made.values()), size_limit(LIMIT, DEFAULT_LIMIT)
    if not LEAST <= size <= limit:
        return given
    made_from = given.identity
    if made_from is None:
        return given
    modules = (weights, derived, compact, quantised, packed, packing)
    sources = [Path(str(module.__file__)).read_bytes() for module in modules]
    digest = hashlib.sha256(repr((made_from, sorted(map(str, made.items())), sources)).encode()).hexdigest()
    return KeptWeights(given, (directory or default_cache_directory()) / f"{digest}{ENDING}", size, limit)


class KeptWeights(Mapping[str, np.ndarray]):
    """Weights of which ``entry`` has what takes time to make, ``size`` bytes, once it was written."""

    def __init__(self, given: Weights | DerivedWeights, entry: Path, size: int, limit: int) -> None:
        self._given = given
        self._entry = entry
        self._size = size
        self._limit = limit

    @cached_property
    def _found(self) -> Mapping[str, StoredTensor]:
        if not self._entry.exists():
            return {}
        mark_used(self._entry)
        try:
            return read_file(self._entry)
        except SystolicError:  # is written anew
            return {}

    def array(self, name: str, alignment: int = 1) -> np.ndarray:
        """A parameter whose memory begins at a multiple of ``alignment`` bytes, if the backend cares."""
        if name in self._found:
            stored = self._found[name]
            return stored.array(np.dtype(DTYPES[STORED[stored.dtype]]), alignment)
        return self._given.array(name, alignment)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.array(name)

    def __contains__(self, name: object) -> bool:
        return name in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def read_ahead(self) -> None:
        """Has what will be read brought into memory while something else is done."""
        if self._found:
            read_ahead([self._entry])
        else:
            self._given.read_ahead()

    def keep(self, arrays: Mapping[str, np.ndarray], alignment: int) -> Thread | None:
        """Writes what was made, if it is not there, by a thread that a process waits for when it ends."""
        if self._found:
            return None
        made = {name: array for name, array in arrays.items() if not self._given.is_in_place(name, alignment)}
        thread = Thread(target=self._write, args=(made,), name=WRITER)
        thread.start()
        return thread

    def _write(self, made: Mapping[str, np.ndarray]) -> None:
        def write(file: BinaryIO) -> None:
            write_tensors(file.write, made)
            file.flush()
            os.fsync(file.fileno())

        folder = self._entry.parent
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(folder).free < 2 * self._size:
                return
            write_whole(self._entry, write)
        remove_oldest(folder, (ENDING,), self._limit)


def write_tensors(write: Callable[[Any], object], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file in which values begin at multiples of ``ALIGNMENT``, but for those behind
    a tensor that has no multiple of so many bytes; these come last."""
    ordered = sorted(arrays.items(), key=lambda item: item[1].nbytes % ALIGNMENT != 0)
    header: dict[str, object] = {}
    end = 0
    for name, array in ordered:
        places = [end, end + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": array.shape, "data_offsets": places}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    write(len(text).to_bytes(8, "little") + text)
    for _, array in ordered:
        write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
