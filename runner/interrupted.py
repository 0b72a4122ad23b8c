"""How a process ends that Ctrl-C has interrupted: soon, and with nothing half written left.

What XLA compiles cannot be stopped, and Python waits for its threads when a process ends; interrupted once
more, it ends the interpreter while compiled code still needs it, which is a crash. So threads are left where
they are, and the process ends without them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import NoReturn

from ..backends.cache import WRITER, remove_half_written

INTERRUPTED_STATUS = 130  # as shells have it


def end_interrupted() -> NoReturn:
    """Ends the process once weights that are being written for the next start are; another Ctrl-C ends it
    without them."""
    signal.signal(signal.SIGINT, lambda number, frame: _end())
    writers = [thread for thread in threading.enumerate() if thread.name == WRITER]
    if writers and sys.stderr.isatty():
        print("writing weights for the next start; Ctrl-C once more spares that", file=sys.stderr)
    for thread in writers:
        thread.join()
    _end()


def _end() -> NoReturn:
    remove_half_written()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED_STATUS)
