"""The models that come with the package: a directory each, laid out like any checkpoint."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "shakespeare"


def embedded_models() -> dict[str, Path]:
    """The directories of the embedded models by name."""
    root = Path(__file__).parent
    return {config.parent.name: config.parent for config in sorted(root.glob("*/config.json"))}
