"""One device as jaxlib shows it: arrays are placed on it, executables made for it and run.

jax itself is not imported for a CPU: half a second and fifty megabytes for what needs none of its tracing. It
is asked where another platform may be meant, since it knows how their plugins are found.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import SystolicError
from ..ir.types import DTYPES, TensorType
from .xla_library import LOG_LEVEL

os.environ.setdefault(*LOG_LEVEL)
from jaxlib import xla_client

_PLUGINS = ("jax_plugins", "libtpu")  # packages that bring other platforms


@dataclass(frozen=True)
class ArrayType:
    """What an array on a device is; jaxlib keeps it as the array's ``aval``."""

    shape: tuple[int, ...]
    dtype: np.dtype
    weak_type: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @staticmethod
    def of(type_: TensorType) -> ArrayType:
        """That of a value of a program."""
        return ArrayType(type_.static_shape, np.dtype(DTYPES[type_.dtype]))


class _Here(xla_client.SingleDeviceSharding):
    """The whole of an array on one device; jaxlib asks for it in these words."""

    memory_kind = None

    def _to_xla_hlo_sharding(self, dimensions: int) -> Any:
        return xla_client.HloSharding.replicate()


class XlaDevice:
    """The first device of a client of jaxlib."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._device = self._client.local_devices()[0]
        self._where = _Here(self._device)
        self._ahead: dict[Path, Future[Any]] = {}

    @property
    def platform(self) -> str:
        return self._client.platform

    @property
    def description(self) -> tuple[str, ...]:
        """Whatever compiled code depends on beside the program and the processor."""
        return self.platform, self._client.platform_version, self._device.device_kind

    def place(self, array: np.ndarray | np.generic, *, stays: bool = False) -> Any:
        """Moves an array to the device. Where it ``stays`` as it is, the device may use its memory."""
        array = np.asarray(array)
        semantics = xla_client.HostBufferSemantics
        return xla_client.batched_device_put(
            ArrayType(array.shape, array.dtype),
            self._where,
            [array],
            [self._device],
            host_buffer_semantics=semantics.ZERO_COPY if stays else semantics.IMMUTABLE_ONLY_DURING_CALL,
            enable_x64=True,
        )

    def compile(self, module: str | bytes) -> Any:
        """An executable of StableHLO text or of a portable artifact."""
        return self._client.compile_and_load(module, self._devices, self._options)

    def load(self, serialised: bytes) -> Any:
        """A serialised executable; RuntimeError or ValueError where another release made it."""
        return self._client.deserialize_executable(serialised, self._devices, self._options)

    def load_ahead(self, loads: Mapping[Path, Callable[[], Any]]) -> None:
        """Begins to call these, one behind the other; a process waits for them when it ends."""
        worker = ThreadPoolExecutor(1, "load ahead")
        self._ahead |= {entry: worker.submit(load) for entry, load in loads.items()}
        worker.shutdown(wait=False)

    def loaded_ahead(self, entry: Path) -> Any | None:
        """What was loaded of an entry, once; waits where that has begun."""
        future = self._ahead.pop(entry, None)
        return None if future is None else future.result()

    def results(self, types: Iterable[TensorType]) -> list[Any]:
        """What makes arrays of results of these types, for ``run``."""
        wanted = map(ArrayType.of, types)
        return [xla_client.array_result_handler(type_, self._where, True, True) for type_ in wanted]

    @cached_property
    def _devices(self) -> Any:
        return xla_client.DeviceList((self._device,))

    @cached_property
    def _options(self) -> Any:
        options = xla_client.CompileOptions()
        options.num_replicas = options.num_partitions = 1
        numbers = np.array([[self._device.id]])
        options.device_assignment = xla_client.DeviceAssignment.create(numbers)
        return options


def register_kernel(name: str, function: Any) -> None:
    """Makes a function of a library, as ctypes has it, what custom calls of that name run on a CPU."""
    wrap = ctypes.pythonapi.PyCapsule_New
    wrap.restype, wrap.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    handler = wrap(ctypes.cast(function, ctypes.c_void_p), None, None)
    xla_client.register_custom_call_target(name, handler, platform="cpu", api_version=1)


def run(executable: Any, arguments: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    """Calls an executable; returns before the device has finished."""
    return executable.execute_sharded(arguments).consume_with_handlers(results)


def give_back_memory() -> None:
    """Returns to the system what loading programs took and left: glibc keeps it for each thread."""
    with contextlib.suppress(AttributeError):  # another library
        ctypes.CDLL(None).malloc_trim(0)


def fetch(array: Any) -> np.ndarray:
    """The values of an array, where they are if that can be; waits for the device."""
    try:
        return np.asarray(memoryview(array))
    except BufferError:  # memory of another device, or a type that Python has no name for
        return array._single_device_array_to_np_array_did_copy()[0]


def device_of(platform: str | None) -> XlaDevice:
    """The one device of a platform, or of jax's default, that all backends of a process share."""
    return _device_of(platform, os.environ.get("JAX_PLATFORMS", ""))


@cache
def _device_of(platform: str | None, default: str) -> XlaDevice:
    return XlaDevice(_client_of(platform, default))


def _client_of(platform: str | None, default: str) -> Any:
    named = platform or default
    if named == "cpu" or (not named and not any(map(importlib.util.find_spec, _PLUGINS))):
        return xla_client.make_cpu_client()
    from jax.extend.backend import get_backend

    try:
        return get_backend(platform)
    except RuntimeError as error:
        raise SystolicError(f"jax has no platform {platform!r} on this machine: {error}") from None
