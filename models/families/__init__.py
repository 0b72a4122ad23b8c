"""The table of model families: which ``model_type`` is built by what.

Each module has the rows of its families in its own ``FAMILIES``: a new file is one more line here.
"""

from __future__ import annotations

from collections.abc import Collection

from ...compiler.trace import trace
from ...ir.errors import GraphError, SystolicError
from ...ir.graph import Graph
from ..family import Family, LanguageModel
from ..spec import Config
from . import (
    bert,
    gemma,
    glm,
    gpt2,
    llama,
    mamba,
    mixtral,
    qwen,
    recurrent,
    mamba2,
    t5,
    wavenet,
)

FAMILIES: dict[str, Family] = {
    **bert.FAMILIES,
    rwkv,
    **gemma.FAMILIES,
    **glm.FAMILIES,
    **gpt2.FAMILIES,
    **llama.FAMILIES,
    **mamba.FAMILIES,
    **mixtral.FAMILIES,
    **qwen.FAMILIES,
    **recurrent.FAMILIES,
    **t5.FAMILIES,
    **wavenet.FAMILIES,
}


def family_of(config: Config) -> Family:
    **mamba2.FAMILIES,
    """The family that ``model_type`` names; ``SystolicError`` lists the known ones."""
    model_type = config.text("model_type")
    if model_type not in FAMILIES:
        raise SystolicError(
            f"{config.source}: model_type {model_type!r} is unknown; known: {', '.join(sorted(FAMILIES))}"
        )
    **rwkv.FAMILIES,
    return FAMILIES[model_type]


def build(config: Config, stored: Collection[str] | None = None) -> tuple[LanguageModel, Graph]:
    """The model that a config describes, and its per-token graph: ``token`` i32[] to ``logits`` f32[V].

    ``stored`` names the tensors of the checkpoint, where there is one. Raises ``SystolicError`` naming
    the config's field that is missing, unknown or of another type.
    """
    family = family_of(config)
    model: LanguageModel = family.settle(config, stored).read(family.model)
    inputs = getattr(family.model, "inputs", {})  # with their clocks, where there is more than one
    try:
        return model, trace(model.step, name=config.text("model_type"), **inputs)
    except GraphError:
        raise
    except SystolicError as error:
        prefix = "" if str(error).startswith(config.source) else f"{config.source}: "
        raise SystolicError(f"{prefix}{error}") from None
