"""What passes change on a target, and costs in a column: systolic graph --target."""

from __future__ import annotations

import json
import re

import pytest

from systolic.compiler.cost import load_target
from systolic.compiler.cost.prediction import plan_program, predict
from systolic.compiler.pipeline import run_passes
from systolic.ir.dumps.parse import parse_graph
from systolic.ir.dumps.text import print_graph
from systolic.models.load import load

CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))
    return file


def predicted(graph, target="tpu-v5e", rows=1):
    return predict(plan_program(graph, load_target(target), context=256), rows)


def test_a_difference_tells_what_it_changes_on_a_target(cli, config):
    """Routing tokens to experts reads fewer weights from main memory."""
    stages = {stage.name: stage.graph for stage in run_passes(load(config).graph)}
    old, new = (predicted(stages[name]) for name in ("simplify", "route"))
    assert new.total("bytes") < old.total("bytes")
    options = (config, "--from", "simplify", "--to", "route", "--target", "tpu-v5e")
    _, text, _ = cli("graph", *options)
    assert "# a step of 1 row behind 255 positions on tpu-v5e, bf16:" in text
    before, after = round(old.cycles), round(new.cycles)
    change = f" ({after - before:+,})" if after != before else ""
    assert f"#   cycles {before:,} → {after:,}{change}\n" in text
    before, after = round(old.total("bytes")), round(new.total("bytes"))
    assert f"#   bytes of main memory {before:,} → {after:,} ({after - before:+,})\n" in text
    (record,) = json.loads(cli("graph", *options, "--json")[1])
    assert record["cycles"] == [round(old.cycles), round(new.cycles)]
    assert record["nanoseconds"] == [round(1e9 * old.seconds), round(1e9 * new.seconds)]
    assert record["main_memory_bytes"] == [before, after]


def test_without_a_target_nothing_is_predicted(cli, config):
    _, text, _ = cli("graph", config, "--stage", "diff")
    assert "cycles" not in text
    assert json.loads(cli("graph", config, "--stage", "diff", "--json")[1])[0]["cycles"] == [None, None]


def test_rows_are_those_of_the_batch(cli, config):
    options = (config, "--from", "traced", "--to", "share", "--target", "tpu-v5e", "--json")
    (one,), (many,) = (json.loads(cli("graph", *options, "--batch", rows)[1]) for rows in (1, 64))
    assert many["main_memory_bytes"][1] > one["main_memory_bytes"][1]


@pytest.mark.parametrize("stage", ["traced", "share", "decode"])
def test_the_column_adds_up_to_the_prediction(cli, config, stage):
    """But for what only the program has: positions and masks."""
    options = (config, "--stage", stage, "--columns", "cost", "--target", "tpu-v5e", "--full")
    _, text, _ = cli("graph", *options)
    total = sum(int(cost.replace(",", "")) for cost in re.findall(r"# cost +([\d,]+)", text))
    stages = {s.name: s.graph for s in run_passes(load(config).graph)}
    found = predicted(stages.get(stage, stages["share"]))
    expected = 1e9 * (found.seconds - found.plan.machine.launch_seconds)
    assert 0.9 * expected < total < expected + len(text.splitlines())  # each is rounded
    assert "cost" in cli("graph", *options[:-1], "--format", "outline")[1].split("\n")[0]
    if stage == "traced":
        assert print_graph(parse_graph(text), locations=False) == print_graph(
            stages["traced"], locations=False
        )


def test_the_product_of_a_layer_costs_more_than_its_norm(cli, config):
    options = (config, "--columns", "cost", "--target", "tpu-v5e", "--full")
    costs = dict(re.findall(r"^ *([\w.]+): .*# cost +([\d,]+)", cli("graph", *options)[1], re.MULTILINE))
    assert int(costs[".logits"].replace(",", "")) > int(costs[".rsqrt"].replace(",", ""))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--columns", "cost"), "the column cost is predicted for a target: name it with --target"),
        (("--target", "tpu-v5e"), "--target is for --stage diff, chunks or numpy, or for --columns cost"),
        (("--stage", "diff", "--target", "abacus"), "abacus"),
    ],
)
def test_mistakes(cli, config, options, message):
    status, out, err = cli("graph", config, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
