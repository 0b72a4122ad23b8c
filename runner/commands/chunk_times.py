"""In what chunks a model reads prompts, on the terminal: their sizes, and what each is predicted to take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .table import aligned

if TYPE_CHECKING:
    from ...compiler.cost.targets import Target
    from ..stages import Stages


def model_chunks(stages: Stages, target: Target | None, as_json: bool) -> str:
    """The chunks of a model on this machine's CPU, or on a target: a table, or JSON."""
    options = stages.options
    rows, capacity = options.batch, options.capacity
    if target is None:
        from ...backends.xla import XlaBackend

        backend = XlaBackend("cpu")
        run = stages.on(backend)
        seconds = backend.chunk_seconds(run.passes[run.last_pass].graph, rows, capacity)
        source = backend.forms.source if backend.forms else ""
    else:
        from ...compiler.cost.prediction import chunk_seconds_on

        graph = stages.passes[stages.last_pass].graph
        seconds = chunk_seconds_on(target, graph, rows=rows, capacity=capacity)
        source = target.name
    chosen = options.with_chunks(seconds, stages.asked_chunk)
    if as_json:
        records = [{"positions": chunk.size, "seconds": chunk.seconds} for chunk in chosen.chunks]
        return json.dumps({"source": source, "rows": rows, "chunks": records}, indent=1)
    heading = ("positions", "predicted ms", "µs for a position")
    table = [
        (f"{c.size:,}", f"{1e3 * c.seconds:,.2f}", f"{1e6 * c.seconds / c.size / rows:,.1f}")
        for c in chosen.chunks
    ]
    return f"{source}; rows side by side: {rows}\n\n{aligned([heading, *table], right=(0, 1, 2))}"
