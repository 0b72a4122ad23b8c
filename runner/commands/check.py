"""systolic check: the proof that a model is causal, or the path that leaks."""

from __future__ import annotations

import json

import typer

from .arguments import DEFAULT_MODEL, Json, ModelArgument

LEAK_STATUS = 1


def check(model: ModelArgument = DEFAULT_MODEL, as_json: Json = False) -> None:
    """Proves that no output sees the future, or prints the shortest path that does (exit 1)."""
    from ..locate import open_model

    certificate = open_model(model).graph.certificate()
    print(json.dumps(certificate.to_json(), indent=1) if as_json else certificate)
    if not certificate.causal:
        raise typer.Exit(LEAK_STATUS)
