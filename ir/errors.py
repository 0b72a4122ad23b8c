"""The errors that a user can cause. Each is one sentence that says what was expected."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """A line of the user's source: where a node was written."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class SystolicError(Exception):
    """A mistake in the input, told in one sentence; the command line prints it and exits with 2."""


class GraphError(SystolicError):
    """A graph or a traced function that breaks a rule; names the user's source line when known."""

    def __init__(self, message: str, location: Location | None = None) -> None:
        super().__init__(f"{location}: {message}" if location else message)
        self.message = message
        self.location = location


class CausalityError(GraphError):
    """An output that reads the future, with the path that leads there."""
