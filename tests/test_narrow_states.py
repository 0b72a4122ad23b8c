"""States in fewer bits: which streams are rounded, what is kept then, and that every program rounds alike."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import WIDTH, build, draw_parameters, recipes, run_at_once, run_in_chunks
from small_models import V, attention, hybrid, tiny, window

import systolic as sy
from systolic.compiler.derive import choose_forms, choose_states
from systolic.compiler.passes.narrow_states import narrow_states, rounded_from
from systolic.compiler.pipeline import passes_with, run_passes
from systolic.ir.dumps.text import print_graph
from systolic.ir.interpret import interpret
from systolic.models.load import load

LENGTH = 8
WIDE = 24  # of a stream that is cheaper to project before it is kept
NARROW = ("bf16", "f16", "int8")


def narrowed(graph, dtype="int8", strategy="auto"):
    return run_passes(graph, passes_with(dtype, strategy))[-1].graph


def kept(graph, strategy="auto"):
    """The types of what is kept by position, by name."""
    return {node.name: str(node.tensor) for node in choose_forms(graph, strategy)[0].plan.histories}


def heads(x, past=None):
    """Two heads of four, keys that each head repeats, and values."""
    k = (sy.parameter("k", (4, WIDE)) @ x).named("keys")
    v = (sy.parameter("v", (8, WIDE)) @ x).reshape(2, 4).named("values")
    q = (sy.parameter("q", (8, WIDE)) @ x).reshape(2, 4)
    repeated = sy.broadcast_to(k, (2, 4)).named("repeated")
    scores = sy.softmax(sy.einsum("hd,phd->hp", q, sy.history(repeated, past)))
    return sy.einsum("hp,phd->hd", scores, sy.history(v, past)).reshape(8)


# ---- the pass ----


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_narrow_states(golden, dtype):
    graph = sy.trace(lambda x: sy.sum(sy.einsum("d,pd->p", x, sy.history(x.named("k") * 2.0))), x="f32[4]")
    before, after = (
        print_graph(g, locations=False) for g in (graph, narrow_states(graph, {"multiply"}, dtype))
    )
    golden(f"narrow_states_{dtype}", f"{before}\n\n→\n\n{after}")


def test_what_the_past_is_made_from_is_rounded_before():
    graph = run_passes(sy.trace(lambda x: heads(x), x=f"f32[{WIDE}]"))[-1].graph
    assert kept(graph) == {"keys": "f32[4]", "values": "f32[2,4]"}
    assert kept(narrowed(graph)) == {
        "keys.integers": "i8[4]",
        "keys.scales": "f32[1]",
        "values.integers": "i8[2,4]",
        "values.scales": "f32[2,1]",
    }
    assert kept(narrowed(graph, "bf16")) == {"keys.bf16": "u16[4]", "values.bf16": "u16[2,4]"}
    repeated = {"repeated.f16": "f16[2,4]", "values.f16": "f16[2,4]"}
    assert kept(narrowed(graph, "f16", "sources"), "sources") == repeated
    reasons = choose_states(narrowed(graph)).reasons.values()
    assert set(reasons) == {
        "read through a prefix; keys is rounded: 8 bytes per position instead of 16",
        "read through a prefix; values is rounded: 16 bytes per position instead of 32",
    }


def test_what_is_not_multiplied_keeps_all_its_bits():
    def model(x):
        near = sy.softmax(-sy.absolute(sy.history(x)[:, 0] - x[0]))  # a distance
        total = sy.history(x * 2.0)  # read by a product and by a sum
        return near @ total + sy.sum(total, 0) + sy.history(x[1]) @ near  # a vector of one

    graph = run_passes(sy.trace(model, x="f32[4]"))[-1].graph
    assert narrow_states(graph, set(kept(graph)), "int8") is graph


@pytest.mark.parametrize("name", ["mamba", "lstm_lm", "wavenet_lm"])
def test_carries_and_tails_are_left_alone(shared, name):
    graph = run_passes(load(shared / "oracle" / name).graph)[-1].graph
    assert print_graph(narrowed(graph)) == print_graph(graph)


def test_latents_are_rounded_before_they_are_projected(shared):
    model = load(shared / "oracle" / "deepseek_v3")
    exe = sy.compile(model, backend="numpy", capacity=48, state_dtype="int8")
    assert {str(state.value) for state in exe.states} == {"i8[16]", "f32[1]", "i8[8]"}
    whole = sy.compile(model, backend="numpy", capacity=48)
    assert sum(s.bytes for s in exe.states) * 3 == sum(s.bytes for s in whole.states)


def test_an_unknown_kind_lists_the_known():
    with pytest.raises(sy.SystolicError, match="state_dtype must be one of f32, bf16, f16, int8, not 'int4'"):
        tiny(attention, state_dtype="int4")


# ---- rounding ----


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=9),
)
def test_a_vector_is_at_most_half_a_step_away(values):
    size = len(values)
    graph = narrowed(
        sy.trace(
            lambda x: sy.einsum("ed,pd->pe", sy.constant(np.eye(size, dtype=np.float32)), sy.history(x)),
            x=f"f32[{size}]",
        )
    )
    x = np.array([values], np.float32)
    read = interpret(graph, {"x": x}, {})["output"][0][0]
    # Below 1e-30 / 127, a scale has no inverse, and all is zero.
    step = max(np.abs(x).max() / 127, 1e-30 / 127)
    assert (np.abs(read - x[0]) <= 0.5001 * step).all()
    largest = np.abs(x[0]) == np.abs(x).max()
    np.testing.assert_allclose(read[largest], x[0][largest], rtol=1e-6, atol=1e-30)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    cuts=st.sets(st.integers(1, LENGTH - 1)),
    dtype=st.sampled_from(NARROW),
    strategy=st.sampled_from(["auto", "sources"]),
    past=st.sampled_from([None, 3]),
)
def test_any_split_of_rounded_pasts_equals_the_interpreter(seed, cuts, dtype, strategy, past):
    traced = run_passes(sy.trace(lambda x: heads(x, past), x=f"f32[{WIDE}]"))[-1].graph
    graph = narrowed(traced, dtype, strategy)
    # On a grid, sums are exact whatever their order, and so is what is rounded: no step may differ.
    values = np.random.default_rng(seed).integers(-8, 9, (2, LENGTH, WIDE)).astype(np.float32) / 4
    parameters = {name: np.round(w * 4) / 4 for name, w in draw_parameters(graph).items()}
    want = [interpret(graph, {"x": row}, parameters)["output"] for row in values]
    split = np.diff([0, *sorted(cuts), LENGTH]).tolist()
    plan = choose_states(graph, strategy)
    assert all(rounded_from(node) for node in plan.histories)
    got = run_in_chunks(graph, plan, values, parameters, [(n, n) for n in split], capacity=LENGTH + 1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run_at_once(graph, values, parameters), want, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(recipe=recipes, cuts=st.sets(st.integers(1, LENGTH - 1)))
def test_any_graph_with_rounded_pasts(recipe, cuts):
    graph = narrowed(build(recipe), "f16")
    parameters = draw_parameters(graph)
    values = np.random.default_rng(1).normal(size=(1, LENGTH, WIDTH)).astype(np.float32)
    want = [interpret(graph, {"x": row}, parameters)["output"] for row in values]
    split = [(n,) for n in np.diff([0, *sorted(cuts), LENGTH]).tolist()]
    got = run_in_chunks(graph, choose_states(graph), values, parameters, split, capacity=LENGTH + 1)
    # Sums in another order may be rounded to a neighbour, 1/1024 of a value below about 10.
    np.testing.assert_allclose(got, want, rtol=3e-2, atol=3e-2)


# ---- models ----

# What is lost of a token's log-likelihood. Half a step of int8 is 1/254 of a vector's largest element, half a
# step of f16 1/2048 of each element; scores of these models are a few units, and so is what these lose.
LOST = {"f16": 0.01, "int8": 0.15}


@pytest.mark.parametrize("dtype", ["f16", "int8"])
@pytest.mark.parametrize("name", ["llama_gqa_llama3", "gemma2", "mistral_sliding", "deepseek_v3", "gpt2"])
def test_recorded_models_with_rounded_pasts(shared, name, dtype):
    folder = shared / "oracle" / name
    exe = sy.compile(load(folder), backend="numpy", capacity=64, chunk=16, state_dtype=dtype)
    recorded = np.load(folder / "oracle.npz")
    ids = recorded["ids_1"].tolist()
    if dtype == "f16":
        assert exe.generate(ids, max_new_tokens=24, ignore_eos=True) == recorded["greedy_1"].tolist()
    lost = exe.log_likelihoods(ids) - recorded["token_ll_1"]
    assert 0 < np.abs(lost).max() < LOST[dtype]
    assert abs(lost.mean()) < LOST[dtype] / 5


@pytest.mark.parametrize("dtype", NARROW)
def test_stories_are_told_alike_on_both_backends(shared, dtype):
    model = load(shared / "real" / "stories260K")
    said = [
        sy.compile(model, backend=backend, capacity=128, state_dtype=dtype).generate(
            [1, 403, 407], max_new_tokens=80
        )
        for backend in ("numpy", "xla")
    ]
    assert said[0] == said[1] == sy.compile(model, backend="numpy").generate([1, 403, 407], max_new_tokens=80)


# ---- what is done with rows ----

PROMPTS = [
    np.random.default_rng(seed).integers(0, V, length).tolist() for seed, length in enumerate((3, 30, 17))
]


@pytest.fixture(params=[attention, window, hybrid], ids=lambda step: step.__name__)
def rounded(request):
    return tiny(request.param, batch=3, state_dtype="int8")


def test_batches_schedules_and_guesses_change_nothing(rounded):
    alone = [rounded.generate(prompt, max_new_tokens=12) for prompt in PROMPTS]
    assert rounded.generate_batch(PROMPTS, max_new_tokens=12) == alone
    guessed = rounded.speculate(PROMPTS[1], guesses=3, max_new_tokens=12)
    assert [step.token for step in guessed] == alone[1]
    scheduler = rounded.scheduler(checkpoint_every=8)
    sent = [scheduler.submit(prompt=prompt, max_new_tokens=12) for prompt in [*PROMPTS, *PROMPTS]]
    while scheduler.step():
        pass
    assert [request.tokens for request in sent] == [*alone, *alone]


def test_rounded_pasts_are_set_back_and_saved(rounded, tmp_path):
    rows = rounded.batch(8)
    ids = PROMPTS[1]
    rows.read({0: ids})
    rows.fork(0, [1])
    again = rows.rewind(1, 13)
    rounded.save_state(rows.take(0), tmp_path / "state")
    model = rounded.model.graph, rounded.model.weights
    elsewhere = sy.compile(*model, chunk=16, capacity=48, state_dtype="int8")
    other = elsewhere.batch()
    other.put(0, elsewhere.load_state(tmp_path / "state"))
    read = {**rows.read({0: [4], 1: [*again, 4]}), 2: other.read({0: [4]})[0]}
    for row, text in ((0, [*ids, 4]), (1, [*ids[:13], 4]), (2, [*ids, 4])):
        np.testing.assert_allclose(read[row], rounded.score(text)[-1], rtol=1e-3, atol=1e-3)
    exact = sy.compile(*model, backend="numpy", chunk=16, capacity=64)
    with pytest.raises(sy.SystolicError, match="states need the state_dtype"):
        exact.load_state(tmp_path / "state")


# ---- the command line ----


def test_the_command_line_keeps_what_it_is_told(cli, tmp_path):
    out = tmp_path / "compiled"
    status, _, err = cli("compile", "shakespeare", "--out", out, "--capacity", 64, "--state-dtype", "int8")
    assert (status, err) == (0, "")
    states = json.loads((out / "manifest.json").read_text())["states"]
    assert {state["value"] for state in states} == {"i8[2,48]", "f32[2,1]"}
    assert (out / "graph" / "06.narrow_states.txt").is_file()
    said = [
        cli("run", *of, "--backend", "numpy", "--prompt", "ROMEO:", "--max-new-tokens", 8, "--temperature", 0)
        for of in ([out], ["shakespeare", "--state-dtype", "int8", "--capacity", 64])
    ]
    assert said[0] == said[1]
    status, _, err = cli("run", out, "--backend", "numpy", "--prompt", "A", "--state-dtype", "f16")
    assert status == 2
    assert "was compiled for state_dtype int8 and cannot run with f16" in err
    status, _, err = cli("score", "shakespeare", out / "config.json", "--state-dtype", "int3")
    assert status == 2
    assert "state_dtype must be one of f32, bf16, f16, int8, not 'int3'" in err


def test_more_rows_fit_and_less_is_read(cli, shared):
    config = shared / "oracle" / "qwen3" / "config.json"
    wide, narrow = (
        json.loads(cli("cost", config, "--json", "--dtype", "f32", "--context", 4096, *options)[1])
        for options in ((), ("--state-dtype", "int8"))
    )
    # 24 bytes and a scale of 4 for each head, instead of 96; what is read of a state is all of it.
    assert narrow["state_bytes_per_row"] * 96 == wide["state_bytes_per_row"] * 28
    assert narrow["hbm_bytes"]["state"] * 96 == wide["hbm_bytes"]["state"] * 28
    assert narrow["hbm_bytes"]["activations"] == wide["hbm_bytes"]["activations"]
    assert narrow["largest_batch_that_fits"] > 3 * wide["largest_batch_that_fits"]
