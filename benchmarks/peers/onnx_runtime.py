"""ONNX Runtime on a graph written from the same weights (``onnx_graph``), with caches written in place.

Integers are its ``MatMulNBits`` with a scale for each 32 weights, and activations rounded to int8.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from ..subjects import Subject
from . import Setting, Unavailable
from .onnx_graph import OnnxLlama

BITS = {"f32": None, "int8": 8, "int8-32": 8, "int4-32": 4}


class OnnxRuntime:
    """A session, and the caches that its calls share."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.name = f"ONNX Runtime, {setting.dtype}"
        llama = OnnxLlama(subject.config, subject.weights, setting.capacity, BITS[setting.dtype])
        model = llama.model().SerializeToString()
        self.weight_bytes = sum(array.nbytes for name, array in llama.arrays.items() if name != "embedding")
        options = ort.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in llama.arrays.values()]
        options.add_external_initializers(list(llama.arrays), values)
        self._given = llama.arrays, values  # the session reads them where they are
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        shape = (setting.rows, llama.key_heads, setting.capacity, llama.head_size)
        names = [f"{part}.{i}" for i in range(llama.layers) for part in ("key", "value")]
        self._caches = {name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for name in names}
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
    if subject.config["model_type"] != "llama":
        reason = (
            "its caches have no ring for a window" if subject.window else "a graph is written for Llamas only"
        )
        raise Unavailable(reason)
    if setting.dtype not in BITS:
        raise Unavailable(f"its CPU products have no form of weights kept as {setting.dtype}")
    return OnnxRuntime(subject, setting)
