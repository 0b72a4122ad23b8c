"""Python's garbage collector, paused while graphs are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Iterator[None]:
    """No search for garbage in the block, which a graph has none of: nodes only refer to older ones.

    The collector looks through all that is alive again whenever that has grown by a quarter, so it would take
    half of the time in which a deep model is compiled.
    """
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_collecting:
            gc.enable()
