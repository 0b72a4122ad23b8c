"""XLA's library, loaded while Python does something else.

It has 350 MB, and to put it into a process takes half as long as importing NumPy. While Python's own import
waits for it nothing else runs; the system's loader, called as any foreign function, lets other threads run.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path
from threading import Thread

NAME = "libjax_common.so"
LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL", "1"  # of the environment, as jax has it: read once, while it is loaded


def load_library_ahead() -> Thread | None:
    """Begins to load the library where it is known how; whoever imports jaxlib finds it, or waits for it."""
    if sys.platform != "linux" or "jaxlib" in sys.modules:
        return None
    found = importlib.util.find_spec("jaxlib")
    folders = found.submodule_search_locations if found else None
    library = Path(next(iter(folders)), NAME) if folders else None
    if library is None or not library.exists():
        return None
    os.environ.setdefault(*LOG_LEVEL)
    thread = Thread(target=_load, args=(library,), name="load xla")  # a process waits for it when it ends
    thread.start()
    return thread


def _load(library: Path) -> None:
    load = ctypes.CDLL(None).dlopen
    load.argtypes, load.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    load(os.fsencode(library), os.RTLD_NOW)
