"""Graphs and node data for Google's Model Explorer, and the command that opens a model in a browser."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from systolic.ir.dumps.dot import ACCESS_COLOURS
from systolic.models.load import load
from systolic.runner.commands.model_explorer import model_explorer_files
from systolic.runner.options import options_for
from systolic.runner.stages import Stages

# Its documented form: src/server/package/src/model_explorer/graph_builder.py and node_data_builder.py.
NODE_FIELDS = {
    "id", "label", "namespace", "subgraphIds", "attrs", "incomingEdges", "outputsMetadata",
    "inputsMetadata", "style", "config",
}  # fmt: skip
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def stages_of(path: Path) -> Stages:
    model = load(str(path))
    return Stages(model, options_for(model), None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path / "config.json"


@pytest.fixture
def files(config: Path) -> dict[str, Any]:
    return model_explorer_files(stages_of(config), "traced")


def nodes_of(files: dict[str, Any], graph: str) -> dict[str, dict[str, Any]]:
    return {n["id"]: n for g in files[""]["graphs"] if g["id"] == graph for n in g["nodes"]}


def pairs(entries: list[dict[str, str]]) -> dict[str, str]:
    return {entry["key"]: entry["value"] for entry in entries}


def assert_well_formed(files: dict[str, Any]) -> None:
    collection = files[""]
    assert set(collection) == {"label", "graphs"}
    names = [graph["id"] for graph in collection["graphs"]]
    assert len(set(names)) == len(names)
    for graph in collection["graphs"]:
        ids = [node["id"] for node in graph["nodes"]]
        assert len(set(ids)) == len(ids)
        for node in graph["nodes"]:
            assert set(node) <= NODE_FIELDS
            assert {edge["sourceNodeId"] for edge in node["incomingEdges"]} <= set(ids)
            inputs = [edge["targetNodeInputId"] for edge in node["incomingEdges"]]
            assert inputs == [entry["id"] for entry in node["inputsMetadata"]]
            assert set(node.get("subgraphIds", ())) <= set(names)
            for entry in (*node["attrs"], *(a for m in node["outputsMetadata"] for a in m["attrs"])):
                assert set(entry) == {"key", "value"}
                assert isinstance(entry["value"], str)
    for name, values in files.items():
        if name:
            for graph_name, record in values.items():
                assert set(record["results"]) <= set(nodes_of(files, graph_name))
                assert [stop["stop"] for stop in record["gradient"]] == [0, 0.5, 1]


def test_nodes_scopes_and_what_edges_read(files):
    assert_well_formed(files)
    assert [graph["id"] for graph in files[""]["graphs"]] == ["traced", "prefill", "decode", "score"]
    nodes = nodes_of(files, "traced")
    history = nodes["layers.1.attn.history"]
    assert (history["label"], history["namespace"]) == ("history", "layers/1/attn")
    assert history["incomingEdges"] == [
        {"sourceNodeId": "layers.1.attn.k", "sourceNodeOutputId": "0", "targetNodeInputId": "0"}
    ]
    assert pairs(history["inputsMetadata"][0]["attrs"]) == {"name": "layers.1.attn.k", "reads": "[0:t]"}
    assert pairs(history["outputsMetadata"][0]["attrs"])["shape"] == "f32[past,2,4]"
    assert history["style"] == {"borderColor": ACCESS_COLOURS["prefix"]}
    key = nodes["layers.1.attn.k"]
    assert key["label"] == "k: concatenate"
    assert pairs(key["attrs"])["source line"].startswith("models/")
    assert pairs(nodes["layers.1.attn.scores"]["attrs"])["operand 1"] == "0.5"  # a literal is no node
    assert pairs(nodes["head.logits"]["attrs"])["output"] == "logits"


def test_weights_and_states_stand_with_what_reads_them(files):
    weights = {i: n for i, n in nodes_of(files, "traced").items() if pairs(n["attrs"])["op"] == "parameter"}
    assert weights["model.layers.1.mlp.up_proj.weight"]["namespace"] == "layers/1/mlp"
    assert weights["model.embed_tokens.weight"]["namespace"] == "embed"
    assert nodes_of(files, "decode")["state.layers.1.attn.k"]["namespace"] == "layers/1/attn"
    assert nodes_of(files, "decode")["token"]["namespace"] == ""


def test_costs_and_states_of_nodes(files):
    assert set(files) == {"", "multiply-adds", "bytes-read-and-written", "bytes-of-state"}
    adds = files["multiply-adds"]["traced"]["results"]
    assert adds["layers.0.attn.contraction"] == {"value": 16 * 16}
    assert "layers.0.attn.softmax" not in adds
    moved = files["bytes-read-and-written"]["decode"]["results"]
    assert moved["embed.take"]["value"] == 4 + 2 * 16 * 4  # the index, the row, and the row again
    for graph, name in (("traced", "layers.0.attn.k"), ("decode", "state.layers.0.attn.k")):
        results = files["bytes-of-state"][graph]["results"]
        assert results[name] == {"value": 2 * 4 * 4}
        assert len(results) == 4


def test_every_family_is_well_formed(shared):
    """With the loops of the recurrent ones as graphs of their own."""
    loops = []
    for name in ("lstm_lm", "mamba", "t5", "gemma2", "bert"):
        files = model_explorer_files(stages_of(shared / "oracle" / name), "traced")
        assert_well_formed(files)
        loops += [i for g in files[""]["graphs"] for n in g["nodes"] for i in n.get("subgraphIds", ())]
    assert "prefill/layers.0.feedback.loop" in loops


def test_a_feedback_is_an_edge(shared):
    files = model_explorer_files(stages_of(shared / "oracle" / "lstm_lm"), "traced")
    feedback = nodes_of(files, "traced")["layers.0.feedback"]
    assert [pairs(m["attrs"]) for m in feedback["inputsMetadata"]][-1] == {
        "name": "layers.0.h",
        "reads": "[t-1]",
    }
    assert feedback["style"] == {"borderColor": ACCESS_COLOURS["feedback"]}


def test_model_explorer_takes_it(files):
    """Its own data classes accept every graph and every file of values."""
    pytest.importorskip("model_explorer", reason="ai-edge-model-explorer is not installed (systolic[viewer])")
    import dacite
    from model_explorer.graph_builder import Graph
    from model_explorer.node_data_builder import GraphNodeData

    strict = dacite.Config(strict=True, check_types=False)
    for graph in files[""]["graphs"]:
        assert len(dacite.from_dict(Graph, graph, strict).nodes) == len(graph["nodes"])
    for name, values in files.items():
        for record in values.values() if name else ():
            dacite.from_dict(GraphNodeData, record, strict)


# ---- the commands ----


def test_the_files_that_are_written(cli, config, tmp_path):
    out = tmp_path / "model.json"
    status, text, err = cli("graph", config, "--format", "model-explorer", "--stage", "decode", "--out", out)
    assert (status, err) == (0, "")
    written = [Path(line) for line in text.splitlines()]
    assert [file.name for file in written] == [
        "model.json",
        "model.multiply-adds.json",
        "model.bytes-read-and-written.json",
        "model.bytes-of-state.json",
    ]
    assert json.loads(out.read_text())["graphs"][0]["id"] == "decode"
    written[0].unlink()
    status, _, err = cli("graph", config, "--format", "model-explorer", "--out", out)
    assert (status, "model.multiply-adds.json exists already" in err) == (2, True)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--format model-explorer", "--format model-explorer is for a file: name it with --out"),
        ("--format model-explorer --full --out x.json", "shows whole graphs: leave out --full and --around"),
        ("--format model-explorer --stage diff --out x.json", "--stage diff is a list of changes"),
        ("--format model-explorer --stage nothing --out x.json", "--stage must be one of traced"),
    ],
)
def test_mistakes(cli, config, arguments, message):
    status, out, err = cli("graph", config, *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser was asked to open."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(addresses.append(address)) or True)
    return addresses


def test_view_opens_the_page(cli, config, opened):
    status, text, _ = cli("view", config, "--in", "page")
    assert status == 0
    assert opened == [Path(text.strip()).as_uri()]
    assert Path(text.strip()).read_text().startswith("<!doctype html>")


def test_view_opens_model_explorer_where_it_is_installed(cli, config, monkeypatch, opened):
    """With a stand-in for the package, of which the command uses three functions."""
    calls: list[tuple[str, str]] = []

    class Config:
        def add_model_from_path(self, path: str) -> None:
            calls.append(("model", json.loads(Path(path).read_text())["label"]))

        def add_node_data_from_path(self, path: str) -> None:
            calls.append(("values", json.loads(Path(path).read_text())["traced"]["name"]))

    package = types.ModuleType("model_explorer")
    package.__spec__ = importlib.machinery.ModuleSpec("model_explorer", None)
    package.config = Config  # type: ignore[attr-defined]
    package.visualize_from_config = lambda config: calls.append(("shown", ""))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "model_explorer", package)
    assert cli("view", config)[0] == 0
    assert calls == [
        ("model", "llama"),
        ("values", "multiply-adds"),
        ("values", "bytes read and written"),
        ("values", "bytes of state"),
        ("shown", ""),
    ]
    assert opened == []


def test_view_says_what_to_install(cli, config, monkeypatch, opened):
    monkeypatch.setitem(sys.modules, "model_explorer", None)
    status, _, err = cli("view", config, "--in", "model-explorer")
    assert (status, err.count("\n")) == (2, 1)
    assert "pip install 'systolic[viewer]'" in err
    assert cli("view", config, "--in", "netron")[0] == 2
    assert cli("view", config)[0] == 0  # then the page is shown
    assert len(opened) == 1
