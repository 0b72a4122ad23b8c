"""The table of model families: which ``model_type`` is built by what.

Each module has the rows of its families in its own ``FAMILIES``: a new file is one more line here.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from ...compiler.trace import trace
from ...ir.errors import GraphError, SystolicError
from ...ir.graph import Graph
from ..family import Family, LanguageModel
from ..spec import Config
from . import (
    albert,
    apertus,
    bamba,
    bart,
    bert,
    bloom,
    cohere,
    deepseek,
    distilbert,
    ernie,
    ernie_moe,
    exaone,
    falcon,
    gemma,
    glm,
    glm_moe,
    gpt2,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    granite_moe,
    helium,
    hunyuan,
    jamba,
    lfm2,
    llama,
    llama4,
    mamba,
    mamba2,
    marian,
    minimax,
    ministral,
    mixtral,
    modernbert,
    mpnet,
    mpt,
    nemotron,
    nemotron_h,
    nomic_bert,
    olmo,
    olmoe,
    opt,
    phi,
    phi3,
    phimoe,
    qwen,
    qwen3_next,
    qwen_moe,
    recurrent,
    recurrent_gemma,
    rwkv,
    seed_oss,
    smollm,
    stablelm,
    starcoder2,
    t5,
    wavenet,
    whisper,
    xlstm,
    zamba,
)

FAMILIES: dict[str, Family] = {
    **albert.FAMILIES,
    **apertus.FAMILIES,
    **bamba.FAMILIES,
    **bart.FAMILIES,
    **bert.FAMILIES,
    **bloom.FAMILIES,
    **cohere.FAMILIES,
    **deepseek.FAMILIES,
    **distilbert.FAMILIES,
    **ernie.FAMILIES,
    **ernie_moe.FAMILIES,
    **exaone.FAMILIES,
    **falcon.FAMILIES,
    **gemma.FAMILIES,
    **glm.FAMILIES,
    **glm_moe.FAMILIES,
    **gpt2.FAMILIES,
    **gpt_neo.FAMILIES,
    **gpt_neox.FAMILIES,
    **gpt_oss.FAMILIES,
    **gptj.FAMILIES,
    **granite.FAMILIES,
    **granite_moe.FAMILIES,
    **helium.FAMILIES,
    **hunyuan.FAMILIES,
    **jamba.FAMILIES,
    **lfm2.FAMILIES,
    **llama.FAMILIES,
    **llama4.FAMILIES,
    **mamba.FAMILIES,
    **mamba2.FAMILIES,
    **marian.FAMILIES,
    **minimax.FAMILIES,
    **ministral.FAMILIES,
    **mixtral.FAMILIES,
    **modernbert.FAMILIES,
    **mpnet.FAMILIES,
    **mpt.FAMILIES,
    **nemotron.FAMILIES,
    **nemotron_h.FAMILIES,
    **nomic_bert.FAMILIES,
    **olmo.FAMILIES,
    **olmoe.FAMILIES,
    **opt.FAMILIES,
    **phi.FAMILIES,
    **phi3.FAMILIES,
    **phimoe.FAMILIES,
    **qwen.FAMILIES,
    **qwen3_next.FAMILIES,
    **qwen_moe.FAMILIES,
    **recurrent.FAMILIES,
    **recurrent_gemma.FAMILIES,
    **rwkv.FAMILIES,
    **seed_oss.FAMILIES,
    **smollm.FAMILIES,
    **stablelm.FAMILIES,
    **starcoder2.FAMILIES,
    **t5.FAMILIES,
    **wavenet.FAMILIES,
    **whisper.FAMILIES,
    **xlstm.FAMILIES,
    **zamba.FAMILIES,
}


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
