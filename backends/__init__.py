"""Where programs run: NumPy source, and StableHLO compiled by XLA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.errors import SystolicError

if TYPE_CHECKING:
    from .interface import Backend

BACKENDS = ("numpy", "xla")
ROLLING = ("auto", "always", "never")


def backend_named(name: str, cache_directory: Path | None = None, roll: str = "auto") -> Backend:
    """The backend of that name; ``SystolicError`` with the choices if there is none.

    ``numpy:TARGET`` runs contractions as loops over the tiles of a target (a name, or a TOML file).
    ``cache_directory`` is where a backend that compiles keeps what it compiled; None is its default. ``roll``
    is one of ``ROLLING``: whether layers that repeat become one loop body where that is possible.
    """
    kind, _, target = name.partition(":")
    if kind == "numpy":
        from ..compiler.cost.targets import load_target
        from .numpy_backend import NumpyBackend

        if roll == "always":
            raise SystolicError("the numpy backend writes every layer; roll must be auto or never")
        return NumpyBackend(load_target(target) if target else None)
    if name == "xla":
        from .xla import XlaBackend  # loads jaxlib

        return XlaBackend(cache_directory=cache_directory, roll=roll)
    raise SystolicError(f"there is no backend {name!r}; the backends are {' and '.join(BACKENDS)}")
