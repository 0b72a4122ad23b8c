"""Compiled models against recorded texts, and against themselves under other options."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

import systolic as sy
from systolic.models.load import load
from systolic.runner.compilation import compile
from systolic.runner.generate import Generation

BACKENDS = ["numpy", "xla"]
V, D = 23, 8


def attention_step(token):
    """A token sees the last four before it and, one layer later, everything."""
    x = sy.take(sy.parameter("embedding", (V, D)), token)
    for layer, window in ((0, 4), (1, None)):
        q, k, v = (x @ sy.parameter(f"{name}{layer}", (D, D)) for name in "qkv")
        scores = sy.einsum("d,pd->p", q, sy.history(k, window=window))
        x = x + sy.einsum("p,pd->d", sy.softmax(scores), sy.history(v, window=window))
    return {"logits": x @ sy.parameter("head", (D, V))}


def recurrent_step(token):
    x = sy.take(sy.parameter("embedding", (V, D)), token)
    carried = sy.feedback(sy.zeros((D,)))
    x = carried.close(sy.tanh(x + carried @ sy.parameter("recurrent", (D, D))))
    x = x + sy.delay(x, 2, sy.zeros((D,)))
    return {"logits": x @ sy.parameter("head", (D, V))}


def random_weights(graph) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {n.name: random.normal(size=n.tensor.static_shape).astype(np.float32) for n in graph.parameters}


def tiny(step=attention_step, **options):
    graph = sy.trace(step)
    return compile(graph, random_weights(graph), **{"backend": "numpy", "capacity": 48, **options})


# ---- a real model ----


@pytest.fixture(scope="module")
def stories(shared):
    folder = shared / "real" / "stories260K"
    return load(folder), json.loads((folder / "reference.json").read_text())["cases"]


@pytest.fixture(scope="module", params=BACKENDS)
def storyteller(request, stories):
    return compile(stories[0], backend=request.param)


def test_stories_greedy_texts_are_exact(storyteller, stories):
    for case in stories[1]:
        settings = {"max_new_tokens": len(case["new_ids"]), "ignore_eos": True}
        assert storyteller.generate(case["prompt"], **settings) == case["new_ids"]
        assert case["prompt"] + "".join(storyteller.stream(case["prompt_ids"], **settings)) == case["text"]


def test_stories_scores(storyteller, stories, shared):
    recorded = np.load(shared / "real" / "stories260K" / "reference_logits.npz")
    for i, case in enumerate(stories[1]):
        ids = case["prompt_ids"] + case["new_ids"]
        logits = storyteller.score(ids)
        assert logits.dtype == np.float32
        assert logits.shape == (len(ids), 512)
        expected = recorded[f"logits_{i}"]
        assert np.abs(logits[: len(expected)] - expected).max() < 2e-4
        assert abs(storyteller.log_likelihoods(ids).sum() - case["log_likelihood"]) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gpt2", "llama_gqa_llama3"])
def test_recorded_models(shared, name, backend):
    folder = shared / "oracle" / name
    executable, recorded = compile(load(folder), backend=backend), np.load(folder / "oracle.npz")
    for i in range(3):
        ids, expected = recorded[f"ids_{i}"], recorded[f"logits_{i}"]
        assert np.abs(executable.score(ids) - expected).max() < 1e-4 * np.abs(expected).max()
        greedy = executable.generate(ids, max_new_tokens=24, ignore_eos=True)
        assert greedy == recorded[f"greedy_{i}"].tolist()


def test_the_same_seed_draws_the_same_text_on_every_backend(stories):
    settings = {"max_new_tokens": 60, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "ignore_eos": True}
    drawn = {
        (backend, seed): compile(stories[0], backend=backend).generate("Once", seed=seed, **settings)
        for backend in BACKENDS
        for seed in (1, 2)
    }
    assert drawn["numpy", 1] == drawn["xla", 1]
    assert drawn["numpy", 2] == drawn["xla", 2]
    assert drawn["numpy", 1] != drawn["numpy", 2]


@pytest.mark.parametrize("state", ["sources", "tokens"])
def test_however_states_are_chosen_the_text_is_the_same(stories, state):
    case = stories[1][0]
    executable = compile(stories[0], backend="numpy", state=state, capacity=64)
    assert executable.generate(case["prompt"], max_new_tokens=24) == case["new_ids"][:24]


def test_ends_of_a_text(stories):
    model, cases = stories
    case = cases[0]  # "Once upon a time" + ", there was a little girl named Lily. She loved to play …"
    ends = dataclasses.replace(model, eos_ids=(case["new_ids"][6],))
    executable = compile(ends, backend="numpy", capacity=64)
    steps = list(executable.steps(case["prompt"], max_new_tokens=20))
    assert [step.token for step in steps] == case["new_ids"][:7]
    assert [step.finish_reason for step in steps] == [None] * 6 + ["eos"]
    assert "".join(step.text for step in steps) == executable.tokenizer.decode(case["new_ids"][:6])
    goes_on = executable.generate(case["prompt"], max_new_tokens=20, ignore_eos=True)
    assert goes_on == case["new_ids"][:20]
    *_, last = executable.steps(case["prompt"], stop=["girl named", " Lily."], ignore_eos=True)
    assert last.finish_reason == "stop"
    text = "".join(executable.stream(case["prompt"], stop=["girl named", " Lily."], ignore_eos=True))
    assert text == ", there was a little "
    # What looks like a stop string until the last token is text after all.
    three = executable.tokenizer.decode(case["new_ids"][:3])
    assert "".join(executable.stream(case["prompt"], max_new_tokens=3, stop=[f"{three}???"])) == three


# ---- small models, made here ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [attention_step, recurrent_step])
@pytest.mark.parametrize("chunk", [1, 3, 16, 40])
def test_any_chunk_gives_the_logits_of_one_pass(step, chunk, backend):
    ids = np.random.default_rng(0).integers(0, V, 37).tolist()
    executable = tiny(step, chunk=chunk, backend=backend)
    (first, *_) = executable.generate(ids, max_new_tokens=5)
    expected = tiny(step).score(ids)
    assert first == expected[-1].argmax()
    np.testing.assert_allclose(executable.score(ids), expected, rtol=1e-4, atol=1e-4)
    assert executable.generate(ids, max_new_tokens=5) == tiny(step, chunk=48).generate(ids, max_new_tokens=5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [attention_step, recurrent_step])
def test_rows_of_a_batch_are_what_they_are_alone(step, backend):
    random = np.random.default_rng(1)
    prompts = [random.integers(0, V, length).tolist() for length in (1, 30, 7, 2, 45)]
    alone, together = tiny(step), tiny(step, batch=3, chunk=8, backend=backend)
    expected = [alone.generate(prompt, max_new_tokens=6) for prompt in prompts]
    assert together.generate_batch(prompts, max_new_tokens=6) == expected
    assert [len(reply) for reply in expected] == [6, 6, 6, 6, 4]  # the last one reaches the capacity


def test_rows_draw_numbers_of_their_own():
    executable = tiny(batch=2)
    settings = {"max_new_tokens": 20, "temperature": 3.0, "seed": 1}
    first, second, third = executable.generate_batch([[4], [4], [4]], **settings)
    assert first == executable.generate([4], **settings)
    assert first != second
    assert third not in (first, second)


def test_generators_do_not_share_states():
    executable = tiny()
    expected = {start: executable.generate([start], max_new_tokens=8) for start in (1, 2)}
    pairs = list(zip(*(executable.steps([start], max_new_tokens=8) for start in (1, 2)), strict=True))
    assert [a.token for a, _ in pairs] == expected[1]
    assert [b.token for _, b in pairs] == expected[2]


@pytest.mark.parametrize(("length", "tokens"), [(40, 9), (47, 2), (48, 1)])
def test_a_text_ends_when_the_capacity_is_full(length, tokens):
    steps = list(tiny().steps([3] * length, max_new_tokens=1000))
    assert len(steps) == tokens
    assert steps[-1].finish_reason == "capacity"


def test_lengths_of_new_text():
    executable = tiny()
    assert executable.generate([1], max_new_tokens=0) == []
    assert [step.finish_reason for step in executable.steps([1], max_new_tokens=2)] == [None, "length"]


def test_what_is_kept():
    states = {state.name: state for state in tiny(chunk=8).states}
    assert sorted(state.kind for state in states.values()) == ["append", "append", "ring", "ring"]
    kinds = {state.kind for state in tiny(recurrent_step).states}
    assert kinds == {"carry", "tail"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_encoder_encodes_and_cannot_generate(backend):
    def step(token):
        x = sy.take(sy.parameter("embedding", (V, D)), token)
        scores = sy.einsum("d,pd->p", x, sy.whole(x))
        return {"hidden": sy.einsum("p,pd->d", sy.softmax(scores), sy.whole(x))}

    executable = tiny(step, backend=backend)
    ids = [3, 1, 4, 1, 5]
    x = executable.model.weights["embedding"][ids]
    weights = np.exp(x @ x.T)
    expected = weights / weights.sum(-1, keepdims=True) @ x
    np.testing.assert_allclose(executable.encode(ids), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(sy.CausalityError, match="depends on later positions"):
        executable.generate(ids)


# ---- mistakes ----


def test_mistakes_in_prompts_are_named(stories):
    executable = compile(stories[0], backend="numpy", capacity=20)
    with pytest.raises(sy.SystolicError, match="token id 512 is outside the vocabulary of stories260K"):
        executable.generate([1, 512])
    with pytest.raises(sy.SystolicError, match="token id -1 is outside"):
        executable.score([-1])
    with pytest.raises(sy.SystolicError, match=r"prompt has 21 tokens, more than the capacity of 20"):
        executable.generate([1] * 21)
    with pytest.raises(sy.SystolicError, match=r"text has 21 tokens, more than the capacity of 20"):
        executable.score([1] * 21)
    with pytest.raises(sy.SystolicError, match="prompt is empty"):
        executable.generate([])
    with pytest.raises(sy.SystolicError, match="list of integer token ids"):
        executable.generate([1.5])


def test_a_text_is_bounded_by_positions_that_are_looked_up_alone(stories, shared):
    with pytest.warns(UserWarning, match="made for 512 positions"):
        executable = compile(stories[0], backend="numpy", capacity=600)
    assert len(executable.generate([1] * 590, max_new_tokens=4, ignore_eos=True)) == 4
    learned = load(shared / "oracle" / "gpt2")
    assert learned.is_bounded
    assert not stories[0].is_bounded
    with pytest.raises(sy.SystolicError, match="is more than the 80 positions that gpt2 has"):
        compile(learned, capacity=81)


def test_an_empty_text_needs_a_bos_token(stories):
    model, _ = stories
    assert len(compile(model, backend="numpy").generate("", max_new_tokens=2)) == 2
    without = compile(dataclasses.replace(model, add_bos=False), backend="numpy")
    with pytest.raises(sy.SystolicError, match="prompt is empty, and stories260K adds no BOS"):
        without.generate("")


def test_a_bare_graph_has_no_tokenizer():
    executable = tiny()
    with pytest.raises(sy.SystolicError, match="no tokenizer; give the prompt as token ids"):
        executable.generate("text")
    with pytest.raises(sy.SystolicError, match="no tokenizer, so it cannot stream"):
        executable.stream([1])
    with pytest.raises(sy.SystolicError, match="no tokenizer, so it cannot stop"):
        executable.generate([1], stop="x")
    with pytest.raises(sy.SystolicError, match=f"token id {V} is outside"):
        executable.generate([V])


def test_mistakes_in_weights_are_named():
    graph = sy.trace(attention_step)
    weights = random_weights(graph)
    with pytest.raises(sy.SystolicError, match="has no weights, so it cannot run"):
        compile(graph, backend="numpy").generate([1])
    missing = {name: array for name, array in weights.items() if name != "head"}
    with pytest.raises(sy.SystolicError, match="no tensor head"):
        compile(graph, missing, backend="numpy").generate([1])
    wrong = {**weights, "head": weights["head"].T}
    with pytest.raises(sy.SystolicError, match=r"weight head must be f32\[8,23\], not float32 \[23, 8\]"):
        compile(graph, wrong, backend="numpy").generate([1])
    with pytest.raises(sy.SystolicError, match=r"weight head must be f32\[8,23\], not float64"):
        compile(graph, {**weights, "head": weights["head"].astype(float)}, backend="numpy").score([1])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch", 0, "batch must be an integer of at least 1, not 0"),
        ("capacity", -3, "capacity must be an integer of at least 1, not -3"),
        ("chunk", 1.5, "chunk must be an integer of at least 1, not 1.5"),
        ("chunk", 49, "a chunk of 49 is longer than the capacity of 48"),
        ("state", "guess", "state must be one of auto, sources, tokens, not 'guess'"),
        ("backend", "abacus", "abacus"),
    ],
)
def test_a_bad_option_is_named(option, value, message):
    with pytest.raises(sy.SystolicError, match=re.escape(message)):
        tiny(**{option: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_new_tokens", -1), ("max_new_tokens", 1.5), ("stop", [""]), ("stop", [3]), ("temperature", -1)],
)
def test_a_bad_setting_is_named(field, value):
    with pytest.raises(sy.SystolicError, match=f"{field} must be"):
        Generation(**{field: value})


def test_other_inputs_and_outputs_cannot_generate():
    def vectors(x):
        return {"logits": x * 2.0}

    graph = sy.trace(vectors, x="f32[4]")
    with pytest.raises(sy.SystolicError, match=r"x: f32\[4\].*only one input of token ids"):
        compile(graph, backend="numpy").generate([1])

    def number(token):
        return {"value": token.cast("f32")}

    with pytest.raises(sy.SystolicError, match=r"output is f32\[\], not one logit for each token"):
        compile(sy.trace(number), backend="numpy").generate([1])
