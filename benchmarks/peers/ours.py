"""Our own programs, as ``sy.compile`` makes them: prompts in chunks, then the decode loop on the device.

A contestant called ``ours-FORMAT`` is the same with weights kept in another format of the same numbers. They
run where jax was told to: ``machine.choose``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

import systolic as sy
from systolic.ir.graph import Graph, Node
from systolic.ir.types import DTYPES
from systolic.models.compact import keep_compact
from systolic.models.load import COMPACT, WEIGHT_DTYPES
from systolic.models.precision import keep_weights_as
from systolic.runner.decode_loop import LONGEST_CALL, DecodeLoop
from systolic.runner.generate import Generation, sampling_row

from ..subjects import Subject
from . import Setting, Unavailable


class Ours:
    """An executable and the loop that continues its rows."""

    def __init__(self, name: str, executable: sy.Executable) -> None:
        self.name = name
        self.executable = executable
        self.weight_bytes = bytes_per_step(executable.model.graph)
        self._loop: DecodeLoop | None = None
        self._newest = np.zeros(0, np.int32)

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        rows, length = prompts.shape
        settings = Generation(ignore_eos=True)
        sampling = [sampling_row(self.executable, length, settings, row) for row in range(rows)]
        self._loop = DecodeLoop(self.executable, sampling, [()] * rows, lengths=[length] * rows)
        self._newest = self._loop.begin(prompts.tolist()).newest(prompts[:, -1])
        return self._newest

    def decode(self, count: int) -> np.ndarray:
        assert self._loop is not None
        parts = []
        for start in range(0, count, LONGEST_CALL):
            size = min(LONGEST_CALL, count - start)
            limits = np.full(len(self._newest), size, np.int32)
            parts.append(self._loop.make(self._newest, limits).tokens[:, :size])
            self._newest = parts[-1][:, -1]
        return np.concatenate(parts, axis=1)


def prepare(subject: Subject, setting: Setting) -> Ours:
    """Weights are kept as ``setting.dtype`` from the same arrays that the peers are given."""
    model = with_weights_as(subject, setting.dtype)
    executable = sy.compile(model, batch=setting.rows, capacity=setting.capacity)
    return Ours(f"systolic {setting.dtype}", executable)


def bytes_per_step(graph: Graph) -> int:
    """Bytes of the parameters that a step reads: not of tables of which it only takes rows."""

    def is_only_looked_up(node: Node) -> bool:
        return all(
            (user.op.name == "take" and user.sources[0] is node)
            or (user.op.name == "cast" and is_only_looked_up(user))
            for user in graph.users[node]
        )

    return sum(node.tensor.bytes for node in graph.parameters if not is_only_looked_up(node))


def with_weights_as(subject: Subject, dtype: str) -> sy.Model:
    """The subject as ``sy.load`` makes it with that dtype."""
    if dtype not in (*WEIGHT_DTYPES, *COMPACT):
        raise Unavailable(f"weights cannot be kept as {dtype}")
    graph, kept = subject.model.graph, subject.weights
    floats = COMPACT[dtype].dtype if dtype in COMPACT else dtype
    if floats != "f32":
        graph = keep_weights_as(graph, floats)
        types = {node.name: DTYPES[node.tensor.dtype] for node in graph.parameters}
        kept = {name: array.astype(types[name]) for name, array in kept.items()}
    compact: Mapping[str, np.ndarray] | None = kept
    if dtype in COMPACT:
        graph, compact = keep_compact(graph, kept, COMPACT[dtype])
    return replace(subject.model, graph=graph, weights=compact, dtype=dtype)
