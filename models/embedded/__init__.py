"""The models that come with the package: a directory each, laid out like any checkpoint."""

from __future__ import annotations

from pathlib import Path

from ...ir.errors import SystolicError

DEFAULT = "shakespeare"


def embedded_models() -> dict[str, Path]:
    """The directories of the embedded models by name."""
    root = Path(__file__).parent
    return {config.parent.name: config.parent for config in sorted(root.glob("*/config.json"))}


def locate(path_or_name: str | Path) -> Path:
    """The directory or config.json of a model, or of an embedded one by its name; else ``SystolicError``."""
    path = Path(path_or_name)
    if path.is_dir() or path.is_file():
        return path
    known = embedded_models()
    if str(path_or_name) in known:
        return known[str(path_or_name)]
    names = f" ({', '.join(known)})" if known else ""
    raise SystolicError(
        f"{path_or_name}: is no model; expected a directory with config.json and *.safetensors, "
        f"a config.json, or the name of an embedded model{names}"
    )
