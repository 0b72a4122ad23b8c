"""The TPU compiler without a TPU: StableHLO compiled ahead of time by libtpu, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..ir.errors import SystolicError

# Target: libtpu's name of the generation, the smallest topology that it accepts, and a kind of machine that
# has it. The program is compiled for one device of the topology: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
_GENERATIONS = {
    "tpu-v4": ("v4", "2x2x1", "v4-8"),
    "tpu-v5e": ("v5e", "2x2", "v5litepod-4"),
    "tpu-v5p": ("v5p", "2x2x1", "v5p-8"),
    "tpu-v6e": ("v6e", "2x2", "v6e-4"),
    "tpu-7x": ("tpu7x", "2x2x1", "tpu7x-8"),
}
# Nothing that lies on chip is written back whole. Otherwise the compiler brings a state in, updates a few
# slots of it there and writes all of it back, wherever on-chip memory has room for it.
_SETTINGS = "--xla_msa_max_outstanding_evictions=0"
# One process at a time can load libtpu; so long another one is waited for.
_LOCK_SECONDS = 600.0
_LOCK_PAUSE = 3.0
_LOCK_ERROR = "libtpu multi-process lockfile"


class RefusedError(SystolicError):
    """The compiler says no to a program, or ends while it compiles it."""


@dataclass(frozen=True, slots=True)
class TpuTarget:
    """A generation by our name (``tpu-v5e``) and a topology as libtpu calls it (``v5e:2x2``).

    ``chip``: libtpu's name of how a chip is divided into devices. v4 has by default two devices of 16 GB;
    ``megacore`` makes it one of 32 GB.
    """

    name: str
    topology: str
    chip: str = "default"

    @property
    def accelerator(self) -> str:
        return _GENERATIONS[self.name][2]


@dataclass(frozen=True, slots=True)
class TpuProgram:
    """What the compiler made of a program: optimised HLO, bytes by kind of memory, XLA's own roofline
    (``optimal_seconds``, ``flops``, ``bytes_accessed``; None where it has none), seconds of compiling."""

    text: str
    memory: Mapping[str, int]
    optimal_seconds: float | None
    flops: float | None
    bytes_accessed: float | None
    compile_seconds: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """A program that the compiler does not take, and its ``reason``."""

    reason: str


def parse_target(text: str) -> TpuTarget:
    """``tpu-v5e``, ``tpu-v5e:2x2`` or ``tpu-v4:2x2x1:megacore``; ``SystolicError`` for anything else."""
    name, colon, rest = text.partition(":")
    shape, _, chip = rest.partition(":")
    if name not in _GENERATIONS:
        expected = ", ".join(_GENERATIONS)
        raise SystolicError(f"target {text!r} has no compiler; expected one of {expected}, perhaps with :2x2")
    prefix, smallest, _ = _GENERATIONS[name]
    parts = shape.split("x")
    if colon and not (len(parts) in (2, 3) and all(part.isdecimal() for part in parts)):
        raise SystolicError(f"target {text!r} has no topology {shape!r}; expected one like {smallest}")
    return TpuTarget(name, f"{prefix}:{shape or smallest}", chip or "default")


def libtpu_version() -> str:
    """The release of libtpu; ``SystolicError`` if it is not installed."""
    if find_spec("libtpu") is None:
        raise SystolicError("compiling for a TPU needs libtpu: pip install 'systolic[tpu]' (684 MB, no TPU)")
    try:
        return version("libtpu")
    except PackageNotFoundError:
        return "unknown"


def compile_for_tpu(
    texts: Mapping[str, str], target: TpuTarget, *, scheduled: bool = False, prefetched: bool = True
) -> dict[str, TpuProgram]:
    """StableHLO texts by name, each compiled for one device of the target.

    ``scheduled``: operations also have the cycles of their scheduled instructions, which takes the compiler
    about four times as long. Without ``prefetched`` no program's arguments are on chip before it begins.
    Raises ``SystolicError`` if libtpu is absent or busy for ten minutes, ``RefusedError`` if it refuses one.
    """
    libtpu_version()
    with tempfile.TemporaryDirectory(prefix="systolic-tpu-") as place:
        folder = Path(place)
        request = {"topology": target.topology, "chip": target.chip, "programs": list(texts)}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        for name, text in texts.items():
            (folder / f"{name}.mlir").write_text(text, encoding="utf-8")
        settings = [_SETTINGS]
        if scheduled:
            settings.append(f"--xla_jf_dump_static_llo_profile_to={folder / 'profiles'}")
        if not prefetched:
            settings.append("--xla_max_cross_program_prefetches=0")
        _run(folder, target, " ".join(settings))
        return {name: _read(folder, name) for name in texts}


def compile_each(
    texts: Mapping[str, str], target: TpuTarget, *, scheduled: bool = False, prefetched: bool = True
) -> dict[str, TpuProgram | Refusal]:
    """As ``compile_for_tpu``, but one that is refused does not keep the others from being compiled."""
    try:
        return {**compile_for_tpu(texts, target, scheduled=scheduled, prefetched=prefetched)}
    except RefusedError as error:
        if len(texts) == 1:
            return dict.fromkeys(texts, Refusal(str(error)))
    listed, half = list(texts.items()), len(texts) // 2
    found: dict[str, TpuProgram | Refusal] = {}
    for part in (listed[:half], listed[half:]):
        found |= compile_each(dict(part), target, scheduled=scheduled, prefetched=prefetched)
    return found


def _run(folder: Path, target: TpuTarget, settings: str) -> None:
    command = [sys.executable, "-m", f"{__package__}.tpu_process", str(folder)]
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        done = subprocess.run(
            command, env=_environment(target, settings), capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        if _LOCK_ERROR not in done.stderr:
            raise RefusedError(f"libtpu cannot compile for {target.topology}: {_reason(done.stderr)}")
        if time.monotonic() > until:
            raise SystolicError("another process has held libtpu for ten minutes; only one can at a time")
        time.sleep(_LOCK_PAUSE)


def _reason(text: str) -> str:
    """The sentence in what a failed compiler wrote: the exception's message, without its traceback, or that
    of the check which ended it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line.partition("Error: ")[2] for line in lines if re.match(r"\S*Error: ", line)]
    fatal = [line.partition("] ")[2] for line in lines if re.match(r"F\d{4} \d\d:\d\d:", line)]
    return (raised or fatal or lines or ["it ended without a word"])[-1]


def _environment(target: TpuTarget, settings: str) -> dict[str, str]:
    """libtpu asks the machine's metadata server what it is on, unless it is told; the user's settings win."""
    return os.environ | {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": target.accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "LIBTPU_INIT_ARGS": f"{settings} {os.environ.get('LIBTPU_INIT_ARGS', '')}".strip(),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def _read(folder: Path, name: str) -> TpuProgram:
    figures: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return TpuProgram((folder / f"{name}.hlo").read_text(encoding="utf-8"), **figures)
