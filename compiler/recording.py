"""What one run of a traced function collects beside the nodes: scopes, weights, feedbacks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType

from ..ir.errors import GraphError, Location
from ..ir.graph import Node

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INTERNAL = tuple(os.path.join(_PACKAGE, folder) + os.sep for folder in ("ir", "compiler"))


@dataclass
class OpenFeedback:
    """A feedback node, where it was made, and the stream that it is closed onto, once it is."""

    node: Node
    location: Location | None
    value: Node | None = None


@dataclass
class Trace:
    """Scopes that are open, weights by name, and feedbacks that were made."""

    scopes: list[str] = field(default_factory=list)
    parameters: dict[str, Node] = field(default_factory=dict)
    feedback: list[OpenFeedback] = field(default_factory=list)


running_trace: ContextVar[Trace | None] = ContextVar("systolic_trace", default=None)


def current_trace() -> Trace:
    """The trace that is running; ``GraphError`` outside of ``sy.trace``."""
    running = running_trace.get()
    if running is None:
        raise GraphError("streams can be made only inside a function that sy.trace runs", user_location())
    return running


def user_location() -> Location | None:
    """The innermost line of source outside of the compiler itself."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_INTERNAL) and "contextlib" not in file:
            return Location(
                os.path.relpath(file, _PACKAGE) if file.startswith(_PACKAGE) else file, frame.f_lineno
            )
        frame = frame.f_back
    return None


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Names the part of the model that the block computes, for instance ``layers.3``."""
    scopes = current_trace().scopes
    scopes.append(name)
    try:
        yield
    finally:
        scopes.pop()
