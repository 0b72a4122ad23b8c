"""Checkpoints: memory-mapped safetensors, and the account of every tensor against a graph.

Nothing is read before it is asked for; a tensor that is stored in the type that is wanted is not even
copied, unless the file has it where a backend cannot use it. Everything else is converted block by block, and
what has been read of the file is given back, so that loading needs little more memory than the weights.
What does not fit is one sentence that names the file and the tensor.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from ..ir.errors import SystolicError
from ..ir.graph import Graph
from ..ir.types import DTYPES, TensorType
from .read_ahead import read_ahead

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ALIGNMENT = 64  # bytes; of what is made here, so that any backend can use it where it is
_BLOCK = 1 << 18  # values that are converted at a time: about what the caches of a core hold
_LARGE_PAGE = 1 << 21  # bytes
_OWN_PAGES = 1 << 20  # bytes of an array from which on it gets pages of its own
_STORED_FLOATS = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16"}
STORED = {**_STORED_FLOATS, "I32": "i32", "I8": "i8", "U8": "u8"}  # of files that are read, and ours


@dataclass(frozen=True)
class Naming:
    """How the files of a family name their tensors, where that differs from the parameters.

    ``prefix`` is what files of the bare model leave out. ``buffers`` are patterns of tensors that
    files may hold although the model computes them, ``unused`` of weights that reach no output where
    they are not parameters. ``tied`` maps a tensor that files may repeat to the one whose copy it
    must be. ``within`` maps how names begin in files of a larger model to how those of the parameters do,
    ``endings`` how they end in older files.
    """

    prefix: str = ""
    buffers: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    within: Mapping[str, str] = field(default_factory=dict)
    endings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """One tensor of a file: where its bytes lie in the mapped file, its shape, its stored type."""

    path: Path
    data: np.ndarray  # u8[bytes], a view of the mapped file
    shape: tuple[int, ...]
    dtype: str  # as in the file: F32, BF16, …
    mapped: mmap.mmap | None = field(default=None, kw_only=True)
    offset: int = field(default=0, kw_only=True)  # of the data in the mapped file

    @property
    def is_floating(self) -> bool:
        """Whether the values are floats of a type that is known."""
        return self.dtype in _STORED_FLOATS

    def array(self, dtype: np.dtype, alignment: int = 1) -> np.ndarray:
        """The values as ``dtype``, at a multiple of ``alignment`` bytes; a view of the file if it can be."""
        if self.is_in_place(dtype, alignment):
            return self._stored
        array = aligned_empty(self.shape, dtype)
        for rows, values in self.blocks(dtype):
            array[rows] = values
        return array

    def is_in_place(self, dtype: np.dtype, alignment: int = 1) -> bool:
        """Whether the values can be used where they lie in the file."""
        stored = self._stored
        return stored.dtype == dtype and stored.flags.aligned and stored.ctypes.data % alignment == 0

    @property
    def identity(self) -> tuple[object, ...] | None:
        """What tells the values from any others without reading them: the file as it is now, and the place
        there. None where they are made of more."""
        if self.mapped is None:
            return None
        status = self.path.stat()
        file = str(self.path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns
        return (*file, self.offset, self.dtype, self.shape)

    def blocks(self, dtype: np.dtype) -> Iterator[tuple[Any, np.ndarray]]:
        """The values as ``dtype``, some rows at a time, each with its place on the first axis.

        What has been read of the file is not kept in memory for this process.
        """
        stored, done = self._stored, self.offset
        step = max(1, _BLOCK // math.prod(self.shape[1:])) if stored.size else 1
        places = [slice(at, at + step) for at in range(0, self.shape[0], step)] if self.shape else [...]
        for place in places:
            values = stored[place]
            yield place, values.astype(dtype, copy=False)
            self._release(done, done + values.nbytes)
            done += values.nbytes

    def _release(self, start: int, end: int) -> None:
        """Gives pages of the file back; they are mapped again for whoever still reads them."""
        if self.mapped is not None and hasattr(self.mapped, "madvise"):
            first = start - start % _LARGE_PAGE  # what lies beside was mapped together with it
            last = min(end + -end % _LARGE_PAGE, len(self.mapped))
            self.mapped.madvise(mmap.MADV_DONTNEED, first, last - first)

    @property
    def _stored(self) -> np.ndarray:
        return self.data.view(DTYPES[STORED[self.dtype]]).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class TensorStack:
    """Tensors of one shape that are one parameter, one behind the other along a new first axis."""

    parts: tuple[StoredTensor, ...]

    def array(self, dtype: np.dtype, alignment: int = 1) -> np.ndarray:
        """The values as ``dtype``, put together anew at each call, so that only the caller keeps them."""
        stacked = aligned_empty((len(self.parts), *self.parts[0].shape), dtype)
        for part_of, part in zip(stacked, self.parts, strict=True):
            for place, values in part.blocks(dtype):
                part_of[place] = values
        return stacked

    def is_in_place(self, dtype: np.dtype, alignment: int = 1) -> bool:
        """Never: the parts are put together."""
        return False

    @property
    def identity(self) -> tuple[object, ...] | None:
        """Those of the parts, if all have one."""
        parts = tuple(part.identity for part in self.parts)
        return None if None in parts else parts


class Weights(Mapping[str, np.ndarray]):
    """The parameters of a graph by name, each read when it is asked for, in the parameter's type."""

    def __init__(
        self, tensors: Mapping[str, StoredTensor | TensorStack], types: Mapping[str, TensorType]
    ) -> None:
        self._tensors = tensors
        self._types = types

    def __getitem__(self, name: str) -> np.ndarray:
        return self.array(name)

    def array(self, name: str, alignment: int = 1) -> np.ndarray:
        """A parameter whose memory begins at a multiple of ``alignment`` bytes."""
        return self._tensors[name].array(DTYPES[self._types[name].dtype], alignment)

    def is_in_place(self, name: str, alignment: int = 1) -> bool:
        """Whether a parameter can be used where it lies in its file."""
        return self._tensors[name].is_in_place(DTYPES[self._types[name].dtype], alignment)

    @property
    def identity(self) -> tuple[object, ...] | None:
        """What values are made from, see ``StoredTensor.identity``; None where that is more than files."""
        found = [(name, str(self._types[name]), tensor.identity) for name, tensor in self._tensors.items()]
        return None if any(identity is None for _, _, identity in found) else tuple(found)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter."""
        return self._types[name].static_shape

    def dtype(self, name: str) -> np.dtype:
        """The type of its values."""
        return DTYPES[self._types[name].dtype]

    def blocks(self, name: str) -> Iterator[tuple[Any, np.ndarray]]:
        """The values of a parameter some rows at a time, each with its place on the first axis."""
        tensor = self._tensors[name]
        if isinstance(tensor, StoredTensor):
            yield from tensor.blocks(DTYPES[self._types[name].dtype])
        else:
            yield slice(None), self[name]

    def read_ahead(self) -> Thread:
        """Has the files read while something else is done; see ``read_ahead``."""
        tensors = list(self._tensors.values())
        parts = [part for t in tensors for part in (t.parts if isinstance(t, TensorStack) else (t,))]
        return read_ahead(dict.fromkeys(part.path for part in parts))

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # reads nothing

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name, mapped but not read.

    Raises ``SystolicError`` when the file is missing, truncated or corrupt.
    """
    from safetensors import SafetensorError, safe_open  # a file that was read before needs no checks

    try:
        with safe_open(path, "numpy"):  # the library checks that the header fits the file
            pass
        mapped = map_file(path)
    except OSError as error:
        raise SystolicError(f"{path}: cannot be read: {error.strerror or 'no such file'}") from None
    except SafetensorError as error:
        raise SystolicError(f"{path}: is truncated or corrupt: {error}") from None
    start = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:start])
    header.pop("__metadata__", None)
    return {name: _stored(path, mapped, start, entry) for name, entry in header.items()}


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file, read when they are used."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _stored(path: Path, mapped: mmap.mmap, start: int, entry: Mapping) -> StoredTensor:
    first, last = (start + offset for offset in entry["data_offsets"])
    data = np.frombuffer(mapped, np.uint8)[first:last]
    return StoredTensor(path, data, tuple(entry["shape"]), entry["dtype"], mapped=mapped, offset=first)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array without values whose memory begins at a multiple of ``ALIGNMENT``."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size >= _OWN_PAGES and hasattr(mmap, "MAP_ANONYMOUS"):
        memory = np.frombuffer(_fresh_pages(size), np.uint8)
    else:
        memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _fresh_pages(size: int) -> mmap.mmap:
    """Memory of its own, in large pages where the system has them: it is had, and read, in fewer steps."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def read_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint: ``model.safetensors``, or the shards that its index names.

    Raises ``SystolicError`` when there is neither, or a shard or a tensor of the index is missing.
    """
    if (directory / SINGLE).exists():
        return read_file(directory / SINGLE)
    if not (directory / INDEX).exists():
        other = next(iter(sorted(directory.glob("*.bin"))), None)
        hint = f"; {other.name} must be converted to safetensors first" if other else ""
        raise SystolicError(f"{directory}: holds neither {SINGLE} nor {INDEX}{hint}")
    from .spec import read_config

    index = directory / INDEX
    shards = read_config(index).section("weight_map").values
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(map(str, shards.values()))):
        if Path(shard).name != shard:
            raise SystolicError(f"{index}: names the shard {shard!r}, which is not a file beside it")
        if not (directory / shard).exists():
            raise SystolicError(f"{directory / shard}: is missing, although {INDEX} names it")
        tensors |= read_file(directory / shard)
    for name, shard in shards.items():
        if name not in tensors:
            raise SystolicError(f"{directory / shard}: lacks the tensor {name}, although {INDEX} names it")
    return tensors


