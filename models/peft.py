"""Adapters as the peft library writes them: adapter_config.json and adapter_model.safetensors.

A field of adapter_config.json is used, is known to change nothing once training is over, or is off (null,
false, empty); any other is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..ir.errors import SystolicError
from ..ir.types import DTYPES
from .spec import Config, read_config
from .weights import StoredTensor, read_file

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
F32 = DTYPES["f32"]

# Where an adapter comes from, and how it was trained.
_HARMLESS = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "runtime_config", "lora_dropout", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
    "ensure_weight_tying",
})  # fmt: skip
_LORA = frozenset({
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save", "bias", "use_rslora",
    "fan_in_fan_out", "use_dora", "init_lora_weights",
})  # fmt: skip
_PROMPT = frozenset({
    "peft_type", "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads",
    "num_layers", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path",
    "tokenizer_kwargs",
})  # fmt: skip
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # those that leave the model's weights alone

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.\w+?)??(\.weight)?")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.\w+?)??(\.weight)?")
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.\w+(?=\.))?)(?=\.)")


@dataclass(frozen=True, eq=False)
class Factors:
    """What LoRA adds to the weights of a module: ``scale`` * b @ a, which is [out, in].

    ``a`` is [r, in] and ``b`` [out, r]. ``magnitude`` [out] is DoRA's: the length that each row of the sum
    is brought to. ``is_table`` is for an embedding, whose weights are [in, out].
    """

    a: StoredTensor
    b: StoredTensor
    scale: float
    magnitude: StoredTensor | None = None
    is_table: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]"""
        return self.b.shape[0], self.a.shape[1]

    def sides(self, *, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
        """f32 left [rows, r] and right [r, columns], whose product is what is added; ``transposed`` where
        the weights are stored as [in, out]."""
        a, b = self.a.array(F32), self.b.array(F32) * np.float32(self.scale)
        return (a.T, b.T) if transposed else (b, a)

    def added_to(self, weights: np.ndarray, *, transposed: bool) -> np.ndarray:
        """The weights f32 with the adapter merged into them."""
        left, right = self.sides(transposed=transposed)
        merged = weights + left @ right
        if self.magnitude is None:
            return merged
        length = np.linalg.norm(merged, axis=0 if transposed else 1, keepdims=True)
        return merged * (self.magnitude.array(F32).reshape(length.shape) / length)


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter changes: ``factors`` by module, whole ``tensors`` by name, both as peft names them.

    ``bases`` are copies of weights that the adapter was trained beside. ``prompt`` [n, d] are learned
    embeddings that stand before every text. ``fan_in_fan_out``: weights are [in, out], where the model does
    not tell.
    """

    path: Path
    factors: Mapping[str, Factors] = field(default_factory=dict)
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    bases: Mapping[str, StoredTensor] = field(default_factory=dict)
    prompt: StoredTensor | None = None
    fan_in_fan_out: bool = False


def read_adapter(directory: str | Path) -> Adapter:
    """Reads an adapter; its tensors are mapped and not read.

    Raises ``SystolicError`` that names the file, and the field or tensor that is missing or not understood.
    """
    path = Path(directory)
    if not (path / CONFIG).is_file():
        raise SystolicError(f"{path}: is no adapter; expected a directory with {CONFIG} and {TENSORS}")
    config = read_config(path / CONFIG)
    if not (path / TENSORS).exists() and (path / "adapter_model.bin").exists():
        raise SystolicError(f"{path}: adapter_model.bin must be converted to {TENSORS}")
    tensors = read_file(path / TENSORS)
    for name, tensor in tensors.items():
        if not tensor.is_floating:
            raise SystolicError(f"{tensor.path}: tensor {name} is stored as {tensor.dtype}, not as floats")
    kind = config.text("peft_type")
    if kind == "LORA":
        return _read_lora(path, config, tensors)
    if kind == "PROMPT_TUNING":
        return _read_prompt(path, config, tensors)
    raise SystolicError(
        f"{config.source}: peft_type {kind} is not supported; LORA and PROMPT_TUNING are"
        + (": keys and values that no token has made are learned, not embeddings" if "PREFIX" in kind else "")
        + (": its embeddings come from an encoder of their own" if kind == "P_TUNING" else "")
    )


def _refuse_unknown(config: Config, known: frozenset[str]) -> None:
    for name, value in config.values.items():
        is_off = value is None or value is False or value in ("", [], {})
        if name not in known and name not in _HARMLESS and not is_off:
            raise SystolicError(f"{config.source}: {name} is {value!r}, a field that is not understood")


# ---- LoRA ----


@dataclass(frozen=True)
class _Lora:
    """The fields of adapter_config.json that decide what is added to which module."""

    config: Config

    def __post_init__(self) -> None:
        _refuse_unknown(self.config, _LORA)
        values = self.config.values
        start = values.get("init_lora_weights", True)
        if start not in _STARTS:
            raise SystolicError(
                f"{self.config.source}: init_lora_weights is {start!r}, which trains an adapter beside "
                "changed weights of the model; save it with path_initial_model_for_weight_conversion"
            )
        if values.get("bias", "none") not in ("none", "all", "lora_only"):
            raise SystolicError(
                f"{self.config.source}: bias must be none, all or lora_only, not {values['bias']!r}"
            )

    def names(self, field_name: str) -> tuple[str, ...]:
        """A text, a list of them, or nothing (absent or null): always as a tuple."""
        value = self.config.values.get(field_name)
        if value is None or isinstance(value, str):
            return () if value is None else (value,)
        return self.config.texts(field_name)

    def of_module(self, field_name: str, pattern_field: str, module: str) -> float:
        """``field_name``, or what the first pattern that fits the module says instead."""
        patterns = self.config.values.get(pattern_field) or {}
        for pattern in patterns:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return self.config.section(pattern_field).number(pattern)
        return self.config.number(field_name)

    def scale(self, module: str) -> float:
        rank = self.of_module("r", "rank_pattern", module)
        alpha = self.of_module("lora_alpha", "alpha_pattern", module)
        return alpha / rank**0.5 if self.config.values.get("use_rslora") else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether the module is one of those that the adapter says it changes."""
        value = self.config.values.get("target_modules")
        if value is None or value == "all-linear":
            return True
        if isinstance(value, str):
            return re.fullmatch(value, module) is not None
        return any(_ends_with(module, target) for target in self.names("target_modules")) and self._in_layers(
            module
        )

    def excludes(self, module: str) -> bool:
        value = self.config.values.get("exclude_modules")
        if isinstance(value, str):
            return re.fullmatch(value, module) is not None
        return any(_ends_with(module, target) for target in self.names("exclude_modules"))

    def _in_layers(self, module: str) -> bool:
        value = self.config.values.get("layers_to_transform")
        if value is None or value == []:
            return True
        layers = (value,) if isinstance(value, int) else self.config.integers("layers_to_transform")
        patterns = [pattern for pattern in self.names("layers_pattern") if pattern] or [r"[^.]*"]
        found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
        return any(match is not None and int(match[1]) in layers for match in found)


def _ends_with(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _read_lora(path: Path, config: Config, stored: Mapping[str, StoredTensor]) -> Adapter:
    lora = _Lora(config)
    parts: dict[str, dict[str, StoredTensor]] = {}
    tensors: dict[str, StoredTensor] = {}
    bases: dict[str, StoredTensor] = {}
    for stored_name, tensor in stored.items():
        name = stored_name.removeprefix("base_model.model.")
        factor, magnitude = _FACTOR.fullmatch(name), _MAGNITUDE.fullmatch(name)
        if factor:
            parts.setdefault(factor["module"], {})[f"{factor['kind'] or ''}{factor['side']}"] = tensor
        elif magnitude:
            parts.setdefault(magnitude["module"], {})["magnitude"] = tensor
        elif ".lora_" in name:
            raise SystolicError(f"{tensor.path}: tensor {stored_name} is not understood")
        elif name.endswith(".base_layer.weight"):
            bases[name.replace(".base_layer.", ".")] = tensor
        else:
            tensors[_WRAPPED.sub("", name)] = tensor
    if not parts and not tensors:
        raise SystolicError(f"{path / TENSORS}: holds no tensor of an adapter")
    factors = {module: _factors(lora, path / TENSORS, module, found) for module, found in parts.items()}
    is_transposed = bool(config.values.get("fan_in_fan_out"))
    return Adapter(path, factors, tensors, bases, fan_in_fan_out=is_transposed)


def _factors(lora: _Lora, file: Path, module: str, parts: Mapping[str, StoredTensor]) -> Factors:
    source = lora.config.source
    if module.endswith(".base_layer"):
        raise SystolicError(f"{file}: {module} has several adapters one in the other, which is not supported")
    if not lora.targets(module) or lora.excludes(module):
        raise SystolicError(f"{file}: has factors for {module}, which target_modules in {source} leaves out")
    is_table = "embedding_A" in parts
    kind = "embedding_" if is_table else ""
    for side in ("A", "B"):
        if f"{kind}{side}" not in parts:
            raise SystolicError(f"{file}: lacks the tensor {module}.lora_{kind}{side}")
    a, b = parts[f"{kind}A"], parts[f"{kind}B"]
    rank = lora.of_module("r", "rank_pattern", module)
    if len(a.shape) != 2 or len(b.shape) != 2 or not a.shape[0] == b.shape[1] == rank:
        raise SystolicError(
            f"{file}: the factors of {module} are {list(a.shape)} and {list(b.shape)}, and [{rank:g}, in] "
            f"and [out, {rank:g}] are expected (r and rank_pattern in {source})"
        )
    magnitude = parts.get("magnitude")
    if (magnitude is not None) != bool(lora.config.values.get("use_dora")):
        raise SystolicError(f"{file}: use_dora in {source} and lora_magnitude_vector of {module} contradict")
    if magnitude is not None and is_table:
        raise SystolicError(f"{source}: use_dora on the embedding {module} is not supported")
    return Factors(a, b, lora.scale(module), magnitude, is_table)


# ---- learned prompts ----


def _read_prompt(path: Path, config: Config, stored: Mapping[str, StoredTensor]) -> Adapter:
    _refuse_unknown(config, _PROMPT)
    if config.values.get("num_transformer_submodules") not in (None, 1):
        raise SystolicError(f"{config.source}: num_transformer_submodules must be 1: a prompt for one text")
    if set(stored) != {"prompt_embeddings"}:
        raise SystolicError(f"{path / TENSORS}: must hold prompt_embeddings alone, not {', '.join(stored)}")
    prompt = stored["prompt_embeddings"]
    count = config.size("num_virtual_tokens")
    if len(prompt.shape) != 2 or prompt.shape[0] != count:
        raise SystolicError(
            f"{path / TENSORS}: prompt_embeddings is {list(prompt.shape)}, and {count} vectors are expected "
            "(num_virtual_tokens)"
        )
    return Adapter(path, prompt=prompt)
