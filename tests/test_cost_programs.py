"""Whole programs predicted: regions partition them, amounts are linear in rows, and limits hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import systolic as sy
from systolic.compiler.cost.prediction import crossover_rows, most_rows, plan_program, predict
from systolic.compiler.cost.regions import regions_of
from systolic.compiler.cost.targets import load_target
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.compiler.pipeline import run_passes
from systolic.models.families import build
from systolic.models.spec import Config

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}
EXPERTS = {
    "model_type": "mixtral",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 8192,
}
V5E = load_target("tpu-v5e")


def graph_of(config):
    return run_passes(build(Config("config.json", config))[1])[-1].graph


@pytest.fixture(scope="module")
def llama():
    return graph_of(LLAMA)


def program(graph, rows, chunk=1, capacity=512):
    plan = choose_states(graph)
    return derive_chunk(graph, plan, rows=rows, chunk=chunk, capacity=capacity, reserve=chunk)


def weight_elements(graph):
    return sum(node.tensor.size for node in graph.parameters)


@pytest.mark.parametrize("chunk", [1, 64])
def test_one_program_tells_the_amounts_of_every_batch(llama, chunk):
    two, five = (regions_of(program(llama, rows, chunk), "bf16") for rows in (2, 5))
    assert [r.name for r in two] == [r.name for r in five]
    for a, b in zip(two, five, strict=True):
        for rows in (1, 7):
            assert a.weights.at(rows) == b.weights.at(rows)
            assert a.state.at(rows) == pytest.approx(b.state.at(rows))
            assert a.elementwise.at(rows) == pytest.approx(b.elementwise.at(rows), rel=1e-3)
            assert [p.at(rows) for p in a.products] == [p.at(rows) for p in b.products]


def test_every_computed_node_is_in_one_region(llama):
    regions = regions_of(program(llama, 2), "bf16")
    names = [name for region in regions for name in region.nodes]
    assert len(names) == len(set(names))
    products = [node.name for node in program(llama, 2).graph if node.op.name == "contraction"]
    assert set(products) <= set(names)
    assert sum(len(region.products) for region in regions) == len(products)


def test_norms_and_residuals_ride_on_matmuls(llama):
    kinds = [region.kind for region in regions_of(program(llama, 2), "bf16")]
    assert kinds.count("elementwise") == 1  # positions and masks
    assert kinds.count("matmul") == 3 * 9 + 1


def test_what_a_norm_scales_is_not_written_but_made_again_by_its_readers(llama):
    regions = {region.name: region for region in regions_of(program(llama, 2), "bf16")}
    read = {value.name for value in regions["layers.1.attn.contraction"].inputs}
    assert {"layers.0.mlp.x", "layers.1.attn.sum"} <= read
    product = regions["layers.1.attn.contraction"].products[0]
    written = {value.name for region in regions.values() for value in region.results}
    assert "layers.0.mlp.x" in written
    assert product.left not in written | read


def test_a_decode_step_reads_every_weight_once_and_the_state_of_each_row(llama):
    plan = plan_program(llama, V5E, context=512)
    found = predict(plan, 4)
    embedding = 32000 * 1024 * 2  # of which it reads a few rows
    assert found.total("weights") == pytest.approx(plan.weight_bytes - embedding, rel=1e-3)
    state = 4 * 512 * 3 * 2 * 4 * 64 * 2
    assert found.total("state") == pytest.approx(state, rel=1e-2)
    assert plan.row_bytes == state / 4


def test_multiply_adds_are_those_of_the_model(llama):
    plan = plan_program(llama, V5E, context=512)
    matmuls = weight_elements(llama) - 32000 * 1024 - 7 * 1024  # without the embedding and norms
    attention = 3 * 2 * 16 * 64 * 512
    assert predict(plan, 6).total("multiply_adds") == 6 * (matmuls + attention)


def test_time_is_never_below_the_roofline(llama):
    for phase in ("decode", "prefill"):
        plan = plan_program(llama, V5E, context=512, phase=phase)
        for rows in (1, 8, 64):
            found = predict(plan, rows)
            assert 0 < found.mfu <= 1
            assert 0 < found.mbu <= 1
            assert found.seconds >= 2 * found.total("multiply_adds") / V5E.peak["bf16"]


def test_joining_is_taken_only_where_it_is_faster(llama):
    found = predict(plan_program(llama, V5E, context=4096, phase="prefill"), 4)
    kinds = {decision.kind for decision in found.decisions if decision.is_taken}
    assert kinds == {"attention", "projections"}
    assert all(d.joined < d.apart for d in found.decisions if d.is_taken)
    assert any(region.kind == "attention" for region in found.regions)
    scores = 4 * 16 * 4096 * 4096 * 2
    assert found.total("activations") < scores  # which are never written


def test_integers_with_scales_are_read_as_they_are_kept_and_scaled_on_the_way():
    from systolic.models.compact import keep_compact
    from systolic.models.load import COMPACT

    built = build(Config("config.json", LLAMA))[1]
    plain, kept = (
        predict(plan_program(run_passes(graph)[-1].graph, V5E, context=64, dtype="bf16"), 8)
        for graph in (built, keep_compact(built, None, COMPACT["int8-32"])[0])
    )
    matrices = weight_elements(graph_of(LLAMA)) - 32000 * 1024 - 7 * 1024  # without embedding and norms
    saved = matrices * (2 - 1 - 2 / 32)  # bf16 against a byte and a share of a bf16 scale
    assert plain.total("weights") - kept.total("weights") == pytest.approx(saved, rel=0.02)
    prologues = [region.prologue.operations for region in kept.plan.regions if region.products]
    assert sum(prologues) == pytest.approx(2 * matrices, rel=0.02)  # a cast and a product each
    assert not any(region.prologue.operations for region in plain.plan.regions)
    assert kept.seconds < plain.seconds
    fused = [decision for decision in kept.decisions if decision.kind == "dequantisation"]
    assert len(fused) == sum(bool(region.prologue.operations) for region in kept.regions)
    assert all(decision.is_taken for decision in fused)


def test_weights_that_are_made_too_often_are_made_first():
    from systolic.models.compact import keep_compact
    from systolic.models.load import COMPACT

    built = keep_compact(build(Config("config.json", LLAMA))[1], None, COMPACT["int4-32"])[0]
    compiler = replace(V5E.compiler, bytes_per_cycle=1e5, window_bytes=1 << 20)
    slow = replace(V5E, vector=replace(V5E.vector, lanes=4), compiler=compiler)
    plan = plan_program(run_passes(built)[-1].graph, slow, context=2048, phase="prefill", dtype="bf16")
    found = predict(plan, 4)
    first = [d for d in found.decisions if d.kind == "dequantisation" and not d.is_taken]
    assert first
    widening = [region for region in found.regions if region.kind == "dequantisation"]
    assert {region.name for region in widening} == {decision.names[0] for decision in first}
    readers = [region for region in found.regions if region.name == first[0].names[1]]
    assert [region.prologue.operations for region in readers] == [0]


def test_experts_are_read_as_often_as_they_are_chosen():
    graph = graph_of(EXPERTS)
    plan = plan_program(graph, V5E, context=64)
    expert = 3 * 256 * 512 * 2  # bytes of one, in each of two layers

    def read(rows):  # without the rows of the embedding
        return predict(plan, rows).total("weights") - rows * 256 * 2

    always = read(1000) - 2 * 16 * expert
    one_row = 2 * 16 * (1 - (1 - 1 / 16) ** 2) * expert  # two choices in each of two layers
    assert read(1) == pytest.approx(always + one_row)
    assert read(1) < 0.5 * read(64) < read(64) <= read(1000)


def test_what_fits_and_where_arithmetic_takes_over(llama):
    plan = plan_program(llama, V5E, context=2048)
    most = most_rows(plan)
    room = V5E.memory.hbm_bytes
    assert plan.weight_bytes + most * plan.row_bytes <= room < plan.weight_bytes + (most + 1) * plan.row_bytes
    short = plan_program(llama, V5E, context=16)
    crossover = crossover_rows(short)
    before, at = (predict(short, rows) for rows in (crossover - 1, crossover))
    assert before.total("arithmetic_seconds") <= before.total("memory_seconds")
    assert at.total("arithmetic_seconds") > at.total("memory_seconds")


def test_targets_without_clock_or_memory_are_rooflines(llama):
    machine = replace(
        V5E,
        name="plain",
        arrays=None,
        vector=None,
        compiler=None,
        energy=None,
        peak={"f32": 1e14, "bf16": 1e14},
    )
    found = predict(plan_program(llama, machine, context=256), 1)
    least = found.total("bytes") / V5E.memory.hbm_bytes_per_second
    assert found.seconds == pytest.approx(least, rel=0.2)
    assert found.cycles is None
    assert math.isnan(found.total("joules"))


def test_recurrent_and_encoder_models_are_predicted_too():
    mamba = {
        "model_type": "mamba",
        "vocab_size": 100,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "state_size": 4,
    }
    for phase in ("decode", "prefill"):
        assert predict(plan_program(graph_of(mamba), V5E, context=128, phase=phase), 3).seconds > 0

    def encoder(x):
        return sy.softmax(sy.einsum("d,pd->p", x, sy.whole(x)))

    graph = sy.trace(encoder, x="f32[8]")
    assert predict(plan_program(graph, V5E, context=16, phase="prefill"), 1).seconds > 0
    with pytest.raises(sy.SystolicError, match="whole"):
        plan_program(graph, V5E, context=16)


# ---- the command ----


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA))
    return file


def test_the_command_tells_the_same_as_python(cli, config, llama):
    status, out, _ = cli("cost", config, "--target", "tpu-v5e", "--batch", 8, "--context", 1024, "--json")
    assert status == 0
    shown = json.loads(out)
    found = predict(plan_program(llama, V5E, context=1024), 8)
    assert shown["seconds"] == pytest.approx(found.seconds)
    assert shown["hbm_bytes"]["weights"] == round(found.total("weights"))
    assert sum(entry["share"] for entry in shown["scopes"]) == pytest.approx(1, abs=0.05)
    assert len(shown["regions"]) == len(found.regions)


@pytest.mark.parametrize("by", ["scope", "op"])
def test_the_table_counts_layers_together(cli, config, by):
    status, out, _ = cli("cost", config, "--by", by, "--phase", "prefill")
    assert status == 0
    assert "layers.*" in out
    assert "layers.1" not in out
    assert "tokens/s" in out


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plots_are_written(cli, config, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"plot{suffix}"
    assert cli("cost", config, "--plot", file)[0] == 0
    assert file.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either a MODEL or --matmul"),
        (("MODEL", "--matmul", "1,2,3"), "either a MODEL or --matmul"),
        (("MODEL", "--phase", "train"), "--phase must be one of decode, prefill"),
        (("MODEL", "--dtype", "i3"), "dtype 'i3'"),
        (("MODEL", "--batch", "0"), "at least one row"),
        (("MODEL", "--by", "node"), "--by must be scope or op"),
        (("MODEL", "--plot", "roof.pdf"), ".png or .svg"),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(cli, config, arguments, message):
    status, _, err = cli("cost", *(config if a == "MODEL" else a for a in arguments))
    assert status == 2
    assert message in err.replace("\n", " ")


def test_amounts_are_numbers(llama):
    found = predict(plan_program(llama, V5E, context=64), 2)
    values = [value for cost in found.costs for value in (cost.seconds, cost.bytes, cost.on_chip)]
    assert np.isfinite(values).all()
    assert min(values) >= 0
