"""Contrastive search against its definition: every candidate read anew with all that comes before it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from small_models import V, attention, hybrid, recurrent, tiny, window

import systolic as sy
from systolic.compiler.similarity import SIMILARITY, hidden_state, with_similarity
from systolic.ir.interpret import interpret
from systolic.models.load import load
from systolic.runner.compilation import compile

BACKENDS = ["numpy", "xla"]

# The definition with transformers 5.23 (which has no contrastive search any more): its hidden_states[-1]
# and logits of each candidate read anew, top_k 5 and penalty_alpha 0.3, behind ids_1 of the recorded models.
RECORDED = {
    "gpt2": [69, 127, 35, 112, 96, 149, 16, 35, 27, 27, 82, 127],
    "gemma2": [122, 17, 1, 87, 99, 110, 76, 16, 127, 107, 15, 55],
    "mamba": [10, 39, 54, 114, 71, 62, 78, 125, 10, 86, 82, 41],
    "mistral_sliding": [32, 92, 104, 45, 95, 112, 17, 3, 7, 32, 108, 82],
    "qwen3": [112, 112, 119, 64, 126, 4, 112, 114, 112, 114, 112, 114],
    "t5": [102, 59, 34, 77, 107, 19, 92, 90, 123, 64, 16, 111],
}


def probabilities(logits: np.ndarray) -> np.ndarray:
    chances = np.exp(logits.astype(np.float64) - logits.max())
    return chances / chances.sum()


def by_definition(read, text, *, top_k=4, penalty_alpha=0.6, count=12, banned=()):
    """The search as the paper has it; ``read`` gives the logits [T, V] and hidden states [T, D] of a text."""
    said = list(text)
    for _ in range(count):
        logits = read(said)[0][-1].copy()
        logits[list(banned)] = -np.inf
        chances = probabilities(logits)
        scores = {}
        for token in np.argsort(-chances, kind="stable")[:top_k].tolist():
            *before, last = read([*said, token])[1].astype(np.float64)
            cosines = [last @ one / np.linalg.norm(last) / np.linalg.norm(one) for one in before]
            scores[token] = (1 - penalty_alpha) * chances[token] - penalty_alpha * max(cosines)
        said.append(max(scores, key=scores.__getitem__))
    return said[len(text) :]


def interpreted(executable: sy.Executable):
    """What the interpreter makes of a text: the hidden state is the first operand of the last product."""
    graph = executable.model.graph
    product = graph.outputs["logits"]
    assert product.op.name == "contraction"
    outputs = {"logits": product, "hidden": product.sources[0]}
    seen = dataclasses.replace(graph, outputs=outputs)

    def read(text):
        found = interpret(seen, {"token": np.array(text, np.int32)}, executable.model.weights)
        return found["logits"], found["hidden"]

    return read


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [attention, window, recurrent, hybrid])
def test_every_kind_of_past_follows_the_definition(step, backend):
    executable = tiny(step, backend=backend, batch=5, chunk=4)  # the prompt spans chunks
    read, prompt = interpreted(executable), [5, 1, 7, 7, 2, 19]
    for alpha in (0.3, 0.6, 0.9):
        settings = {"top_k": 5, "penalty_alpha": alpha}
        found = executable.contrastive_search(prompt, max_new_tokens=12, **settings)
        assert found == by_definition(read, prompt, **settings)
    assert found != executable.generate(prompt, max_new_tokens=12)


@pytest.mark.parametrize("backend", ["numpy", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RECORDED)
def test_as_with_the_hidden_states_of_transformers(shared, name, backend):
    folder = shared / "oracle" / name
    executable = compile(load(folder), backend=backend, capacity=32, chunk=8)
    ids = np.load(folder / "oracle.npz")["ids_1"].tolist()
    settings = {"top_k": 5, "penalty_alpha": 0.3, "max_new_tokens": 12, "ignore_eos": True}
    assert executable.contrastive_search(ids, **settings) == RECORDED[name]


def test_the_similarity_is_a_stream_of_the_model():
    executable = tiny(attention)
    graph = with_similarity(executable.model.graph, "logits")
    text = [3, 8, 3, 1, 20]
    found = interpret(graph, {"token": np.array(text, np.int32)}, executable.model.weights)[SIMILARITY]
    hidden = interpreted(executable)(text)[1]
    hidden /= np.linalg.norm(hidden, axis=-1, keepdims=True)
    expected = [-2.0, *(max(hidden[:t] @ hidden[t]) for t in range(1, len(text)))]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("settings", [{"penalty_alpha": 0.0}, {"top_k": 1}])
def test_without_a_penalty_or_a_choice_it_is_greedy(settings):
    executable = tiny(hybrid)
    greedy = executable.generate([4, 2], max_new_tokens=20)
    assert executable.contrastive_search([4, 2], max_new_tokens=20, **settings) == greedy


def test_rows_that_the_search_does_not_need_rest_and_a_vocabulary_limits_the_candidates():
    few, many = tiny(hybrid), tiny(hybrid, batch=7)
    assert few.contrastive_search([1, 2, 3]) == many.contrastive_search([1, 2, 3])
    every = many.contrastive_search([6], top_k=V, max_new_tokens=5)
    assert many.contrastive_search([6], top_k=V + 9, max_new_tokens=5) == every


def test_what_is_banned_is_no_candidate():
    executable = tiny(attention)
    free = executable.contrastive_search([3, 9], max_new_tokens=12)
    banned = sorted(set(free))[:2]
    found = executable.contrastive_search([3, 9], max_new_tokens=12, banned_tokens=banned)
    assert found == by_definition(interpreted(executable), [3, 9], banned=banned)
    only = [token for token in range(V) if token != 8]  # the others would be less alike
    settings = {"max_new_tokens": 3, "penalty_alpha": 1.0}
    assert executable.contrastive_search([3, 9], banned_tokens=only, **settings) == [8, 8, 8]
    with pytest.raises(sy.SystolicError, match="no token is left"):
        executable.contrastive_search([3], banned_tokens=range(V))


def test_damaged_weights_are_told():
    executable = tiny(attention)
    weights = {**executable.model.weights, "head": np.full((8, V), np.nan, np.float32)}
    with pytest.raises(sy.SystolicError, match="nan or inf"):
        compile(sy.trace(attention), weights, backend="numpy").contrastive_search([3])


def test_where_it_ends():
    executable = tiny(attention, capacity=10, chunk=4)
    steps = list(executable.contrastive_steps([1, 2, 3], max_new_tokens=50))
    assert [step.finish_reason for step in steps] == [None] * 6 + ["capacity"]  # each new token is read
    steps = list(executable.contrastive_steps([1, 2, 3], max_new_tokens=7))
    assert steps[-1].finish_reason == "length"
    tokens = [step.token for step in steps]
    end = tokens[2]
    ended = list(executable.contrastive_steps([1, 2, 3], stop_tokens=[end]))
    assert [step.token for step in ended] == tokens[: tokens.index(end) + 1]
    assert ended[-1].finish_reason == "eos"
    assert executable.contrastive_search([1], max_new_tokens=0) == []


def test_nothing_is_compiled_twice():
    executable = tiny(attention)
    executable.contrastive_search([1, 2, 3], max_new_tokens=2)
    rows = executable.with_similarity.with_rows(4)
    before = list(rows.programs)
    executable.contrastive_search([4, 5, 6, 7], penalty_alpha=0.2, max_new_tokens=5)
    assert list(rows.programs) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"penalty_alpha": 1.5}, "penalty_alpha must be a number from 0 to 1, not 1.5"),
        ({"temperature": 0.7}, "draws nothing"),
        ({"logprobs": 2}, "lists no log-probabilities"),
        ({"regex": "a"}, "cannot be held to a grammar"),
    ],
)
def test_a_bad_setting_is_named(settings, message):
    with pytest.raises(sy.SystolicError, match=message):
        tiny(attention).contrastive_search([1], **settings)


def test_a_model_without_one_hidden_state_is_refused():
    def step(token):
        x, y = (sy.take(sy.parameter(name, (V, 4)), token) for name in ("left", "right"))
        return {"logits": x @ sy.parameter("a", (4, V)) + y @ sy.parameter("b", (4, V))}

    with pytest.raises(sy.SystolicError, match="logits of step are not the product of one stream"):
        tiny(step).contrastive_search([1])


def test_a_head_of_two_products_of_one_stream_has_a_hidden_state():
    def step(token):
        x = sy.take(sy.parameter("embedding", (V, 4)), token)
        low = x @ sy.parameter("down", (4, 2)) @ sy.parameter("up", (2, V))
        return {"logits": x @ sy.parameter("head", (4, V)) + low}

    assert hidden_state(sy.trace(step), "logits").op.name == "take"


def test_what_the_head_read_earlier_is_no_hidden_state():
    def step(token):
        x = sy.take(sy.parameter("embedding", (V, 4)), token)
        return {"logits": sy.delay(x @ sy.parameter("head", (4, V)))}

    with pytest.raises(sy.SystolicError, match="not the product of one stream"):
        hidden_state(sy.trace(step), "logits")


def test_a_bias_a_scale_and_a_cap_are_no_part_of_the_head():
    def step(token):
        x = sy.take(sy.parameter("embedding", (V, 4)), token)
        logits = (x @ sy.parameter("head", (4, V)) + sy.parameter("bias", (V,))) * 0.5
        return {"logits": sy.tanh(logits / 3) * 3}

    assert hidden_state(sy.trace(step), "logits").op.name == "take"


def test_the_command(cli, shared):
    folder = shared / "real" / "stories260K"
    common = ("run", folder, "--prompt", "Once upon a time", "--max-new-tokens", "12", "--backend", "numpy")
    status, out, _ = cli(*common, "--penalty-alpha", "0.6", "--top-k", "5", "--json")
    report = json.loads(out)
    executable = compile(load(folder), backend="numpy")
    assert status == 0
    assert report["new_ids"] == executable.contrastive_search("Once upon a time", top_k=5, max_new_tokens=12)
    status, out, _ = cli(*common, "--penalty-alpha", "0.6", "--top-k", "5")
    assert (status, out.strip()) == (0, report["text"].strip())
    status, _, err = cli(*common, "--penalty-alpha", "0.6", "--beams", "2")
    assert status == 2
    assert "two ways to search" in err
