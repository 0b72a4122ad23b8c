"""systolic models: what there is to run at once, and what can be loaded."""

from __future__ import annotations

import json
import math
import textwrap

from .arguments import Json
from .table import aligned


def models(as_json: Json = False) -> None:
    """Lists the embedded models, and the families that checkpoints can be of with the states they derive."""
    from ...models.embedded import embedded_models
    from ...models.families import FAMILIES, state_kinds
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
        kinds = state_kinds()
        families = {name: kinds.get(name) for name in sorted(FAMILIES)}
        print(json.dumps({"embedded": rows, "families": families}, indent=1))
        return
    shown = [columns, *((name, family, *(f"{n:,}" for n in numbers)) for name, family, *numbers in embedded)]
    print(aligned(shown, right=(2, 3, 4)))
    groups: dict[str, list[str]] = {}
    for name in sorted(FAMILIES):
        groups.setdefault(_kept(state_kinds().get(name)), []).append(name)
    print("\nfamilies of checkpoints (model_type in config.json), by what they keep from token to token:")
    for kept, names in groups.items():
        print(textwrap.fill(", ".join(names), 100, initial_indent=f"\n{kept}\n  ", subsequent_indent="  "))


def _kept(kinds: list[str] | None) -> str:
    if kinds is None:
        return "not measured"
    return ", ".join(kinds) or "nothing: every position reads the whole text"
