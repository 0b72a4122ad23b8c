"""From a checkpoint to a model: its graph, its weights, and what generation needs to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import SystolicError
from ..ir.types import TEXT
from .chat_template import read_chat_template
from .compact import Form, keep_compact
from .embedded import DEFAULT, locate
from .families import build, family_of
from .merge import merge
from .model import Constraints, Model
from .packed import PACKINGS
from .peft import read_adapter
from .positions import looks_positions_up
from .precision import keep_weights_as
from .quantised import SCHEMES
from .spec import Config, read_config
from .weights import fit, read_checkpoint

WEIGHT_DTYPES = ("f32", "bf16", "f16")
COMPACT: Mapping[str, Form] = {**PACKINGS, **SCHEMES}  # what matrices can be kept as, beside floats


def load(
    path_or_name: str | Path = DEFAULT,
    dtype: str = "f32",
    *,
    adapter: str | Path | Sequence[str | Path] = (),
) -> Model:
    """Reads a checkpoint directory, a bare config.json, or an embedded model by its name.

    ``adapter`` is a directory with LoRA factors as the peft library writes them, or several: they are merged
    into the weights, each when it is read.

    ``dtype`` is how weights are kept: f32, bf16, f16; f32 or bf16 in fewer bytes (``packed.PACKINGS``), or
    integers with scales (``quantised.SCHEMES``). They are computed with as f32. Raises ``SystolicError``
    naming the file and what was expected of it.
    """
    if dtype not in (*WEIGHT_DTYPES, *COMPACT):
        known = ", ".join((*WEIGHT_DTYPES, *COMPACT))
        raise SystolicError(f"weights cannot be kept as {dtype!r}; known: {known}")
    path = locate(path_or_name)
    config = read_config(path if path.is_file() else path / "config.json")
    directory = path if path.is_dir() else None
    stored = None if directory is None else read_checkpoint(directory)
    spec, graph = build(config, stored)
    adapters = [adapter] if isinstance(adapter, str | Path) else adapter
    if adapters and stored is None:
        raise SystolicError(f"{path}: has no weights that an adapter could be merged into")
    if adapters and stored is not None:
        graph, stored = merge(graph, stored, family_of(config).naming, [read_adapter(a) for a in adapters])
    floats = COMPACT[dtype].dtype if dtype in COMPACT else dtype
    if floats != "f32":
        graph = keep_weights_as(graph, floats)
    weights: Mapping[str, np.ndarray] | None = None
    if stored is not None:
        weights = fit(graph, stored, family_of(config).naming, str(directory))
    if dtype in COMPACT:
        graph, weights = keep_compact(graph, weights, COMPACT[dtype])
    return Model(
        name=path.resolve().name if directory is not None else path.stem,
        path=path,
        config=config,
        graph=graph,
        weights=weights,
        vocabulary_size=spec.vocab_size,
        context_length=spec.context_length,
        source_length=getattr(spec, "source_length", None),
        is_bounded=looks_positions_up(graph),
        dtype=dtype,
        shortest_like=getattr(spec, "shortest_like", None) if TEXT in graph.clocks else None,
        **_generation(config, directory),
    )


def _generation(config: Config, directory: Path | None) -> dict[str, Any]:
    """Special tokens and the tokenizer; what generation_config.json says comes before config.json."""
    files = {name: _optional(directory, name) for name in ("generation_config.json", "tokenizer_config.json")}
    sources = [source for source in (files["generation_config.json"], config) if source is not None]
    bos = next((ids[0] for source in sources if (ids := source.token_ids("bos_token_id"))), None)
    eos = next((ids for source in sources if (ids := source.token_ids("eos_token_id"))), ())
    starts = (source.token_ids("decoder_start_token_id") for source in sources)
    tokenizer = _optional(directory, "tokenizer.json")
    settings = files["tokenizer_config.json"]
    if settings is not None and settings.values.get("add_bos_token") is not None:
        add_bos = settings.boolean("add_bos_token")
    else:
        add_bos = tokenizer is not None and bos is not None and _template_begins_with(tokenizer, bos)
    return {
        "bos_id": bos,
        "eos_ids": eos,
        "tokenizer_path": Path(tokenizer.source) if tokenizer is not None else None,
        "add_bos": add_bos,
        "start_id": next((ids[0] for ids in starts if ids), None),
        "sampling": _sampling(files["generation_config.json"]),
        "chat_template": None if directory is None else read_chat_template(directory),
        "constraints": _constraints(files["generation_config.json"] or config),
    }


def _constraints(settings: Config) -> Constraints:
    """What is forced and banned; a word of one token that is bad is a banned token."""
    words = settings.values.get("bad_words_ids") or []
    return Constraints(
        first=settings.token_ids("forced_bos_token_id"),
        last=settings.token_ids("forced_eos_token_id"),
        banned=settings.token_ids("suppress_tokens") + tuple(word[0] for word in words if len(word) == 1),
        banned_at_start=settings.token_ids("begin_suppress_tokens"),
    )


def _sampling(settings: Config | None) -> dict[str, float]:
    """The sampling of generation_config.json; with ``do_sample`` off, what shapes a draw means nothing."""
    if settings is None:
        return {}
    draws = bool(settings.values.get("do_sample"))
    names = (*_PENALTIES, *(_OF_DRAWS if draws else ()))
    given = {name: settings.number(name) for name in names if settings.values.get(name) is not None}
    return ({"temperature": 1.0} if draws else {}) | given


_PENALTIES = ("repetition_penalty", "no_repeat_ngram_size")
_OF_DRAWS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def _optional(directory: Path | None, name: str) -> Config | None:
    exists = directory is not None and (directory / name).exists()
    return read_config(directory / name) if exists and directory is not None else None


def _template_begins_with(tokenizer: Config, bos: int) -> bool:
    """Whether tokenizer.json puts the token ``bos`` before a text."""
    processor = tokenizer.values.get("post_processor") or {}
    try:
        for step in processor.get("processors", [processor]):
            if step.get("type") == "TemplateProcessing" and step["single"]:
                first = step["single"][0].get("SpecialToken", {}).get("id")
                return step["special_tokens"].get(first, {}).get("ids", [])[:1] == [bos]
    except (AttributeError, KeyError, TypeError):
        raise SystolicError(f"{tokenizer.source}: post_processor is not in a known form") from None
    return False
