"""The processor that programs run on: its name, its instructions, and the kind of machine that these make it.

Machines of a kind have vectors of the same width, so that the same programs are fast on them. What was
measured on one, packaged tables and results of benchmarks, is a guess for others of its kind, and none for
those of another.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INFO = Path("/proc/cpuinfo")
# In words, and what tells a kind: an instruction set by the name that Linux has for it, or an architecture,
# of which a system that tells no more is taken for the least. The first that fits.
KINDS: Mapping[str, tuple[str, frozenset[str]]] = {
    "avx512": ("AVX-512", frozenset({"avx512f"})),
    "avx2": ("AVX2", frozenset({"avx2"})),
    "sse": ("SSE", frozenset({"x86_64", "AMD64"})),
    "neon": ("NEON", frozenset({"aarch64", "arm64"})),
}
OTHER = "other"


@dataclass(frozen=True)
class Processor:
    """``instructions`` are names of instruction sets, where the system tells them."""

    architecture: str
    name: str
    instructions: str

    @property
    def kind(self) -> str:
        """One of ``KINDS``, or ``OTHER``."""
        known = {self.architecture, *self.instructions.split()}
        return next((kind for kind, (_, signs) in KINDS.items() if signs & known), OTHER)

    @property
    def description(self) -> str:
        """Whatever compiled code depends on: code for one processor may not run on another."""
        return "\n".join((self.architecture, self.name, self.instructions))


def this_processor() -> Processor:
    """The processor of this machine."""
    found, architecture = _described(), platform.machine()
    if not found:
        # Asks a program of the system, which takes as long as loading a library.
        return Processor(architecture, platform.processor() or architecture, "")
    name = found.get("model name", architecture)
    if "cpu family" in found:  # of the name itself, virtual machines tell little
        name += f" (family {found['cpu family']}, model {found.get('model', '?')})"
    return Processor(architecture, name, found.get("flags") or found.get("Features", ""))


def in_words(kind: str) -> str:
    """What a kind is called: its instructions, or the name itself of one that is no processor's."""
    return KINDS[kind][0] if kind in KINDS else kind


def _described() -> dict[str, str]:
    """What Linux tells of one core; empty on other systems."""
    try:
        lines = INFO.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in lines)
    return {key.strip(): value.strip() for key, value in pairs}
