"""Compiles StableHLO text with XLA and runs it."""

from __future__ import annotations

import contextlib
import hashlib
import operator
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jaxlib
import numpy as np

from ..compiler.chunks import ChunkSeconds, nominal_seconds
from ..compiler.program import STATE_PREFIX, Program
from ..ir.graph import Graph
from ..ir.types import DTYPES, TensorType
from .cache import default_cache_directory, read_entry, write_entry
from .contractions.kept import kept_table
from .contractions.table import FormTable
from .interface import Arrays, Lowered
from .native import Kernels
from .native.build import load_kernels
from .processor import Processor, this_processor
from .xla_device import XlaDevice, device_of, fetch, give_back_memory, run

LARGE = 1 << 20  # bytes of zeros that are not made before they are written
PORTABLE_VERSION = "1.1.0"  # of StableHLO: the first that can scatter into rows side by side


def portable_artifact(text: str) -> bytes:
    """StableHLO text in the form that later (and somewhat earlier) releases of XLA load, too."""
    from jax.extend.mlir.dialects import stablehlo  # loads jax, which running does without

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
        self._device = backend.device
        self._rolling = backend.kernels, backend.roll, backend.forms
        signature = program.graph.signature
        self._parameters = [port.name for port in signature.parameters]
        self._inputs = [_place_of(port.name) for port in signature.inputs]
        self._outputs = [_place_of(port.name) for port in signature.outputs]
        self._results = backend.device.results(port.tensor for port in signature.outputs)
        self._last_weights: tuple[Arrays | None, list[Any]] = None, []

    def run(
        self, parameters: Arrays, inputs: Arrays, states: Arrays
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One call; see ``Prepared.run``. NumPy arrays are placed first, which copies them every time."""
        given = [(states if is_state else inputs)[name] for is_state, name in self._inputs]
        made = run(self.executable, [*self._weights(parameters), *self._placed(given)], self._results)
        results: dict[str, Any] = {}
        updated: dict[str, Any] = {}
        for (is_state, name), array in zip(self._outputs, made, strict=True):
            (updated if is_state else results)[name] = array
        return results, updated

    def _weights(self, parameters: Arrays) -> list[Any]:
        """The parameters in order; those of the last call need not be looked up again."""
        last, arrays = self._last_weights
        if last is parameters:
            return arrays
        given = [parameters[name] for name in self._parameters]
        placed = self._placed(given)
        if all(map(operator.is_, given, placed)):
            self._last_weights = parameters, placed
        return placed

    def _placed(self, arrays: list[Any]) -> list[Any]:
        place = self._device.place
        return [place(array) if isinstance(array, np.ndarray | np.generic) else array for array in arrays]

    @cached_property
    def layers(self) -> str:
        """How layers that repeat were compiled, and why."""
        from .native.layers import describe_layers  # only where it is asked for

        return describe_layers(self.program.graph, *self._rolling)

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

    On a CPU, ``native`` kernels compute what they are faster at, where a C++ compiler can build them, and
    products are written in the form that is the fastest in ``forms`` (None: the table of this machine).
    ``roll`` says whether layers that repeat become a loop: auto, always or never; see ``native.layers``.
    Compiled programs are kept in ``cache_directory`` (None is the user's cache directory) and are found
    again by their text, the release of jaxlib and the kind of machine.
    """

    name = "xla"
    is_asynchronous = True

    def __init__(
        self,
        platform: str | None = None,
        cache_directory: Path | None = None,
        *,
        native: bool = True,
        roll: str = "auto",
        forms: FormTable | None = None,
    ) -> None:
        self.device = device_of(platform)
        self.alignment = 64 if self.device.platform == "cpu" else 1
        self.cache_directory = default_cache_directory() if cache_directory is None else cache_directory
        self.roll = roll
        is_cpu = self.device.platform == "cpu"
        self.processor = this_processor()
        self.kernels = load_kernels_of(self.processor) if is_cpu and native else None
        self.forms = (forms or kept_table(self.measured_on, self.processor.kind)) if is_cpu else None
        self.loaded: list[Path] = []  # files of compiled programs, in the order in which they were asked for
        self._blanks: dict[TensorType, Any] = {}

    @property
    def lowering(self) -> str:
        """What the text of a program depends on, beside the program."""
        kernels, forms = self.kernels, self.forms
        parts = (kernels.version if kernels else "", forms.digest if forms else "", self.roll)
        return f"xla {' '.join(parts)}"

    @property
    def measured_on(self) -> str:
        """What the seconds in a table of forms depend on."""
        kernels = self.kernels.version if self.kernels else ""
        return "\n".join([jaxlib.__version__, kernels, str(os.cpu_count()), self.processor.description])

    def chunk_seconds(self, graph: Graph, rows: int, capacity: int) -> ChunkSeconds:
        """On a CPU from the table of measured products, elsewhere nominal."""
        if self.forms is None:
            return nominal_seconds(rows)
        from .contractions.chunk_seconds import chunk_seconds  # what was chosen once needs none of it

        has_kernels = self.kernels is not None
        return chunk_seconds(graph, self.forms, rows=rows, capacity=capacity, has_kernels=has_kernels)

    def faster_transposed(self, graph: Graph, rows: int) -> tuple[str, ...]:
        """On a CPU by the table of measured products; elsewhere XLA has a layout of its own."""
        if self.forms is None:
            return ()
        from .contractions.layout import faster_transposed  # what was chosen once needs none of it

        return faster_transposed(graph, self.forms, rows=rows, has_kernels=self.kernels is not None)

    def lower(self, program: Program) -> Lowered:
        """The program as StableHLO."""
        from .stablehlo import emit_stablehlo  # what an earlier process lowered needs none of it

        return Lowered(program, emit_stablehlo(program, self.kernels, self.forms, roll=self.roll))

    def load(self, lowered: Lowered) -> XlaProgram:
        """Compiles the text, or loads what an earlier process compiled. Threads may do so side by side."""
        compiled = self.compile(lowered.text)
        give_back_memory()
        return XlaProgram(lowered.program, lowered.text, compiled, self)

    def prepare(self, program: Program) -> XlaProgram:
        """Emits and compiles the program, or loads what an earlier process compiled."""
        return self.load(self.lower(program))

    def place(self, array: np.ndarray) -> Any:
        """Moves an array that nobody changes any more to the device."""
        return self.device.place(array, stays=True)

    def fetch(self, array: Any) -> np.ndarray:
        return fetch(array)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        type_ = TensorType(shape, dtype)
        if self.kernels is None or type_.bytes < LARGE:
            return self.device.place(np.zeros(shape, DTYPES[dtype]))
        if type_ not in self._blanks:
            from .native.calls import blank_program

            self._blanks[type_] = self.compile(blank_program(type_, self.kernels)).executable
        return run(self._blanks[type_], [], self.device.results([type_]))[0]

    def compile(self, module: str | bytes) -> Compiled:
        """Compiles StableHLO text or a portable artifact, or loads it from the cache."""
        started = time.perf_counter()
        entry = self.cache_directory / f"{self._key(module)}.xla"
        self.loaded.append(entry)
        executable = self._load(entry)
        from_cache = executable is not None
        if executable is None:
            executable = self.device.compile(module)
            with contextlib.suppress(RuntimeError):  # what cannot be serialised is not kept
                write_entry(entry, executable.serialize())
        return Compiled(executable, time.perf_counter() - started, from_cache)

    @cached_property
    def _machine(self) -> str:
        """Whatever compiled code depends on beside the program."""
        parts = [jaxlib.__version__, *self.device.description]
        return "\n".join([*parts, os.environ.get("XLA_FLAGS", ""), self.processor.description])

    def _key(self, module: str | bytes) -> str:
        content = module.encode() if isinstance(module, str) else module
        return hashlib.sha256(self._machine.encode() + b"\n" + content).hexdigest()

    def _load(self, entry: Path) -> Any | None:
        """The executable stored at ``entry``; None if there is none that this release can load."""
        return self.device.loaded_ahead(entry) or load_entry(self.device, entry)


def load_ahead(entries: Iterable[Path]) -> None:
    """Begins to load compiled programs that are likely to be asked for, where a process runs on a CPU."""
    device = device_of(None)
    if device.platform == "cpu":
        load_kernels_of(this_processor())  # which the programs call
        device.load_ahead({entry: partial(load_entry, device, entry) for entry in entries})


def load_kernels_of(processor: Processor) -> Kernels | None:
    """One place for all, whatever the directory of programs: a process can register a kernel only once."""
    return load_kernels(default_cache_directory(), processor.description)


def load_entry(device: XlaDevice, entry: Path) -> Any | None:
    """The executable stored at ``entry``; None if there is none that this release can load."""
    data = read_entry(entry)
    if data is None:
        return None
    try:
        return device.load(data)
    except (RuntimeError, ValueError):
        return None  # compiling again replaces the entry


def _place_of(name: str) -> tuple[bool, str]:
    """Whether an input or output is a state, and its name among those."""
    return name.startswith(STATE_PREFIX), name.removeprefix(STATE_PREFIX)
