"""The shape of the code: imports point one way, files stay small, examples run."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each folder, and the folders of ours that it may import.
MAY_IMPORT = {
    "ir": {"ir"},
    "compiler": {"ir", "compiler"},
    "backends": {"ir", "compiler", "backends"},
    "models": {"ir", "compiler", "models"},
    "runner": {"ir", "compiler", "backends", "models", "runner"},
}
FILES = sorted(file for folder in MAY_IMPORT for file in (ROOT / folder).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Absolute names of what a file imports; our own modules begin with their folder."""
    inside = file.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - node.level + 1]
            found.add(".".join((*base, *(node.module or "").split("."))).strip("."))
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    folder = file.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported(file)} & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[folder]


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.relative_to(ROOT).parts[0] == "ir"], ids=lambda f: f.stem
)
def test_ir_knows_no_jax(file):
    assert not {name for name in imported(file) if name.split(".")[0] in ("jax", "jaxlib")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_stay_small(file):
    assert len(file.read_text().splitlines()) <= 400


def test_families_know_no_cache_mask_or_batch():
    words = ("cache", "mask", "batch")
    for file in sorted((ROOT / "models" / "families").glob("[!_]*.py")):
        # But for how configs call a width, and what hides parts of a sound in training.
        text = re.sub(r'"(conv_l_cache|mask_(feature|time)_\w+)"', "", file.read_text().lower())
        assert not [word for word in words if word in text], file.name


def test_the_wheel_holds_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {file.parent for file in FILES if file.name == "__init__.py"}
    named = {".".join(("systolic", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert set(listed) == named | {"systolic"}
