"""Recurrent models on torch without a cache of transformers: RWKV with its own state, and torch.nn.LSTM."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..subjects import Subject
from . import Setting, Unavailable
from .transformers_eager import Transformers


class Rwkv(Transformers):
    """The library's RWKV, which takes and returns its state."""

    def make_cache(self) -> Any:
        return None

    def _read(self, model: Any, tokens: Any, **options: Any) -> np.ndarray:
        output = model(input_ids=tokens, state=self._cache, use_cache=True, **options)
        self._cache = output.state
        self._token = output.logits[:, -1].argmax(-1, keepdim=True)
        return self._token[:, 0].cpu().numpy().astype(np.int32)


class Lstm:
    """torch.nn.LSTM between an embedding and a head."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        if setting.dtype != "f32":
            raise Unavailable(f"it has no form of weights kept as {setting.dtype}")
        if setting.device != "cpu":
            raise Unavailable("it is run on CPUs only")
        torch.set_num_threads(setting.threads)
        config, tensors = (
            subject.config,
            {name: torch.from_numpy(array) for name, array in subject.weights.items()},
        )
        self.name = f"torch.nn.LSTM, {setting.dtype}"
        self.weight_bytes = sum(array.nbytes for array in subject.weights.values())
        sizes = config["embedding_size"], config["hidden_size"], config["num_layers"]
        self._cells = torch.nn.LSTM(*sizes, batch_first=True).eval()
        own = {name.removeprefix("lstm."): t for name, t in tensors.items() if name.startswith("lstm.")}
        self._cells.load_state_dict(own)
        self._embedding = tensors["embedding.weight"]
        self._head, self._bias = tensors["head.weight"], tensors["head.bias"]
        self._state: Any = None
        self._token = torch.zeros(0)

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        self._state = None
        return self._read(torch.from_numpy(prompts).long())

    def decode(self, count: int) -> np.ndarray:
        return np.stack([self._read(self._token) for _ in range(count)], axis=1)

    @torch.inference_mode()
    def _read(self, tokens: Any) -> np.ndarray:
        outputs, self._state = self._cells(self._embedding[tokens], self._state)
        logits = torch.nn.functional.linear(outputs[:, -1], self._head, self._bias)
        self._token = logits.argmax(-1, keepdim=True)
        return self._token[:, 0].cpu().numpy().astype(np.int32)
