"""OpenVINO on a graph written from the same weights (``openvino_graph``).

With bf16 it multiplies in bf16, with f32 everything is f32; int8 weights have a scale for each row, as ours
have.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino as ov

from ..subjects import Subject
from . import Setting, Unavailable
from .openvino_graph import OpenVinoGpt2, OpenVinoLlama

PRECISIONS = {"f32": "f32", "bf16": "bf16", "int8": "f32"}
GRAPHS: Mapping[str, type[OpenVinoLlama | OpenVinoGpt2]] = {
    "llama": OpenVinoLlama,
    "mistral": OpenVinoLlama,
    "gpt2": OpenVinoGpt2,
}


class OpenVino:
    """A compiled model and the request that holds its caches."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.name = f"OpenVINO, {setting.dtype}"
        kind = subject.config["model_type"]
        graph = GRAPHS[kind](subject.config, subject.weights, setting.dtype)
        options = {
            "INFERENCE_NUM_THREADS": setting.threads,
            "INFERENCE_PRECISION_HINT": PRECISIONS[setting.dtype],
            "KV_CACHE_PRECISION": "f32" if setting.dtype == "f32" else "f16",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if setting.dtype == "int8":
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 32
        compiled = ov.Core().compile_model(graph.model(), "CPU", options)
        self.weight_bytes = graph.weight_bytes
        self._request = compiled.create_infer_request()
        self._newest = np.zeros(0, np.int32)
        self._seen = 0

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        self._request.reset_state()
        self._seen = 0
        return self._read(prompts)

    def decode(self, count: int) -> np.ndarray:
        return np.stack([self._read(self._newest[:, None]) for _ in range(count)], axis=1)

    def _read(self, tokens: np.ndarray) -> np.ndarray:
        rows, length = tokens.shape
        positions = np.arange(self._seen, self._seen + length, dtype=np.int32)
        self._seen += length
        rows_in_order = np.arange(rows, dtype=np.int32)
        results = self._request.infer([tokens, positions, rows_in_order])
        self._newest = results[0].argmax(axis=-1).astype(np.int32)
        return self._newest


def prepare(subject: Subject, setting: Setting) -> OpenVino:
    kind = subject.config["model_type"]
    if kind not in GRAPHS:
        raise Unavailable(f"graphs are written for {', '.join(GRAPHS)}, not for {kind}")
    if setting.dtype not in PRECISIONS:
        raise Unavailable(f"graphs are written for {', '.join(PRECISIONS)}, not for {setting.dtype}")
    if setting.device != "cpu":
        raise Unavailable("its GPU plugin is for another maker's devices")
    return OpenVino(subject, setting)
