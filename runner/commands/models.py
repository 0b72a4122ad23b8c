"""systolic models: what there is to run at once, and what can be loaded."""

from __future__ import annotations

import json
import math

from .arguments import Json
from .table import aligned


def models(as_json: Json = False) -> None:
    """Lists the embedded models and the families that checkpoints can be of."""
    from ...models.embedded import embedded_models
    from ...models.families import FAMILIES
    from ...models.load import load

    embedded = []
    for name, path in embedded_models().items():
        model = load(path)
        parameters = sum(math.prod(node.tensor.static_shape) for node in model.graph.parameters)
        family = model.config.text("model_type")
        embedded.append((name, family, parameters, model.vocabulary_size, model.context_length))
    columns = ("name", "family", "parameters", "vocabulary", "context")
    if as_json:
        rows = [dict(zip(columns, row, strict=True)) for row in embedded]
        print(json.dumps({"embedded": rows, "families": sorted(FAMILIES)}, indent=1))
        return
    shown = [columns, *((name, family, *(f"{n:,}" for n in numbers)) for name, family, *numbers in embedded)]
    print(aligned(shown, right=(2, 3, 4)))
    print(f"\nfamilies of checkpoints (model_type in config.json): {', '.join(sorted(FAMILIES))}")
