"""Compiles StableHLO text with XLA and runs it, through jaxlib's public calls."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform as host
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.extend.backend import get_backend, get_compile_options
from jax.extend.mlir.dialects import stablehlo
from jax.sharding import SingleDeviceSharding

from ..compiler.program import STATE_PREFIX, Program
from ..ir.errors import SystolicError
from ..ir.types import DTYPES
from .cache import default_cache_directory, read_entry, write_entry
from .interface import Arrays, Lowered
from .native.build import load_kernels
from .stablehlo import emit_stablehlo

SMALL = 1 << 16  # bytes of an input; larger ones are copied as seldom as can be
PORTABLE_VERSION = "1.1.0"  # of StableHLO: the first that can scatter into rows side by side


def portable_artifact(text: str) -> bytes:
    """StableHLO text in the form that later (and somewhat earlier) releases of XLA load, too."""
    return stablehlo.serialize_portable_artifact_str(text, PORTABLE_VERSION)


@dataclass(frozen=True)
class Compiled:
    """An executable; how long it took to get, and whether it came from the cache."""

    executable: Any
    seconds: float
    from_cache: bool


class XlaProgram:
    """A compiled program. ``run`` returns before the device has finished; ``fetch`` waits for it."""

    def __init__(self, program: Program, text: str, compiled: Compiled, backend: XlaBackend) -> None:
        self.program = program
        self.text = text
        self.executable = compiled.executable
        self.compile_seconds = compiled.seconds
        self.from_cache = compiled.from_cache
        self._backend = backend
        self._parameters = [node.name for node in program.graph.parameters]
        self._inputs = [node.name for node in program.graph.inputs]
        self._outputs = list(program.graph.outputs)
        self._has_run = False

    def run(
        self, parameters: Arrays, inputs: Arrays, states: Arrays
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One call; see ``Prepared.run``. NumPy arrays are placed first, which copies them every time."""
        arguments = [parameters[name] for name in self._parameters]
        for name in self._inputs:
            is_state = name.startswith(STATE_PREFIX)
            arguments.append(states[name.removeprefix(STATE_PREFIX)] if is_state else inputs[name])
        results: dict[str, Any] = {}
        updated: dict[str, Any] = {}
        for name, array in zip(self._outputs, self.executable.execute(self._placed(arguments)), strict=True):
            short = name.removeprefix(STATE_PREFIX)
            (results if short == name else updated)[short] = array
        return results, updated

    def _placed(self, arguments: list[Any]) -> list[Any]:
        """The arguments on the device. From the second call on, small arrays are placed together: that takes
        a tenth of the time, but the function that does it is compiled for their shapes."""
        given = [place for place, array in enumerate(arguments) if isinstance(array, np.ndarray)]
        arrays = [arguments[place] for place in given]
        is_together = self._has_run and all(a.dtype.itemsize < 8 and a.nbytes <= SMALL for a in arrays)
        on_device = self._backend.place_together(arrays) if is_together else map(self._backend.place, arrays)
        self._has_run = True
        filled = list(arguments)
        for place, array in zip(given, on_device, strict=True):
            filled[place] = array
        return filled

    @property
    def optimized_text(self) -> str:
        """The HLO that XLA made of the program."""
        return self.executable.hlo_modules()[0].to_string()

    @property
    def memory(self) -> Any:
        """Bytes of arguments, outputs, donated and temporary memory, as XLA planned them."""
        return self.executable.get_compiled_memory_stats()


