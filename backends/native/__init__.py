"""Native kernels for XLA's CPU backend: built on the user's machine, chosen where they are faster."""

from __future__ import annotations

from .build import Kernels, load_kernels

__all__ = ["Kernels", "load_kernels"]
