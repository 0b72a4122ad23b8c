"""Builds ``kernels.cc`` and its headers with the machine's C++ compiler, once, and registers them with XLA.

Without a compiler there are no kernels, and programs run in plain StableHLO with the same results up to
rounding. A compiler that cannot build them is a warning.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import jaxlib

from ..cache import mark_used
from ..xla_device import register_kernel
from . import Kernels
from .calls import FOR_LAYER

SOURCE = Path(__file__).with_name("kernels.cc")
HEADERS = Path(jaxlib.__file__).with_name("include")  # of XLA's foreign function interface
COMPILERS = ("g++", "clang++", "c++")
# Numbers are rounded as written; only traps and errno, which nothing reads, are given up.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-w",
    "-fPIC",
    "-shared",
)
NAMES = (
    "project",
    "attend",
    "attend_scaled",
    "recur",
    "select",
    "advance",
    "route",
    "cosine",
    "sine",
    "fuse",
)
LAYER_NAMES = ("take_layer", "put_layer", "write_layer")
PLAIN_NAMES = ("blank", "argmax", "cut", "rank")  # not called in loops over layers


def load_kernels(directory: Path, processor: str) -> Kernels | None:
    """The kernels for this ``processor``, from ``directory`` or built into it; None where that fails."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    sources = [path.read_text(encoding="utf-8") for path in (*sorted(SOURCE.parent.glob("*.h")), SOURCE)]
    key = "\n".join((*sources, jaxlib.__version__, compiler, *FLAGS, processor))
    kernels = Kernels(hashlib.sha256(key.encode()).hexdigest()[:12])
    library = directory / f"kernels-{kernels.version}.so"
    if not library.exists() and not _build(compiler, library):
        return None
    mark_used(library)
    try:
        loaded = ctypes.CDLL(str(library))
        targets = {f"systolic_{name}": kernels.target(name) for name in (*NAMES, *LAYER_NAMES, *PLAIN_NAMES)}
        targets |= {f"systolic_{name}{FOR_LAYER}": kernels.target(name) + FOR_LAYER for name in NAMES}
        for symbol, target in targets.items():
            register_kernel(target, getattr(loaded, symbol))
    except (OSError, AttributeError):
        return None
    return kernels


@contextlib.contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """One process builds, which takes a core a minute, and others that start meanwhile wait for it.

    The system ends a turn with its process. Where it knows no turns, each builds for itself.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(directory, os.O_RDONLY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _build(compiler: str, library: Path) -> bool:
    """Writes the library whole or not at all; whether that worked."""
    failed = "native kernels could not be built, and programs run without them: "
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with _turn(library.parent), tempfile.TemporaryDirectory(dir=library.parent) as folder:
            if library.exists():
                return True  # another process has built it meanwhile
            built = Path(folder) / library.name
            command = [compiler, *FLAGS, "-I", str(HEADERS), str(SOURCE), "-o", str(built)]
            run = subprocess.run(command, capture_output=True, check=False, text=True)
            if run.returncode != 0:
                reason = next((line for line in run.stderr.splitlines() if "error" in line), compiler)
                warnings.warn(failed + reason, stacklevel=3)
                return False
            os.replace(built, library)
    except OSError as error:
        warnings.warn(failed + str(error), stacklevel=3)
        return False
    return True
