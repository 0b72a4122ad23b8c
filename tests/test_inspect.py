"""Looking inside: folded text, parts of graphs, drawings of layers, differences, and why."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import KINDS, WIDTH, apply

import systolic as sy
from systolic.compiler.derive import choose_states, derive_chunk, derive_score
from systolic.compiler.difference import difference, show_difference
from systolic.compiler.measures import measures
from systolic.compiler.pipeline import run_passes
from systolic.compiler.slots import state_of, states_read
from systolic.ir.dumps.dot import ACCESS_COLOURS, outline_to_dot
from systolic.ir.dumps.extract import find_node, neighbourhood
from systolic.ir.dumps.fold import fold
from systolic.ir.dumps.folded_text import print_folded, search
from systolic.ir.dumps.layers import show_numbers
from systolic.ir.dumps.outline import outline_rows
from systolic.ir.dumps.parse import parse_graph
from systolic.ir.dumps.repeats import expand_repeats
from systolic.ir.dumps.text import print_graph, same
from systolic.ir.dumps.why import explain, show_path
from systolic.ir.errors import GraphError, SystolicError
from systolic.ir.graph import Graph
from systolic.ir.time import Access
from systolic.models.load import load
from systolic.runner.commands.table import aligned
from systolic.runner.terminal import colour

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
GPT3 = {
    "model_type": "gpt2",
    "n_layer": 96,
    "n_head": 96,
    "n_embd": 12288,
    "vocab_size": 50257,
    "n_positions": 2048,
}


def write_config(folder: Path, **values: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder / "config.json"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("llama"), **LLAMA)


@pytest.fixture(scope="module")
def llama(config) -> Graph:
    return load(str(config)).graph


@pytest.fixture
def graph_command(cli):
    """Runs ``systolic graph`` in this process: the exit status, stdout, stderr."""
    return partial(cli, "graph")


def stack(windows: list[int | None], *, skip: bool = False, shared: bool = False) -> Graph:
    """Layers of attention over windows of these lengths (None: the whole past)."""

    def model(token: sy.Stream) -> sy.Stream:
        x = sy.take(sy.parameter("embedding", (9, 4)), token)
        streams, mask = [x], None
        for i, window in enumerate(windows):
            with sy.scope(f"layers.{i}"):
                keys = sy.history(x @ sy.parameter(f"blocks.{i}.key.weight", (4, 4)), window=window)
                x = x + sy.softmax(keys @ x) @ keys
                if shared:
                    mask = sy.tanh(streams[0]).named("mask") if mask is None else mask
                    x = x * mask
                if skip and i:
                    x = x + streams[-2]
                x = (x + 0.5).named("x")
            streams.append(x)
        return x

    return sy.trace(model)


def repeats(graph: Graph, *expand: str) -> list[str]:
    return [str(block.repeat) for block in fold(graph, expand) if block.repeat]


def assert_parses_back(graph: Graph, *expand: str) -> str:
    """The folded text, which must hold exactly the graph."""
    text = print_folded(graph, expand=expand)
    assert print_graph(parse_graph(text)) == print_graph(graph)
    return text


# ---- folding ----


def test_folded_text(llama, golden):
    heading = [f"# {line}" for line in aligned(outline_rows(llama), right=(1, 2)).split("\n")]
    golden("folded_llama", print_folded(llama, heading=heading, locations=False))


def test_folded_text_of_a_decode_step(llama):
    deeper = load_llama(llama, layers=30)
    program = derive_chunk(deeper, choose_states(deeper), rows=1, chunk=1, capacity=8, reserve=1, last=True)
    text = assert_parses_back(program.graph)
    # The first layer also makes what all layers share.
    assert text.count("scope layers.") <= 4
    assert re.search(r"\n  input state\.layers\.\{i\}\.attn\.k: f32", text)
    assert re.search(r"\n  output state\.layers\.\{i\}\.attn\.v = layers\.\{i\}\.attn\.v@state", text)


def load_llama(llama: Graph, layers: int) -> Graph:
    """The same model with more layers, by writing the number in its folded text."""
    text = print_folded(llama).replace("layers.0-2 as", f"layers.0-{layers - 1} as")
    return parse_graph(text.replace("layers.2.mlp.x", f"layers.{layers - 1}.mlp.x"))


def test_a_folded_text_is_the_whole_model(tmp_path, llama):
    """Changing the count in the text gives what a deeper configuration gives."""
    deeper = load(str(write_config(tmp_path / "deeper", **{**LLAMA, "num_hidden_layers": 7}))).graph
    assert same(load_llama(llama, layers=7), deeper)
    assert not same(load_llama(llama, layers=6), deeper)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([None] * 5, ["layers.0-4"]),
        ([2, None, 2, None, 2, None], ["layers.0-5 by 2"]),
        ([2, 2, None] * 3, ["layers.0-8 by 3"]),
        ([None, None, 3, None, None, None], ["layers.0-1", "layers.3-5"]),
        ([1, 2, 3, 4], []),
        ([2, None, 2, None, 2], ["layers.0-3 by 2"]),
    ],
)
def test_what_repeats(windows, expected):
    graph = stack(windows)
    assert repeats(graph) == expected
    assert_parses_back(graph)


def test_what_the_first_layer_reads_instead_is_carried():
    text = assert_parses_back(stack([None] * 4))
    assert "repeat layers.0-3 as i, x = take then layers.{i-1}.x" in text
    assert "{x}" in text
    assert text.count("= history(") == 1


def test_what_layers_share_stands_before_them():
    graph = stack([None] * 5, shared=True)
    text = assert_parses_back(graph)
    assert repeats(graph) == ["layers.0-4"]
    assert text.index("tanh(take)") < text.index("repeat layers.0-4 as i, x")


def test_a_layer_that_reads_two_layers_back():
    graph = stack([None] * 7, skip=True)
    assert repeats(graph) == ["layers.1-6"]
    assert "layers.{i-2}.x" in assert_parses_back(graph)


def test_expanded_scopes_are_not_repeated(llama):
    deeper = load_llama(llama, layers=6)
    assert repeats(deeper, "layers.2") == ["layers.0-1", "layers.3-5"]
    assert repeats(deeper, "layers.2.mlp") == ["layers.0-1", "layers.3-5"]
    assert repeats(deeper, "layers") == []
    assert repeats(deeper, "head", "layer") == ["layers.0-5"]
    text = assert_parses_back(deeper, "layers.2")
    assert "scope layers.2.attn" in text
    assert "scope layers.3.attn" not in text


def test_bodies_of_loops_are_written_once():
    def model(x):
        for i in range(4):
            with sy.scope(f"layers.{i}"):
                state = sy.feedback(sy.zeros((3,)))
                new = state.close(sy.tanh(state @ sy.parameter(f"layers.{i}.w", (3, 3)) + x).named("new"))
                x = (x + new).named("x")
        return x

    graph = sy.trace(model, x="f32[3]")
    assert "feedback layers.{i}.feedback <- layers.{i}.new[t-1]" in assert_parses_back(graph)
    program = derive_score(graph, rows=1, length=4)
    text = assert_parses_back(program.graph)
    assert print_graph(program.graph).count("\ngraph ") == 4
    assert re.findall(r"\n *graph (.*)", text) == ["layers.0.feedback.loop", "layers.{i}.feedback.loop"]


def test_names_with_braces_are_not_mistaken():
    def model(x):
        for i in range(3):
            with sy.scope(f"layers.{i}"):
                x = sy.tanh(x).named("{i}")
        return x

    graph = sy.trace(model, x="f32[3]")
    assert repeats(graph) == []
    assert_parses_back(graph)


LAYERS = st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), min_size=1, max_size=3)


@settings(max_examples=15, deadline=None)
@given(LAYERS, st.integers(2, 6), st.integers(0, 2), st.booleans(), st.sampled_from(["layers.{}", "3.{}"]))
def test_any_stack_parses_back(pattern, count, skip, first_again, scope):
    def model(x):
        streams = [x]
        for i in range(count):
            with sy.scope(scope.format(i)):
                for j, kind in enumerate(pattern[i % len(pattern)]):
                    weight = sy.parameter(f"h.{i}.{j}.weight", (WIDTH, WIDTH))
                    x = apply(kind, x, streams[-1 - min(skip, i)], 2, weight)
                x = (x + streams[1] if first_again and i else x + 0.5).named("x")
            streams.append(x)
        return x

    graph = sy.trace(model, x=f"f32[{WIDTH}]")
    assert_parses_back(graph)
    last = run_passes(graph)[-1].graph
    assert_parses_back(last)
    plan = choose_states(last)
    for chunk, is_last in ((1, True), (3, False)):
        program = derive_chunk(last, plan, rows=2, chunk=chunk, capacity=8, reserve=3, last=is_last)
        assert_parses_back(program.graph)
    assert_parses_back(derive_score(last, rows=1, length=4).graph)
    for node in last.nodes:
        for kept in states_read(last, node, plan):
            assert state_of(kept, last, program.states) is not None


def test_what_the_command_prints_parses_back(shared, graph_command):
    """By default, with its heading; ``test_round_trips`` has every stage of every family."""
    for family, stage in (("t5", "traced"), ("llama_gqa_llama3", "decode"), ("mamba", "prefill")):
        options = ("--stage", stage, "--capacity", 16)
        text = graph_command(shared / "oracle" / family, *options)[1]
        full = graph_command(shared / "oracle" / family, *options, "--full")[1]
        assert same(parse_graph(text), parse_graph(full)), (family, stage)


# ---- repeats in text ----


def test_repeats_are_written_out():
    text = "a\nrepeat l.1-6 by 2 as i, x = b then l.{i-1}\n  l.{i} {i+1} {x}\n\n  {y}\nc"
    assert [line for _, line in expand_repeats(text)] == [
        "a", "l.1 2 b", "", "{y}", "l.3 4 l.2", "", "{y}", "l.5 6 l.4", "", "{y}", "c",
    ]  # fmt: skip
    assert [number for number, _ in expand_repeats(text)] == [1, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("repeat layers.0-3", "line 2: expected 'repeat SCOPE.0-31 as i'"),
        ("repeat layers.0-3 by 3 as i", "line 2: 0-3 cannot be cut into parts of 3"),
        ("repeat layers.3-0 as i", "line 2: 3-0 cannot be cut into parts of 1"),
        ("repeat layers.0-3 by 0 as i", "line 2: 0-3 cannot be cut into parts of 0"),
    ],
)
def test_a_repeat_that_cannot_be_read(head, message):
    with pytest.raises(GraphError, match=re.escape(message)):
        parse_graph(f"graph g\n{head}\n  input x: f32[]")


def test_an_error_in_a_repeat_names_its_line():
    with pytest.raises(GraphError, match=r"line 4: no op is called 'nothing'"):
        parse_graph("graph g\ninput x: f32[]\nrepeat l.0-2 as i\n  l.{i}: f32[] = nothing(x)")


# ---- parts ----


def test_the_surroundings_of_a_node_are_a_graph(llama):
    node = find_node(llama, "layers.1.attn.probs")
    near = neighbourhood(llama, node, 1)
    attn = "layers.1.attn"
    assert [node.name for node in near.inputs] == [f"{attn}.k", f"{attn}.q", f"{attn}.v"]
    inside = [node.name for node in near.nodes if node not in near.inputs and node.op.name != "constant"]
    assert inside == [
        f"{attn}.{n}" for n in ("history", "contraction.2", "scores", "probs", "history.1", "mixed")
    ]
    assert list(near.outputs) == [f"{attn}.mixed"]
    assert print_graph(parse_graph(print_graph(near))) == print_graph(near)
    assert len(neighbourhood(llama, node, 3)) > len(near)
    assert list(neighbourhood(llama, node, 0).outputs) == ["layers.1.attn.probs"]


def test_names_are_found_by_their_end(llama):
    assert find_node(llama, "logits").name == "head.logits"
    with pytest.raises(SystolicError, match=r"3 nodes of llama end with 'probs': layers.0.attn.probs"):
        find_node(llama, "probs")
    with pytest.raises(
        SystolicError, match=r"has no node 'layers.1.attn.prob'; similar: layers.1.attn.probs"
    ):
        find_node(llama, "layers.1.attn.prob")


def test_search_shows_what_all_layers_have_once(llama):
    found = search(llama, "softmax")
    assert found.count("softmax") == 1
    assert "repeat layers.0-2 as i" in found
    single = search(llama, "layers.1.attn.k")
    assert "scope layers.1.attn" in single
    assert "{i}" not in single
    assert "param lm_head.weight" in search(llama, "lm_head")
    assert search(llama, "nowhere") == ""


# ---- drawings ----


def test_a_drawing_has_a_box_for_each_scope(llama):
    drawing = outline_to_dot(llama)
    assert re.findall(r'label="(\w+)\\n\d+ nodes', drawing) == ["embed", "attn", "mlp", "head"]
    assert drawing.count('label="layers.0-2  × 3"') == 1
    assert f'color="{ACCESS_COLOURS["prefix"]}"' in drawing
    assert "k, v [0:t]" in drawing
    assert "x to the next" in drawing
    assert len(drawing.splitlines()) < 40
    assert 'label="layers.0-3  × 4\\n' in outline_to_dot(stack([None] * 4))
    opened = outline_to_dot(llama, ["layers.1.attn"])
    assert "softmax" in opened
    assert "softmax" not in drawing


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_svg(graph_command, config):
    status, svg, _ = graph_command(config, "--format", "svg")
    assert status == 0
    assert svg.rstrip().endswith("</svg>")
    assert "layers.0&#45;2" in svg


def test_svg_without_graphviz(graph_command, config, monkeypatch):
    monkeypatch.setenv("PATH", "")
    status, out, err = graph_command(config, "--format", "svg")
    assert (status, out) == (2, "")
    assert "needs Graphviz, and its program dot is not installed" in err


# ---- differences ----


def wasteful(x):
    """Something for each pass to do, in each of three layers."""
    for i in range(3):
        with sy.scope(f"layers.{i}"):
            half = sy.sqrt(sy.constant(0.25)) if i >= 0 else None
            first = sy.tanh(x * half) * 1.0
            x = (first + sy.tanh(x * half)).named("x")
    return x


def test_differences_between_passes(golden):
    stages = run_passes(sy.trace(wasteful, x="f32[3]"))
    texts = []
    for before, after in pairwise(stages):
        found = difference(before.graph, after.graph)
        counts = [found.count(kind) for kind in ("added", "removed", "changed")]
        texts.append(f"{before.name} → {after.name} {counts}\n{show_difference(found)}")
    golden("difference", "\n\n".join(texts))


def test_a_difference_names_what_is_read_instead():
    stages = run_passes(sy.trace(wasteful, x="f32[3]"))
    found = difference(stages[0].graph, stages[-1].graph)
    removed = {change.name: change.instead for change in found.changes if change.kind == "removed"}
    assert removed["layers.1.tanh.1"] == "layers.1.tanh"
    assert found.nodes_before - found.nodes_after == found.count("removed") - found.count("added")
    again = difference(stages[-1].graph, stages[-1].graph)
    assert (again.changes, show_difference(again)) == ((), "")


def test_numbers_in_ranges():
    assert show_numbers([3, 1, 0, 2, 7, 9, 10]) == "0-3,7,9-10"


# ---- why ----


def test_why_gives_positions_paths_and_states(llama):
    explanation = explain(llama, find_node(llama, "layers.1.attn.scores"))
    assert [(e.input, e.describe()) for e in explanation.entries] == [("token", "prefix")]
    now, past = explanation.paths
    assert (now.access, past.access) == (Access(0, 0), Access(None, 0))
    assert [step.name for step in past.steps if str(step.access) == "0:t"] == ["layers.1.attn.k"]
    plan = choose_states(llama)
    read = states_read(llama, find_node(llama, "layers.1.attn.scores"), plan)
    assert [(node.name, place, str(access)) for (node, place), access in read.items()] == [
        ("layers.0.attn.k", "state", "0:t"),
        ("layers.0.attn.v", "state", "0:t"),
        ("layers.1.attn.k", "state", "0:t"),
    ]
    assert states_read(llama, find_node(llama, "layers.0.attn.q"), plan) == {}


def test_why_of_delays_and_feedback():
    def model(x):
        old = sy.delay(x, 3)
        state = sy.feedback(sy.zeros((2,)))
        new = state.close((state * 0.5 + sy.delay(old, 1)).named("new"))
        return {"short": (old + x).named("sum"), "long": (new * 1.5).named("long")}

    graph = sy.trace(model, x="f32[2]")
    plan = choose_states(graph)
    short = explain(graph, graph.by_name["sum"])
    assert [str(path.access) for path in short.paths] == ["t", "t-3"]
    assert [part for e in short.entries for part in map(str, e.reach.parts)] == ["t-3", "t"]
    long = explain(graph, graph.by_name["long"])
    assert [str(path.access) for path in long.paths] == ["t-4", "0:t-5"]
    assert [(str(a), kind) for (_, kind), a in states_read(graph, graph.by_name["long"], plan).items()] == [
        ("t-1", "tail"),
        ("t-1", "carry"),
    ]


def test_a_long_path_is_shown_by_its_ends(llama):
    deeper = load_llama(llama, layers=30)
    text = show_path(explain(deeper, find_node(deeper, "logits")).paths[0])
    assert text.startswith("token[t], over 64 edges")
    assert "… 56 more like the 2 above …" in text
    assert len(text.splitlines()) < 15
    assert "reads layers.0.attn.x: f32[16] = add" in text


# ---- columns ----


def test_columns(llama):
    plan = choose_states(llama)
    program = derive_chunk(llama, plan, rows=1, chunk=1, capacity=8, reserve=1, last=True)
    columns = measures(("bytes", "state", "work"), llama, 8, lambda: program.states)
    read = {
        name: [columns[c](llama.by_name[name]) for c in ("bytes", "state", "work")]
        for name in ("layers.0.attn.k", "layers.0.attn.scores", "layers.0.attn.contraction")
    }
    assert read == {
        "layers.0.attn.k": [32, 32, 0],
        "layers.0.attn.scores": [2 * 2 * 8 * 4, 0, 2 * 2 * 8],
        "layers.0.attn.contraction": [64, 0, 2 * 16 * 16],
    }
    with pytest.raises(SystolicError, match="a column must be one of bytes, state, work, cost, not 'cycles'"):
        measures(("cycles",), llama, 8, tuple)


def test_text_with_columns_parses_back(graph_command, config, llama):
    for options in ((), ("--full",)):
        _, text, _ = graph_command(config, "--columns", "bytes,state,work", "--capacity", 16, *options)
        assert re.search(r"\.k: f32\[2,4\] = .* # bytes +32  state +32  work +0 \| .*:\d+", text)
        assert print_graph(parse_graph(text)) == print_graph(llama)


# ---- the command ----


def test_text_folds_and_says_how_to_see_all(graph_command, config, llama):
    status, text, err = graph_command(config)
    assert (status, err) == (0, "")
    assert "232 nodes; layers.0-2 written once. --full writes every node" in text
    assert print_graph(parse_graph(text)) == print_graph(llama)
    assert graph_command(config, "--full")[1] == f"{print_graph(llama)}\n"
    assert "scope layers.1.attn" in graph_command(config, "--expand", "layers.1")[1]
    assert graph_command(config, "--json")[1] == graph_command(config, "--format", "json")[1]
    outline = graph_command(config, "--format", "outline")[1]
    assert [line.split()[0] for line in outline.splitlines()[1:]] == [
        "embed", "layers.0-2.attn", "layers.0-2.mlp", "head",
    ]  # fmt: skip


def test_around_in_every_format(graph_command, config):
    arguments = (config, "--around", "layers.1.attn.probs", "--depth", 2)
    assert "softmax" in graph_command(*arguments)[1]
    assert "layers.1.attn.probs" in {
        node["name"] for node in json.loads(graph_command(*arguments, "--json")[1])["nodes"]
    }
    assert "softmax" in graph_command(*arguments, "--format", "dot")[1]


def test_diff_and_why_as_text_and_json(graph_command, config):
    _, text, _ = graph_command(config, "--stage", "diff")
    assert re.search(r"gather_kept → share, \d+\.\d ms\n# nodes 215 → 215: 0 added", text)
    assert "# state bytes per position 192 → 192" in text
    records = json.loads(graph_command(config, "--stage", "diff", "--json")[1])
    assert [(r["from"], r["to"]) for r in records] == [
        ("traced", "fold_constants"), ("fold_constants", "simplify"),
        ("simplify", "route"), ("route", "gather_kept"), ("gather_kept", "share"),
    ]  # fmt: skip
    _, text, _ = graph_command(config, "--from", "traced", "--to", "decode")
    assert "+ state.layers.0-2.attn.k: " in text
    _, text, _ = graph_command(config, "--why", "layers.2.attn.scores")
    assert re.search(r"layers\.0-2\.attn\.k +append .* \[0:t\]", text)
    record = json.loads(graph_command(config, "--why", "layers.2.attn.scores", "--json")[1])
    assert record["inputs"] == [{"input": "token", "positions": "prefix", "access": ["0:t"]}]
    assert [state["name"] for state in record["states"]][-1] == "layers.2.attn.k"
    assert record["paths"][0]["steps"][0]["name"] == "layers.2.attn.scores"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--expand layers.9", "--expand: llama has no scope 'layers.9'"),
        ("--around nothing.like.it", "llama has no node 'nothing.like.it'"),
        ("--around logits --depth -1", "--depth must be at least 0"),
        ("--why logit", "llama has no node 'logit'; similar: head.logits"),
        ("--why logits --format dot", "--why is an explanation: its --format is text or json, not dot"),
        ("--why logits --stage states", "the stage states is no graph; expected one of traced"),
        ("--grep x --format json", "--grep shows lines: its only --format is text, not json"),
        ("--columns cycles", "a column must be one of bytes, state, work, cost, not 'cycles'"),
        ("--from nothing", "--stage must be one of traced"),
        ("--to states", "the stage states is no graph"),
        ("--stage diff --format svg", "--stage diff is a list of changes: its --format is text or json"),
    ],
)
def test_mistakes_end_in_one_sentence(graph_command, config, arguments, message):
    status, out, err = graph_command(config, *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_model_as_large_as_gpt3_is_quick(graph_command, tmp_path):
    file = write_config(tmp_path / "gpt3", **GPT3)
    start = time.perf_counter()
    _, text, _ = graph_command(file)
    data = json.loads(graph_command(file, "--json")[1])
    drawing = graph_command(file, "--format", "dot")[1]
    assert time.perf_counter() - start < 30
    assert len(data["nodes"]) > 7000
    assert len(text.splitlines()) < 150
    assert len(drawing.splitlines()) < 50
    assert len(parse_graph(text)) == len(data["nodes"])


# ---- the terminal ----


def on_a_terminal(arguments: list[str], **environment: str) -> str:
    """What a terminal of 24 lines is sent."""
    master, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "systolic", "graph", *arguments],
        stdin=end,
        stdout=end,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "24", **environment},
    )
    os.close(end)
    sent = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        sent += piece
    os.close(master)
    assert process.wait(timeout=60) == 0
    return sent.decode()


def test_colour_and_pager_on_a_terminal_only(config, graph_command):
    plain = graph_command(config, "--format", "outline")[1]
    assert "\x1b[" not in plain
    shown = on_a_terminal([str(config), "--format", "outline"], PAGER="echo PAGED")
    assert "\x1b[" in shown
    assert "PAGED" not in shown
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).replace("\r", "") == plain
    without = on_a_terminal([str(config), "--format", "outline"], NO_COLOR="1")
    assert without.replace("\r", "") == plain
    assert on_a_terminal([str(config)], PAGER="sed -n 1p", NO_COLOR="1").split() == ["graph", "llama"]
    assert "output logits" in on_a_terminal([str(config)], PAGER="no-such-pager", NO_COLOR="1")


def test_colours_change_no_character():
    text = (
        "graph g\n\ninput x: f32[2]\n  .y: f32[2] = history(x[0:t])  # a.py:1\n- gone\n[bold]not markup[/]\n"
    )
    assert re.sub(r"\x1b\[[\d;]*m", "", colour(text, "standard")) == text
