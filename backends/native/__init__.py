"""Native kernels for XLA's CPU backend: built on the user's machine, chosen where they are faster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernels:
    """Registered kernels. ``version`` is a part of their names, so that a compiled program which was kept
    can never call another version than the one it was made for. Values of at most ``largest_fused`` elements
    are computed in fusions: beyond it XLA's own, which read memory once and use all threads, are faster."""

    version: str
    largest_fused: int = 1 << 13

    def target(self, name: str) -> str:
        """What StableHLO calls the kernel ``name``."""
        return f"systolic_{name}_{self.version}"
