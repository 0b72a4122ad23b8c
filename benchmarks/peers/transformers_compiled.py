"""transformers on torch with torch.compile, as its documentation has it: steps compiled, a static cache."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from transformers import StaticCache

from ..subjects import Subject
from . import Setting, Unavailable
from .transformers_eager import Transformers, load_model

ATTENTION = ("llama", "mistral", "gpt2")


class Compiled(Transformers):
    """The prompt is read as it is without compiling, as the library does it, too."""

    def __init__(self, name: str, model: Any, setting: Setting) -> None:
        super().__init__(name, model, setting)
        self._capacity = setting.capacity
        self.step = torch.compile(model, dynamic=False)

    def make_cache(self) -> StaticCache:
        return StaticCache(config=self._model.config, max_cache_len=self._capacity)


def prepare(subject: Subject, setting: Setting) -> Compiled:
    if subject.config["model_type"] not in ATTENTION:
        raise Unavailable(f"{subject.config['model_type']} has no static cache in the library")
    if subject.window:
        raise Unavailable("the library's static cache of a window is compiled anew at each step")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise Unavailable("torch.compile needs a C++ compiler")
    return Compiled("torch.compile", load_model(subject, setting), setting)
