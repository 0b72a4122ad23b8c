"""What stands at the edge of a graph, by name: all that whoever runs a program must know of it."""

from __future__ import annotations

from dataclasses import dataclass

from .types import TensorType, ValueType, show_type


@dataclass(frozen=True, slots=True)
class Port:
    """An input, a parameter or an output: its name, its type, and its clock (None: it never changes)."""

    name: str
    type: ValueType
    clock: str | None

    @property
    def tensor(self) -> TensorType:
        """The type where it is one value."""
        if not isinstance(self.type, TensorType):
            raise TypeError(f"{self.name} is several values: {show_type(self.type)}")
        return self.type


@dataclass(frozen=True)
class Signature:
    """The ports of a graph, each kind in its order."""

    inputs: tuple[Port, ...]
    parameters: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def output(self, name: str) -> Port:
        """The output of that name; ``KeyError`` if there is none."""
        return {port.name: port for port in self.outputs}[name]
