"""Optimised HLO text as the TPU compiler prints it: operations, their cycles and tiles, aliased arguments.

The names of our nodes come through as ``op_name`` of an operation's metadata: that of a fusion is the name of
the operation it was built around, those of everything inside stand in the computation that it calls.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

_COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")
_OPERATION = re.compile(r"\s+(ROOT )?%(\S+) = ")
_ARRAY = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?|pred|token)\[([\d,]*)\](\{[^{}]*\})?")
_OPERAND = re.compile(r"%([^\s,()]+)")
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="((?:[^"\\]|\\.)*)"')
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+), \{\}")
_CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|true_computation|false_computation)=%([^\s,)]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONFIG = "backend_config="
_ENTERED = frozenset(("while", "conditional", "call"))  # what they call is scheduled like the entry
_BITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Array:
    """One array of a result: its element type, sizes, and layout text (``{1,0:T(8,128)S(1)}``)."""

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def is_on_chip(self) -> bool:
        """Whether it lies in vector memory, space 1, or in the common memory that v4 has, space 3."""
        return "S(1)" in self.layout or "S(3)" in self.layout

    @property
    def order(self) -> str:
        """Which axis is the fastest, and the tiles, whatever memory it lies in."""
        return re.sub(r"S\(\d+\)", "", self.layout)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes without the padding of tiles."""
        bits = _BITS.search(self.dtype)
        return self.elements * (int(bits.group()) if bits else 8) // 8


@dataclass(frozen=True)
class Operation:
    """One line of HLO. ``node`` is the name of ours that it was built around ("" if it has none)."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    node: str
    called: tuple[str, ...]
    config: Mapping[str, Any] = field(repr=False)
    is_root: bool = False

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate for one run; None where it gives none."""
        text = self._window.get("estimated_cycles")
        return None if text is None else int(text)

    @property
    def scheduled_cycles(self) -> int | None:
        """Cycles of the instructions as they are scheduled, all operands at hand; None unless the program was
        compiled for that (``compile_for_tpu`` with ``scheduled``)."""
        text = self.config.get("bundle_analysis_data", {}).get("estimated_cycles")
        return None if text is None else int(text)

    @property
    def windows(self) -> dict[str, tuple[int, ...]]:
        """The compiler's tiles of kernel, output and input in hardware tiles, and how many of them."""
        names = ("kernel_window_bounds", "output_window_bounds", "input_window_bounds", "iteration_bounds")
        found = {name.partition("_")[0]: tuple(map(int, self._window.get(name, ()))) for name in names}
        return {name: bounds for name, bounds in found.items() if bounds}

    @property
    def emitter(self) -> str | None:
        """The algorithm of a matrix product on the arrays."""
        return self.config.get("convolution_algorithm_config", {}).get("emitter")

    @property
    def trips(self) -> int:
        """How often a loop runs, as far as the compiler knows; 1 otherwise."""
        return int(self.config.get("known_trip_count", {}).get("n", 1))

    @property
    def _window(self) -> Mapping[str, Any]:
        return self.config.get("window_config", {})


@dataclass(frozen=True)
class Module:
    """An optimised module. ``aliases``: for each output that may take an argument's memory, that argument."""

    computations: Mapping[str, tuple[Operation, ...]]
    entry: str
    aliases: Mapping[int, int]

    @cached_property
    def scheduled(self) -> tuple[tuple[Operation, int], ...]:
        """What runs, in its order: the operations of the entry and of loops and branches, and how often."""
        found: list[tuple[Operation, int]] = []
        pending = [(self.entry, 1)]
        while pending:
            name, times = pending.pop()
            for operation in self.computations[name]:
                found.append((operation, times))
                if operation.opcode in _ENTERED:
                    pending += [(called, times * operation.trips) for called in operation.called]
        return tuple(found)

    def inside(self, operation: Operation) -> tuple[Operation, ...]:
        """What a fusion computes, fusions inside of it included; nothing for any other operation."""
        found: list[Operation] = []
        pending = list(operation.called) if operation.opcode == "fusion" else []
        while pending:
            for part in self.computations.get(pending.pop(), ()):
                found.append(part)
                pending += part.called if part.opcode == "fusion" else ()
        return tuple(found)

    def root(self, operation: Operation) -> Operation:
        """The operation that makes a fusion's result; any other operation itself."""
        parts = self.computations.get(operation.called[0], ()) if operation.opcode == "fusion" else ()
        return next((part for part in parts if part.is_root), operation)


def parse_module(text: str) -> Module:
    """The module of an HLO text; raises ``ValueError`` where it has no entry computation."""
    computations: dict[str, list[Operation]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (start := _OPERATION.match(line)):
            current.append(_operation(line, start))
    if not entry:
        raise ValueError("the HLO text has no ENTRY computation")
    parts = {name: tuple(operations) for name, operations in computations.items()}
    return Module(parts, entry, dict(_aliases(text.partition("\n")[0])))


def _aliases(header: str) -> Iterator[tuple[int, int]]:
    listed = header.partition("input_output_alias={")[2].partition("entry_computation_layout")[0]
    for output, argument in _ALIAS.findall(listed):
        yield int(output or 0), int(argument)


def _operation(line: str, start: re.Match[str]) -> Operation:
    type_end = _end_of_type(line, start.end())
    opcode, _, rest = line[type_end + 1 :].partition("(")
    config = rest.find(_CONFIG)
    attributes = rest if config < 0 else rest[:config]
    name = _OP_NAME.search(attributes)
    branches = ",".join(_BRANCHES.findall(attributes))
    return Operation(
        name=start[2],
        opcode=opcode,
        arrays=tuple(_array(found) for found in _ARRAY.finditer(line, start.end(), type_end)),
        operands=tuple(_OPERAND.findall(attributes[: _closing(attributes)])),
        node=name[1].partition(";")[0] if name else "",
        called=(*_CALLED.findall(attributes), *_OPERAND.findall(branches)),
        config={} if config < 0 else _json(rest, config + len(_CONFIG)),
        is_root=start[1] is not None,
    )


def _end_of_type(line: str, start: int) -> int:
    """Where the type that begins at ``start`` ends: a tuple at its parenthesis, an array at a space."""
    if line[start] != "(":
        return line.find(" ", start)
    return start + 2 + _closing(line[start + 1 :])


def _closing(text: str) -> int:
    """Where the parenthesis that was opened before ``text`` is closed."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found.group() == "(" else -1
        if not depth:
            return found.start()
    return len(text)


def _array(found: re.Match[str]) -> Array:
    sizes = tuple(int(size) for size in found[2].split(",") if size)
    return Array(found[1], sizes, found[3] or "")


def _json(text: str, start: int) -> Mapping[str, Any]:
    try:
        value = json.JSONDecoder().raw_decode(text, start)[0]
    except ValueError:
        return {}  # a kernel's own configuration, which need not be JSON
    return value if isinstance(value, dict) else {}
