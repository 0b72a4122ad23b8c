"""Contestants: a module for each with one function, ``prepare``. A new peer is one more row of ``PEERS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol

import numpy as np

from ..subjects import Subject


class Unavailable(Exception):
    """Why a contestant does not take part: a package is absent, or it has no such form of the model."""


@dataclass(frozen=True)
class Setting:
    """What a contestant is prepared for: ``dtype`` is how weights are kept (f32, bf16, int8 …), and each of
    ``rows`` texts has room for ``capacity`` positions. All use ``threads`` of a CPU, or a ``device``."""

    dtype: str = "f32"
    rows: int = 1
    capacity: int = 1024
    threads: int = 2
    device: str = "cpu"


class Contestant(Protocol):
    """A model that reads and continues ``rows`` texts side by side, always with the likeliest token."""

    name: str
    weight_bytes: int  # what one step reads of the weights, as they are kept

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        """Begins anew, reads i32[rows, T] and returns the token behind each row, i32[rows]."""

    def decode(self, count: int) -> np.ndarray:
        """``count`` more tokens of each row: i32[rows, count]."""


Prepare = Callable[[Subject, Setting], Contestant]
PEERS: Mapping[str, str] = {
    "jax": "jax_by_hand",
    "transformers": "transformers_eager",
    "torch-compile": "transformers_compiled",
    "llama.cpp": "llama_cpp",
    "onnxruntime": "onnx_runtime",
    "openvino": "openvino_runtime",
}
OURS = "systolic"
FORMAT = "ours-"  # with a format of weights behind it: ours, once more


def is_ours(peer: str) -> bool:
    return peer == OURS or peer.startswith(FORMAT)


def prepare(peer: str, subject: Subject, setting: Setting) -> Contestant:
    """A contestant of ``PEERS``, or ours; ``Unavailable`` with the reason where it cannot take part."""
    if not is_ours(peer) and peer not in PEERS:
        raise SystemExit(f"no peer is called {peer}; known: {', '.join(PEERS)}, ours-FORMAT")
    if peer.startswith(FORMAT):
        setting = replace(setting, dtype=peer.removeprefix(FORMAT))
    module = "ours" if is_ours(peer) else PEERS[peer]
    try:
        make: Prepare = import_module(f".{module}", __package__).prepare
    except ImportError as error:
        raise Unavailable(f"{error.name or error} is not installed (pip install '.[benchmarks]')") from None
    return make(subject, setting)
