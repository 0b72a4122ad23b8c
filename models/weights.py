"""Checkpoints: memory-mapped safetensors, and the account of every tensor against a graph.

Nothing is read before it is asked for; a tensor that is stored in the type that is wanted is not even
copied. What does not fit is one sentence that names the file and the tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..ir.errors import SystolicError
from ..ir.graph import Graph
from ..ir.types import DTYPES, TensorType
from .spec import read_config

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_STORED_FLOATS = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16"}


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

    @property
    def is_floating(self) -> bool:
        """Whether the values are floats of a type that is known."""
        return self.dtype in _STORED_FLOATS

    def array(self, dtype: np.dtype) -> np.ndarray:
        """The values as ``dtype``; a view of the file if they are stored like that."""
        stored = self.data.view(DTYPES[_STORED_FLOATS[self.dtype]]).reshape(self.shape)
        return np.require(stored.astype(dtype, copy=False), requirements="A")


@dataclass(frozen=True, eq=False)
class TensorStack:
    """Tensors of one shape that are one parameter, one behind the other along a new first axis."""

    parts: tuple[StoredTensor, ...]

    def array(self, dtype: np.dtype) -> np.ndarray:
        """The values as ``dtype``, put together anew at each call, so that only the caller keeps them."""
        stacked = np.empty((len(self.parts), *self.parts[0].shape), dtype)
        for place, part in zip(stacked, self.parts, strict=True):
            place[...] = part.array(dtype)
        return stacked


class Weights(Mapping[str, np.ndarray]):
    """The parameters of a graph by name, each read when it is asked for, in the parameter's type."""

    def __init__(
        self, tensors: Mapping[str, StoredTensor | TensorStack], types: Mapping[str, TensorType]
    ) -> None:
        self._tensors = tensors
        self._types = types

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].array(DTYPES[self._types[name].dtype])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name, mapped but not read.

    Raises ``SystolicError`` when the file is missing, truncated or corrupt.
    """
    try:
        with safe_open(path, "numpy"):  # the library checks that the header fits the file
            pass
        data = np.memmap(path, np.uint8, mode="r")
    except OSError as error:
        raise SystolicError(f"{path}: cannot be read: {error.strerror or 'no such file'}") from None
    except SafetensorError as error:
        raise SystolicError(f"{path}: is truncated or corrupt: {error}") from None
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    return {name: _stored(path, data[start:], entry) for name, entry in header.items()}


def _stored(path: Path, data: np.ndarray, entry: Mapping) -> StoredTensor:
    first, last = entry["data_offsets"]
    return StoredTensor(path, np.asarray(data[first:last]), tuple(entry["shape"]), entry["dtype"])


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
