"""From a model to an executable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..backends import backend_named
from ..ir.graph import Graph
from .executable import Executable
from .last_start import remember_start
from .options import GRAPH_CAPACITY, Options, options_for
from .placement import with_kept_weights
from .program_source import DerivedPrograms
from .program_store import program_store
from .programs import Programs

if TYPE_CHECKING:
    from ..models.model import Model


def compile(
    model: Model | Graph,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    backend: str = "xla",
    batch: int = 1,
    capacity: int | None = None,
    chunk: int | None = None,
    state: str = "auto",
    state_dtype: str = "f32",
    cache_directory: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    roll: str = "auto",
) -> Executable:
    """Prepares a model, or a traced graph with its weights, to run on ``backend`` (xla, numpy).

    ``batch`` rows run side by side with up to ``capacity`` positions each (default: the model's
    context, at most 1024; 256 for a bare graph); prompts are read in chunks of up to ``chunk`` (by default
    as many as are predicted to be best); ``state`` is auto (a minimum cut), sources or tokens;
    ``state_dtype`` is what the past is kept as: f32, bf16, f16, or int8 with a scale for each vector.
    ``adapters`` are directories as the peft library writes them, by the names that
    ``generate(…, adapter=NAME)`` and its relatives choose from. Layers that repeat are one loop by ``roll``:
    auto (where it saves time), always, never. Raises ``SystolicError`` for a bad option.
    """
    if isinstance(model, Graph):
        capacity = GRAPH_CAPACITY if capacity is None else capacity
        from .graph_model import model_of_graph

        model = model_of_graph(model, weights, capacity)
    if adapters:
        from ..models.adapters import with_adapters

        model = with_adapters(model, adapters)
    cache = None if cache_directory is None else Path(cache_directory)
    options = options_for(model, backend, batch, capacity, chunk, state, cache, state_dtype, roll)
    model = model.for_texts_up_to(options.capacity)
    chosen = backend_named(backend, cache, roll)
    store = program_store(model.graph, options, chosen)
    choose = partial(chosen.faster_transposed, model.graph, batch)
    options = replace(options, transposed=store.keep("transposed", choose, tuple))
    # Read ahead while programs are made.
    model = with_kept_weights(model, chosen, options.transposed, cache)

    def simplified() -> Graph:
        from ..compiler.pipeline import run_passes

        return run_passes(model.graph, options.passes)[-1].graph

    final = store.keep("simplified", simplified, Graph)

    def with_chunks() -> Options:
        return options.with_chunks(chosen.chunk_seconds(final, batch, options.capacity), chunk)

    kept = store.keep(f"options for chunks of {chunk}", with_chunks, Options)
    options = replace(kept, cache_directory=cache)
    begun = partial(remember_start, model.path, model.dtype, chosen) if model.path.is_dir() else None
    programs = Programs(DerivedPrograms(final, options), chosen, store.within(options.chunk), begun)
    return Executable(model, options, chosen, programs)
