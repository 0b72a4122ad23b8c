"""Where programs run: NumPy source, and StableHLO compiled by XLA."""

from __future__ import annotations

from pathlib import Path

from ..ir.errors import SystolicError
from .interface import Arrays, Backend, Lowered, Prepared

BACKENDS = ("numpy", "xla")


def backend_named(name: str, cache_directory: Path | None = None) -> Backend:
    """The backend of that name; ``SystolicError`` with the choices if there is none.

    ``numpy:TARGET`` runs contractions as loops over the tiles of a target (a name, or a TOML file).
    ``cache_directory`` is where a backend that compiles keeps what it compiled; None is its default.
    """
    kind, _, target = name.partition(":")
    if kind == "numpy":
        from ..compiler.cost.targets import load_target
        from .numpy_backend import NumpyBackend

        return NumpyBackend(load_target(target) if target else None)
    if name == "xla":
        from .xla import XlaBackend  # loads jaxlib

        return XlaBackend(cache_directory=cache_directory)
    raise SystolicError(f"there is no backend {name!r}; the backends are {' and '.join(BACKENDS)}")


__all__ = ["BACKENDS", "Arrays", "Backend", "Lowered", "Prepared", "backend_named"]