class XlaBackend:
    """XLA on one device: the first of ``platform`` (``cpu``, ``gpu``, ``tpu``), or of jax's default.

    On a CPU, ``native`` kernels compute what they are faster at, where a C++ compiler can build them.
    Compiled programs are kept in ``cache_directory`` (None is the user's cache directory) and are found
    again by their text, the release of jaxlib and the kind of machine.
    """

    name = "xla"
    alignment = 64

    def __init__(
        self, platform: str | None = None, cache_directory: Path | None = None, *, native: bool = True
    ) -> None:
        try:
            self._client = get_backend(platform)
        except RuntimeError as error:
            raise SystolicError(f"jax has no platform {platform!r} on this machine: {error}") from None
        self.device = self._client.local_devices()[0]
        self.cache_directory = default_cache_directory() if cache_directory is None else cache_directory
        is_native = native and self._client.platform == "cpu"
        # One place for all, whatever the directory of programs: a process can register a kernel only once.
        self.kernels = load_kernels(default_cache_directory(), processor()) if is_native else None

    @property
    def lowering(self) -> str:
        """What the text of a program depends on, beside the program."""
        return f"xla {self.kernels.version if self.kernels else ''}"

    def lower(self, program: Program) -> Lowered:
        """The program as StableHLO."""
        return Lowered(program, emit_stablehlo(program, self.kernels))

    def load(self, lowered: Lowered) -> XlaProgram:
        """Compiles the text, or loads what an earlier process compiled. Threads may do so side by side."""
        return XlaProgram(lowered.program, lowered.text, self.compile(lowered.text), self)

    def prepare(self, program: Program) -> XlaProgram:
        """Emits and compiles the program, or loads what an earlier process compiled."""
        return self.load(self.lower(program))

    def place(self, array: np.ndarray) -> Any:
        """Moves an array to the device; 64-bit types stay as they are."""
        if array.dtype.itemsize == 8:
            with jax.enable_x64(True):
                return jax.device_put(array, self.device)
        return jax.device_put(array, self.device)

    @cached_property
    def place_together(self) -> Callable[[list[np.ndarray]], list[Any]]:
        """Places arrays of at most 32-bit types in one call, which jax does without leaving C++."""
        place = SingleDeviceSharding(self.device)
        return jax.jit(lambda arrays: list(map(jnp.copy, arrays)), in_shardings=place, out_shardings=place)

    def fetch(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.place(np.zeros(shape, DTYPES[dtype]))

    def compile(self, module: str | bytes) -> Compiled:
        """Compiles StableHLO text or a portable artifact, or loads it from the cache."""
        started = time.perf_counter()
        entry = self.cache_directory / f"{self._key(module)}.xla"
        executable = self._load(entry)
        from_cache = executable is not None
        if executable is None:
            executable = self._client.compile_and_load(module, [self.device], self._options)
            with contextlib.suppress(RuntimeError):  # what cannot be serialised is not kept
                write_entry(entry, executable.serialize())
        return Compiled(executable, time.perf_counter() - started, from_cache)

    @cached_property
    def _options(self) -> Any:
        devices = np.array([[self.device]])
        return get_compile_options(num_replicas=1, num_partitions=1, device_assignment=devices)

    @cached_property
    def _machine(self) -> str:
        """Whatever compiled code depends on beside the program."""
        client, device = self._client, self.device
        parts = [jaxlib.__version__, client.platform, client.platform_version, device.device_kind]
        return "\n".join([*parts, os.environ.get("XLA_FLAGS", ""), processor()])

    def _key(self, module: str | bytes) -> str:
        content = module.encode() if isinstance(module, str) else module
        return hashlib.sha256(self._machine.encode() + b"\n" + content).hexdigest()

    def _load(self, entry: Path) -> Any | None:
        """The executable stored at ``entry``; None if there is none that this release can load."""
        data = read_entry(entry)
        if data is None:
            return None
        try:
            return self._client.deserialize_executable(data, [self.device], self._options)
        except (RuntimeError, ValueError):
            return None  # compiling again replaces the entry


def processor() -> str:
    """The processor and its instruction sets: code compiled for one may not run on another."""
    described: Mapping[str, str] = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        pairs = (line.partition(":")[::2] for line in lines)
        described = {key.strip(): value.strip() for key, value in pairs}
    shown = [described.get(key, "") for key in ("model name", "flags", "Features")]
    return "\n".join([host.machine(), host.processor(), *shown])
