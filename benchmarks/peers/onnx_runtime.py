"""ONNX Runtime on a graph written from the same weights (``onnx_graph``), with caches written in place.

Integers are its ``MatMulNBits`` with a scale for each 32 weights, and activations rounded to int8.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from ..subjects import Subject
from . import Setting, Unavailable
from .onnx_gpt2 import OnnxGpt2
from .onnx_graph import BLOCK, OnnxLlama, OnnxModel

BITS = {"f32": None, "int8": 8, "int8-32": 8, "int4-32": 4}
GRAPHS: Mapping[str, type[OnnxModel]] = {"llama": OnnxLlama, "mistral": OnnxLlama, "gpt2": OnnxGpt2}
HEAD_MULTIPLE = 16  # values of a head that its attention rotates
TABLES = ("embedding", "places")  # of which a step takes a row
MEMORIES = {"cpu": "cpu", "gpu": "cuda"}
PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}


class OnnxRuntime:
    """A session, and the caches that its calls share."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.name = f"ONNX Runtime, {setting.dtype}"
        kind = subject.config["model_type"]
        graph = GRAPHS[kind](subject.config, subject.weights, setting.capacity, BITS[setting.dtype])
        model = graph.model().SerializeToString()
        self.weight_bytes = sum(array.nbytes for name, array in graph.arrays.items() if name not in TABLES)
        options = ort.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in graph.arrays.values()]
        options.add_external_initializers(list(graph.arrays), values)
        self._given = graph.arrays, values  # the session reads them where they are
        self._session = ort.InferenceSession(model, options, providers=[PROVIDERS[setting.device]])
        shape = (setting.rows, graph.key_heads, setting.capacity, graph.head_size)
        names = [f"{part}.{i}" for i in range(graph.layers) for part in ("key", "value")]
        place = MEMORIES[setting.device]
        empty = np.zeros(shape, np.float32)
        self._caches = {name: ort.OrtValue.ortvalue_from_numpy(empty.copy(), place) for name in names}
        self._has_positions = "positions" in [given.name for given in self._session.get_inputs()]
        self._newest = np.zeros(0, np.int32)
        self._seen = 0

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        self._seen = 0
        return self._read(prompts)

    def decode(self, count: int) -> np.ndarray:
        return np.stack([self._read(self._newest[:, None]) for _ in range(count)], axis=1)

    def _read(self, tokens: np.ndarray) -> np.ndarray:
        rows, length = tokens.shape
        self._seen += length
        binding = self._session.io_binding()
        binding.bind_cpu_input("tokens", tokens.astype(np.int64))
        if self._has_positions:
            binding.bind_cpu_input("positions", np.arange(self._seen - length, self._seen))
        binding.bind_cpu_input("past_lengths", np.full(rows, self._seen - 1, np.int32))
        binding.bind_cpu_input("total_length", np.array(self._seen, np.int32))
        for name, cache in self._caches.items():
            binding.bind_ortvalue_input(f"past_{name}", cache)
            binding.bind_ortvalue_output(name, cache)
        binding.bind_output("logits")
        self._session.run_with_iobinding(binding)
        logits = binding.get_outputs()[-1].numpy()
        self._newest = logits.argmax(axis=-1).astype(np.int32)
        return self._newest


def prepare(subject: Subject, setting: Setting) -> OnnxRuntime:
    kind = subject.config["model_type"]
    if kind not in GRAPHS:
        raise Unavailable(f"graphs are written for {', '.join(GRAPHS)}, not for {kind}")
    if setting.dtype not in BITS:
        raise Unavailable(f"its CPU products have no form of weights kept as {setting.dtype}")
    if PROVIDERS[setting.device] not in ort.get_available_providers():
        raise Unavailable(f"this build of it has no {PROVIDERS[setting.device]}")
    graph = GRAPHS[kind](subject.config, subject.weights, setting.capacity, None)
    if graph.head_size % HEAD_MULTIPLE:
        reason = f"its attention takes heads of a multiple of {HEAD_MULTIPLE} values, not {graph.head_size}"
        raise Unavailable(reason)
    widths = {array.shape[-1] for array in subject.weights.values() if array.ndim == 2}
    odd = next((width for width in sorted(widths) if width % BLOCK), None)
    if BITS[setting.dtype] and odd:
        raise Unavailable(f"its integers have a scale for each {BLOCK} weights, and a matrix is {odd} wide")
    return OnnxRuntime(subject, setting)
