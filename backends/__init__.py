"""Where programs run: NumPy source, and StableHLO compiled by XLA."""

from __future__ import annotations

from pathlib import Path

from ..ir.errors import SystolicError
from .interface import Arrays, Backend, Prepared

BACKENDS = ("numpy", "xla")


def backend_named(name: str, cache_directory: Path | None = None) -> Backend:
    """The backend of that name; ``SystolicError`` with the choices if there is none.

    ``cache_directory`` is where a backend that compiles keeps what it compiled; None is its default.
    """
    if name == "numpy":
        from .numpy_backend import NumpyBackend

        return NumpyBackend()
    if name == "xla":
        from .xla import XlaBackend  # loads jax, which takes a second or two

        return XlaBackend(cache_directory=cache_directory)
    raise SystolicError(f"there is no backend {name!r}; the backends are {' and '.join(BACKENDS)}")


__all__ = ["BACKENDS", "Arrays", "Backend", "Prepared", "backend_named"]
