"""A benchmark run in a process of its own: what it printed, what it found, how long it took."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Failed(Exception):
    """A benchmark that ended without results; one line that says how."""


@dataclass(frozen=True)
class Run:
    """``text`` is Markdown, ``results`` what was written as JSON; ``is_sound`` unless tokens differ."""

    command: str
    text: str
    results: Mapping[str, Any]
    seconds: float
    is_sound: bool


def run(module: str, options: str, limit: float | None = None) -> Run:
    """Runs ``python -m benchmarks.MODULE OPTIONS``; what it says beside its table goes to stderr.

    Raises ``Failed`` if it writes no results, or takes more than ``limit`` seconds.
    """
    command, started = f"python -m benchmarks.{module} {options}", time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        given = [sys.executable, "-m", f"benchmarks.{module}", *options.split(), "--out", str(file)]
        try:
            done = subprocess.run(given, stdout=subprocess.PIPE, text=True, check=False, timeout=limit)
        except subprocess.TimeoutExpired:
            raise Failed(f"{command} took more than {limit:.0f} s") from None
        if not file.exists():
            raise Failed(f"{command} failed with status {done.returncode}")
        results = json.loads(file.read_text(encoding="utf-8"))
    seconds = time.perf_counter() - started
    return Run(command, done.stdout.strip(), results, seconds, done.returncode == 0)