def fit(graph: Graph, tensors: Mapping[str, StoredTensor], naming: Naming, source: str) -> Weights:
    """The tensors of the checkpoint ``source`` as the parameters of ``graph``: none lacks, none is left.

    A parameter with a ``*`` in its name is a stack of tensors, which files number from 0. Raises
    ``SystolicError`` for a tensor that is missing, unexpected, misshapen, not of floats, or not the copy
    that it must be.
    """
    types = {node.name: node.tensor for node in graph.parameters}
    parts = {name: stored_parts(name, type_) for name, type_ in types.items()}
    wanted = {name: type_ for stored in parts.values() for name, type_ in stored.items()}
    rename = renaming(wanted, naming)
    found = {rename(name): tensor for name, tensor in tensors.items()}
    missing = sorted(set(wanted) - set(found))
    if missing:
        first = f"{missing[0]} {_shape(wanted[missing[0]].shape)}"
        raise SystolicError(f"{source}: lacks the tensor {first}{_more(missing)}")
    _refuse_unexpected({name: found[name] for name in sorted(set(found) - set(wanted))}, found, naming)
    for name, type_ in wanted.items():
        _require_fit(name, type_, found[name])
    return Weights(
        {
            name: TensorStack(tuple(found[part] for part in stored)) if "*" in name else found[name]
            for name, stored in parts.items()
        },
        types,
    )


