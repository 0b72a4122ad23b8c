"""transformers on torch, eager: its own model class, scaled-dot-product attention, a cache that grows."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.initialization import no_init_weights

from ..subjects import Subject
from . import Contestant, Setting, Unavailable

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # what torch calls them


class Transformers:
    """A model of the library and a cache; ``step`` is what is called, ``make_cache`` begins a text."""

    def __init__(self, name: str, model: Any, setting: Setting) -> None:
        self.name = f"{name}, {setting.dtype}"
        self.weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self._model = model
        self.step = model  # what reads one more token of each row
        self._cache: Any = None
        self._token = torch.zeros(0)

    def make_cache(self) -> Any:
        """An empty cache."""
        return DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        self._cache = self.make_cache()
        return self._read(self._model, self._placed(prompts), logits_to_keep=1)

    @torch.inference_mode()
    def decode(self, count: int) -> np.ndarray:
        return np.stack([self._read(self.step, self._token) for _ in range(count)], axis=1)

    def _placed(self, prompts: np.ndarray) -> Any:
        return torch.from_numpy(prompts).long().to(self._model.device)

    def _read(self, model: Any, tokens: Any, **options: Any) -> np.ndarray:
        output = model(input_ids=tokens, cache=self._cache, use_cache=True, **options)
        self._cache = getattr(output, "cache", self._cache)  # RecurrentGemma returns none, but fills it
        self._token = output.logits[:, -1].argmax(-1, keepdim=True)
        return self._token[:, 0].cpu().numpy().astype(np.int32)


def load_model(subject: Subject, setting: Setting) -> Any:
    """The library's model over the subject's arrays: shared in f32, copied otherwise."""
    if setting.dtype not in DTYPES:
        raise Unavailable(f"the library has no CPU kernels for weights kept as {setting.dtype}")
    if setting.device == "gpu" and not torch.cuda.is_available():
        raise Unavailable("this build of torch has no GPU")
    torch.set_num_threads(setting.threads)
    settings = {**subject.config, "torch_dtype": "float32"}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = {name: torch.from_numpy(array) for name, array in subject.weights.items()}
    if "rescale_every" in subject.config:  # RWKV divides weights in place, which all share
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    absent = [name for name in missing if not name.startswith("lm_head.")]
    assert [*absent, *unexpected] == [], (absent, unexpected)
    model = model.to(DTYPES[setting.dtype]).to(DEVICES[setting.device])
    gc.collect()
    return model


def prepare(subject: Subject, setting: Setting) -> Contestant:
    from . import torch_recurrent  # which builds on this module

    if subject.config["model_type"] == "lstm_lm":
        return torch_recurrent.Lstm(subject, setting)
    if subject.config["model_type"] == "rwkv":
        return torch_recurrent.Rwkv("transformers", load_model(subject, setting), setting)
    return Transformers("transformers", load_model(subject, setting), setting)
