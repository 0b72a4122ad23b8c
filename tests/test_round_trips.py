"""Every stage of every family, as text and as JSON, reads back as an equal graph."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from systolic.ir.dumps.folded_text import print_folded
from systolic.ir.dumps.json_form import from_json, to_json
from systolic.ir.dumps.parse import parse_graph
from systolic.ir.dumps.text import print_graph, same
from systolic.ir.errors import SystolicError
from systolic.ir.graph import Graph
from systolic.models.families import FAMILIES
from systolic.models.load import load
from systolic.runner.options import options_for
from systolic.runner.stages import PROGRAMS, Stages

ORACLE = Path(os.environ.get("SYSTOLIC_SHARED", Path(__file__).parents[2] / "shared")) / "oracle"
FOLDERS = sorted(file.parent.name for file in ORACLE.glob("*/config.json"))
# An encoder alone has no step; only an encoder-decoder has a source of its own.
PROGRAMS_OF = {"bert": {"score"}, "t5": set(PROGRAMS)}


@pytest.fixture(scope="module", params=FOLDERS or ["no reference data"])
def stages(request: pytest.FixtureRequest) -> Stages:
    if not FOLDERS:
        pytest.skip(f"the reference data at {ORACLE} is absent (set SYSTOLIC_SHARED)")
    kind = json.loads((ORACLE / request.param / "config.json").read_text())["model_type"]
    if kind not in FAMILIES:
        pytest.skip(f"{kind} is no known family")
    model = load(str(ORACLE / request.param))
    return Stages(model, options_for(model, capacity=min(model.context_length, 24), chunk=5), None)


def graphs(stages: Stages) -> Iterator[tuple[str, Graph]]:
    """Every graph that ``systolic graph`` shows, by the name of its stage."""
    yield from ((name, stage.graph) for name, stage in stages.passes.items())
    for name in PROGRAMS:
        try:
            yield name, stages.graph(name)
        except SystolicError:
            continue


def test_text_and_json_read_back(stages):
    shown = []
    for name, graph in graphs(stages):
        full, folded = print_graph(graph), print_folded(graph)
        assert same(parse_graph(full), graph), name
        assert print_graph(parse_graph(full)) == full, name
        assert same(parse_graph(folded), graph), name
        assert same(from_json(json.loads(json.dumps(to_json(graph)))), graph), name
        shown.append(name)
    family = next(iter(stages.passes.values())).graph.name
    expected = PROGRAMS_OF.get(family, {"prefill", "decode", "score"})
    assert set(shown) - set(stages.passes) == expected