def stored_parts(name: str, type_: TensorType) -> dict[str, TensorType]:
    """The tensors that files hold for a parameter: itself, or one for each number in place of ``*``."""
    if "*" not in name:
        return {name: type_}
    count, *shape = type_.static_shape
    return {name.replace("*", str(i)): type_.with_shape(tuple(shape)) for i in range(count)}


def _refuse_unexpected(
    extra: Mapping[str, StoredTensor], found: Mapping[str, StoredTensor], naming: Naming
) -> None:
    unexpected, ignored = [], (*naming.buffers, *naming.unused)
    for name, tensor in extra.items():
        if naming.tied.get(name) in found:
            _require_copy(name, tensor, naming.tied[name], found)
        elif not any(re.search(f"{pattern}$", name) for pattern in ignored):
            unexpected.append(name)
    if unexpected:
        first = extra[unexpected[0]]
        described = f"{unexpected[0]} {_shape(first.shape)}{_more(unexpected)}"
        raise SystolicError(f"{first.path}: the model has no use for the tensor {described}")


def renaming(types: Mapping[str, TensorType], naming: Naming) -> Callable[[str], str]:
    """From the name of a tensor in files to that in ``types``, if it is there under another one."""

    def rename(name: str) -> str:
        for end, meant in naming.endings.items():
            name = name.removesuffix(end) + meant if name.endswith(end) else name
        for start, meant in naming.within.items():
            if name.startswith(start):
                return meant + name.removeprefix(start)
        return name if name in types or naming.prefix + name not in types else naming.prefix + name

    return rename


def _require_fit(name: str, type_: TensorType, tensor: StoredTensor) -> None:
    if tensor.shape != type_.shape:
        raise SystolicError(
            f"{tensor.path}: tensor {name} has shape {_shape(tensor.shape)}, "
            f"but the config asks for {_shape(type_.shape)}"
        )
    if not tensor.is_floating:
        known = ", ".join(_STORED_FLOATS)
        raise SystolicError(f"{tensor.path}: tensor {name} is stored as {tensor.dtype}, not {known}")


def _require_copy(name: str, tensor: StoredTensor, other: str, found: Mapping[str, StoredTensor]) -> None:
    if not np.array_equal(tensor.data, found[other].data):
        raise SystolicError(
            f"{tensor.path}: tensor {name} differs from {other}, although the config ties them "
            "(tie_word_embeddings)"
        )


def _shape(shape: tuple) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
