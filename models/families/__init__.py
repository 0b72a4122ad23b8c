"""The table of model families: which ``model_type`` is built by what.

Each module has the rows of its families in its own ``FAMILIES``; a new file is one more line here, that names
them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path

from ...compiler.trace import trace
from ...ir.errors import GraphError, SystolicError
from ...ir.graph import Graph
from ..family import Family, LanguageModel
from ..spec import Config

# The families that each module describes, by ``model_type``.
MODULES: Mapping[str, tuple[str, ...]] = {
    "albert": ("albert",),
    "apertus": ("apertus",),
    "bamba": ("bamba", "falcon_h1"),
    "bart": ("bart", "blenderbot", "mbart", "plbart"),
    "bert": ("bert", "camembert", "electra", "roberta", "xlm-roberta"),
    "bloom": ("bloom",),
    "cohere": ("cohere", "cohere2"),
    "deepseek": ("deepseek_v2", "deepseek_v3"),
    "distilbert": ("distilbert",),
    "ernie": ("ernie4_5",),
    "ernie_moe": ("ernie4_5_moe",),
    "exaone": ("exaone4",),
    "falcon": ("falcon",),
    "gemma": ("gemma", "gemma2", "gemma3", "gemma3_text"),
    "glm": ("glm", "glm4"),
    "glm_moe": ("glm4_moe",),
    "gpt2": ("gpt2", "gpt_bigcode"),
    "gpt_neo": ("gpt_neo",),
    "gpt_neox": ("gpt_neox", "persimmon"),
    "gpt_oss": ("gpt_oss",),
    "gptj": ("codegen", "gptj"),
    "granite": ("granite",),
    "granite_moe": ("granitemoe", "granitemoeshared"),
    "helium": ("helium",),
    "hunyuan": ("hunyuan_v1_dense",),
    "jamba": ("jamba",),
    "lfm2": ("lfm2",),
    "llama": ("llama", "mistral"),
    "llama4": ("llama4_text",),
    "mamba": ("falcon_mamba", "mamba"),
    "mamba2": ("mamba2",),
    "marian": ("m2m_100", "marian", "pegasus"),
    "minimax": ("minimax",),
    "ministral": ("ministral", "ministral3"),
    "mixtral": ("mixtral",),
    "modernbert": ("modernbert",),
    "mpnet": ("mpnet",),
    "mpt": ("mpt",),
    "nemotron": ("arcee", "nemotron"),
    "nemotron_h": ("nemotron_h",),
    "nomic_bert": ("nomic_bert",),
    "olmo": ("olmo", "olmo2", "olmo3"),
    "olmoe": ("olmoe",),
    "opt": ("biogpt", "opt", "xglm"),
    "phi": ("phi",),
    "phi3": ("phi3",),
    "phimoe": ("phimoe",),
    "qwen": ("qwen2", "qwen3"),
    "qwen3_next": ("qwen3_next",),
    "qwen_moe": ("qwen2_moe", "qwen3_moe"),
    "recurrent": ("gru_lm", "lstm_lm"),
    "recurrent_gemma": ("recurrent_gemma",),
    "rwkv": ("rwkv",),
    "seed_oss": ("seed_oss",),
    "smollm": ("smollm3",),
    "stablelm": ("stablelm",),
    "starcoder2": ("starcoder2",),
    "t5": ("t5", "mt5", "umt5"),
    "wavenet": ("wavenet_lm",),
    "whisper": ("whisper",),
    "xlstm": ("xlstm",),
    "zamba": ("zamba", "zamba2"),
}


class FamilyTable(Mapping[str, Family]):
    """Families by ``model_type``; a module is imported when a family of it is asked for, since whoever runs
    one model need not wait for all others."""

    def __init__(self, modules: Mapping[str, tuple[str, ...]]) -> None:
        self._module_of = {name: module for module, names in modules.items() for name in names}

    def __getitem__(self, model_type: str) -> Family:
        module = import_module(f".{self._module_of[model_type]}", __package__)
        return module.FAMILIES[model_type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._module_of)

    def __len__(self) -> int:
        return len(self._module_of)


FAMILIES: Mapping[str, Family] = FamilyTable(MODULES)


def state_kinds() -> dict[str, list[str]]:
    """The kinds of state that each family derives; none where every position reads the whole text.

    ``python -m benchmarks.families`` writes the file.
    """
    return json.loads(Path(__file__).with_name("states.json").read_text(encoding="utf-8"))


def family_of(config: Config) -> Family:
    """The family that ``model_type`` names; ``SystolicError`` lists the known ones."""
    model_type = config.text("model_type")
    if model_type not in FAMILIES:
        raise SystolicError(
            f"{config.source}: model_type {model_type!r} is unknown; known: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def build(config: Config, stored: Collection[str] | None = None) -> tuple[LanguageModel, Graph]:
    """The model that a config describes, and its per-token graph: ``token`` i32[] to ``logits`` f32[V].

    ``stored`` names the tensors of the checkpoint, where there is one. Raises ``SystolicError`` naming
    the config's field that is missing, unknown or of another type.
    """
    family = family_of(config)
    model: LanguageModel = family.settle(config, stored).read(family.model)
    inputs = getattr(model, "inputs", {})  # with their clocks, where there is more than one
    try:
        return model, trace(model.step, name=config.text("model_type"), **inputs)
    except GraphError:
        raise
    except SystolicError as error:
        prefix = "" if str(error).startswith(config.source) else f"{config.source}: "
        raise SystolicError(f"{prefix}{error}") from None
