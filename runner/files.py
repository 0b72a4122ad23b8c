"""Reading texts; writing results, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..ir.errors import SystolicError

MANIFEST = "manifest.json"  # of a directory of compiled programs


def is_compiled(path: str | Path) -> bool:
    """Whether ``path`` is a directory of compiled programs."""
    return (Path(path) / MANIFEST).is_file()


def read_text(file: Path) -> str:
    """The text in a file, line ends as they are; ``SystolicError`` if it cannot be had, or is not UTF-8."""
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise SystolicError(f"{file} is not a text in UTF-8") from None
    except OSError as error:
        raise SystolicError(f"{file} cannot be read: {error.strerror}") from None


def write_file(path: Path, content: str | bytes, *, force: bool = False) -> None:
    """Writes a file that appears complete; an existing one is an error unless ``force``."""
    if path.exists() and not path.is_file():
        raise SystolicError(f"{path} is not a regular file; expected the name of a file to write")
    if path.exists() and not force:
        raise SystolicError(f"{path} exists already; --force overwrites it")
    _require_parent(path)
    with _beside(path) as folder:
        (folder / path.name).write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(folder / path.name, path)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which gets the name ``path`` when the block ends without an error."""
    if path.exists() or path.is_symlink():
        raise SystolicError(f"{path} exists already; expected the name of a directory to create")
    _require_parent(path)
    with _beside(path) as folder:
        filled = folder / path.name
        filled.mkdir()
        yield filled
        os.rename(filled, path)


def _require_parent(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise SystolicError(f"{path} cannot be written: {path.absolute().parent} is not a directory")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary directory on the same file system, so that renaming is one step."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    except OSError as error:
        raise SystolicError(f"{path} cannot be written: {error.strerror}") from None
    try:
        yield folder
    except OSError as error:
        raise SystolicError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
