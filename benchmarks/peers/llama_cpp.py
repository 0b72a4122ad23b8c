"""llama.cpp through llama-cpp-python's C interface, over a GGUF file written from the same weights.

Weights kept as int8 are its Q8_0, as int4-32 its Q4_0 (a scale for each 32). In f32 its caches are f32, too,
and its flash attention is off, which rounds to f16 whatever the caches are (logits differ by 0.005 with it,
by 0.00001 without); otherwise both are as by default. Files are written once, to ``gguf`` in systolic's cache
directory of the user, and mapped. Its threads spin for a while after a call: what runs next waits.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from systolic.backends.xla import default_cache_directory

from ..subjects import Subject
from . import Setting, Unavailable, gguf_file

LARGEST_BATCH = 512  # positions per call, its default
GGML_F32 = 0
ALL_LAYERS = 999
NAMES = {"int8": "Q8_0", "int4-32": "Q4_0"}  # what it calls them


class LlamaCpp:
    """A context of llama.cpp with one sequence for each row."""

    def __init__(self, path: Path, subject: Subject, setting: Setting) -> None:
        self.name = f"llama.cpp, {NAMES.get(setting.dtype, setting.dtype)}"
        self.weight_bytes = weight_bytes(path)
        self._rows, self._vocabulary = setting.rows, subject.vocabulary_size
        _quieten()
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.n_gpu_layers = ALL_LAYERS if setting.device == "gpu" else 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_parameters)
        assert self._model, f"llama.cpp cannot read {path}"
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = setting.capacity * setting.rows
        parameters.n_seq_max = setting.rows
        parameters.n_batch = parameters.n_ubatch = LARGEST_BATCH
        parameters.n_threads = parameters.n_threads_batch = setting.threads
        if setting.dtype == "f32":
            parameters.type_k = parameters.type_v = GGML_F32
            parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        assert self._context, "llama.cpp cannot make a context"
        self._batch = llama_cpp.llama_batch_init(LARGEST_BATCH, 0, 1)
        self._newest = np.zeros(0, np.int32)
        self._seen = 0
        atexit.register(self._free)

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        rows, length = prompts.shape
        per_call = LARGEST_BATCH // rows
        for start in range(0, length, per_call):
            part = prompts[:, start : start + per_call]
            self._read(part, start, is_last=start + per_call >= length)
        self._seen = length
        return self._choose()

    def decode(self, count: int) -> np.ndarray:
        chosen = []
        for _ in range(count):
            self._read(self._newest[:, None], self._seen, is_last=True)
            self._seen += 1
            chosen.append(self._choose())
        return np.stack(chosen, axis=1)

    def _read(self, tokens: np.ndarray, start: int, *, is_last: bool) -> None:
        """Tokens [rows, n] from position ``start`` on; logits of the last position of each row."""
        batch = self._batch
        rows, length = tokens.shape
        batch.n_tokens = rows * length
        for at in range(rows * length):
            row, column = divmod(at, length)
            batch.token[at] = int(tokens[row, column])
            batch.pos[at] = start + column
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = row
            batch.logits[at] = is_last and column == length - 1
        status = llama_cpp.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode returned {status}"

    def _choose(self) -> np.ndarray:
        logits = llama_cpp.llama_get_logits(self._context)
        table = np.ctypeslib.as_array(logits, shape=(self._rows, self._vocabulary))
        self._newest = table.argmax(axis=1).astype(np.int32)
        return self._newest

    def _free(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


def weight_bytes(path: Path) -> int:
    """What the tensors of a file come to."""
    import gguf

    return int(sum(tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors))


@llama_cpp.llama_log_callback
def _ignore(level: int, text: bytes, data: Any) -> None:
    """Takes what llama.cpp logs."""


def _quieten() -> None:
    llama_cpp.llama_log_set(_ignore, ctypes.c_void_p(0))


def gguf_path(subject: Subject, dtype: str) -> Path:
    """Where the file of a subject is kept, by its shape, some of its weights, and how files are written."""
    writer = Path(gguf_file.__file__).read_bytes()
    digest = hashlib.sha256(writer + repr(sorted(subject.config.items())).encode())
    for name, array in sorted(subject.weights.items()):
        digest.update(name.encode() + array.ravel()[:64].tobytes())
    folder = default_cache_directory().parent / "gguf"
    return folder / f"{subject.name}-{dtype}-{digest.hexdigest()[:12]}.gguf"


def file_of(subject: Subject, setting: Setting) -> Path:
    """The subject as a GGUF file, written if it is not there; ``Unavailable`` if it cannot be."""
    if subject.config["model_type"] not in gguf_file.ARCHITECTURES:
        known = ", ".join(gguf_file.ARCHITECTURES)
        reason = (
            "its Llama has no sliding window" if subject.window else f"a file is written for {known} only"
        )
        raise Unavailable(reason)
    if setting.dtype not in gguf_file.TYPES:
        raise Unavailable(f"a file is written as {', '.join(gguf_file.TYPES)}, not as {setting.dtype}")
    path = gguf_path(subject, setting.dtype)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        gguf_file.write_gguf(subject, setting.dtype, partial)
        partial.replace(path)
    return path


def prepare(subject: Subject, setting: Setting) -> LlamaCpp:
    if setting.device == "gpu" and not llama_cpp.llama_supports_gpu_offload():
        raise Unavailable("this build of it has no GPU")
    return LlamaCpp(file_of(subject, setting), subject, setting)
