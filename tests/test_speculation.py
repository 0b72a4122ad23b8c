"""Speculation changes how many calls it takes, and nothing of what is said."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import V, attention, hybrid, recurrent, tiny, window

import systolic as sy
from systolic.runner.artifacts import open_compiled, write_compiled
from systolic.runner.drafts import Guesses, PromptLookup, draw
from systolic.runner.options import options_for
from systolic.runner.speculation import accept

BACKENDS = ["numpy", "xla"]
MODELS = [attention, window, recurrent, hybrid]
compiled = cache(tiny)


class Oracle:
    """Guesses what the model will say, but for every n-th token."""

    def __init__(self, text: list[int], wrong: int) -> None:
        self.text, self.wrong = text, wrong

    def guess(self, text, count, chances, seed) -> Guesses:
        right = self.text[len(text) : len(text) + count]
        places = range(len(text), len(text) + count)
        pairs = zip(right, places, strict=False)
        return Guesses([(t + 1) % V if at % self.wrong == 0 else t for t, at in pairs])


# ---- greedy ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", MODELS)
@given(
    wrong=st.integers(1, 9),
    guesses=st.sampled_from([1, 4, 7]),
    count=st.integers(0, 40),
    length=st.integers(1, 40),
)
@settings(max_examples=25, deadline=None)
def test_greedy_is_plain_greedy_whatever_is_guessed(step, backend, wrong, guesses, count, length):
    prompt = np.random.default_rng(length).integers(0, V, length).tolist()
    plain = compiled(step).generate(prompt, max_new_tokens=count)
    draft = Oracle([*prompt, *plain, *[0] * 9], wrong)
    exe = compiled(step, backend=backend)
    speculation = exe.speculate(prompt, draft=draft, guesses=guesses, max_new_tokens=count)
    assert [s.token for s in speculation] == plain
    assert speculation.acceptance.accepted <= speculation.acceptance.guessed


@pytest.mark.parametrize("step", MODELS)
def test_right_guesses_save_calls(step):
    plain = compiled(step).generate([1, 2], max_new_tokens=40)
    speculation = compiled(step).speculate([1, 2], draft=Oracle([1, 2, *plain], 1000), max_new_tokens=40)
    assert [s.token for s in speculation] == plain
    assert speculation.acceptance.calls == 8  # five tokens each
    assert speculation.acceptance.accepted == speculation.acceptance.guessed == 32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("draft", [attention, recurrent, hybrid])
@pytest.mark.parametrize("step", [attention, recurrent])
def test_a_draft_model_guesses(step, draft, backend):
    exe = compiled(step, backend=backend)
    speculation = exe.speculate([3, 1, 4], draft=compiled(draft, backend=backend), max_new_tokens=60)
    assert [s.token for s in speculation] == compiled(step).generate([3, 1, 4], max_new_tokens=60)
    if draft is step:
        assert speculation.acceptance.accepted == speculation.acceptance.guessed > 40


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("llama_gqa_llama3", "xla"),
        ("llama_gqa_llama3", "numpy"),
        ("mistral_sliding", "numpy"),
        ("mamba", "xla"),
        ("lstm_lm", "numpy"),
    ],
)
def test_recorded_models(shared, name, backend):
    exe = sy.compile(sy.load(shared / "oracle" / name), backend=backend, capacity=80, chunk=16)
    recorded = np.load(shared / "oracle" / name / "oracle.npz")
    for i in range(3):
        prompt, greedy = recorded[f"ids_{i}"].tolist(), recorded[f"greedy_{i}"].tolist()
        drafts = (None, exe, Oracle([*prompt, *(t % V for t in greedy), *[0] * 9], 3))
        for draft in drafts:
            steps = exe.speculate(prompt, draft=draft, max_new_tokens=24, ignore_eos=True)
            assert [s.token for s in steps] == greedy


@pytest.mark.parametrize("step", MODELS)
def test_penalties_look_back_at_what_was_said_not_at_what_was_guessed(step):
    prompt, asked = (
        [1, 2, 1, 2, 1],
        {"max_new_tokens": 30, "repetition_penalty": 1.3, "frequency_penalty": 0.2},
    )
    plain = compiled(step).generate(prompt, **asked)
    assert plain != compiled(step).generate(prompt, max_new_tokens=30)
    for draft in (None, Oracle([*prompt, *plain, *[0] * 9], 3), compiled(window)):
        assert [s.token for s in compiled(step).speculate(prompt, draft=draft, **asked)] == plain


def test_the_embedded_model_is_spoken_faster():
    exe = sy.compile(sy.load("shakespeare"))
    plain = exe.generate("ROMEO:\nO, O, O, O, O, O,", max_new_tokens=60)
    speculation = exe.speculate("ROMEO:\nO, O, O, O, O, O,", max_new_tokens=60)
    assert [s.token for s in speculation] == plain
    assert speculation.acceptance.calls < 50


# ---- sampling ----


def is_likely(counts: np.ndarray, expected: np.ndarray) -> bool:
    """Whether counts [N] could come from a distribution [N]: chi-squared, five deviations."""
    total = counts.sum()
    large = expected * total >= 5
    counts = np.append(counts[large], counts[~large].sum())
    expected = np.append(expected[large], expected[~large].sum()) * total
    used = expected > 0
    assert counts[~used].sum() == 0
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    freedom = used.sum() - 1
    return statistic < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("certain", [True, False])
def test_accepted_or_not_a_token_is_one_of_the_model(certain):
    """Two guesses from q, checked against p: the token at each place is distributed as p says."""
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(8), 3), random.dirichlet(np.ones(8) * 2, 2)
    places: list[list[int]] = [[], [], []]
    for seed in range(20_000):
        tokens = [draw(q[i], random.random()) for i in range(2)]
        tokens = p[:2].argmax(axis=1).tolist() if certain else tokens
        accepted, token = accept(list(p), Guesses(tokens, () if certain else list(q)), seed, 0)
        for at, said in enumerate([*tokens[:accepted], token]):
            places[at].append(said)
    assert all(is_likely(np.bincount(said, minlength=8), p[at]) for at, said in enumerate(places))
    assert len(places[2]) > 1000
    assert not is_likely(np.bincount(places[0], minlength=8), p[1])  # the test can tell


@pytest.mark.parametrize(
    ("step", "draft"), [(attention, "lookup"), (attention, "model"), (recurrent, "model"), (hybrid, "itself")]
)
def test_what_is_drawn_is_distributed_as_without_guesses(step, draft):
    """The third and the fourth new token over many seeds, against all ways to get there."""
    exe = compiled(step)
    prompt, settings_ = [1, 2, 1, 2, 1], {"temperature": 0.7, "top_k": 4}
    drafts = {"lookup": PromptLookup(), "model": compiled(window), "itself": exe}
    counts = np.zeros((2, V))
    for seed in range(300):
        steps = exe.speculate(prompt, draft=drafts[draft], max_new_tokens=4, seed=seed, **settings_)
        for place, said in enumerate([s.token for s in steps][2:]):
            counts[place, said] += 1
    expected = np.zeros((2, V))
    ways = {(): 1.0}
    for place in range(4):
        longer: dict[tuple[int, ...], float] = {}
        for said, chance in ways.items():
            for token, p in enumerate(next_chances(step, (*prompt, *said))):
                if p > 0:
                    longer[*said, token] = chance * p
                    if place >= 2:
                        expected[place - 2, token] += chance * p
        ways = longer
    assert is_likely(counts[0], expected[0])
    assert is_likely(counts[1], expected[1])


@cache
def next_chances(step, text: tuple[int, ...]) -> np.ndarray:
    """Temperature 0.7, the best four."""
    logits = compiled(step).score(text)[-1].astype(np.float64) / 0.7
    logits[np.argsort(logits)[:-4]] = -np.inf
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


# ---- guesses ----


def test_lookup_guesses_what_came_behind_the_same_tokens():
    def guess(text, count=3, **options):
        return PromptLookup(**options).guess(text, count, None, 0).tokens

    assert guess([1, 2, 3, 4, 5, 1, 2, 3]) == [4, 5, 1]
    assert guess([1, 2, 3, 4, 9, 2, 3, 7, 1, 2, 3]) == [4, 9, 2]  # three are better than two
    assert guess([9, 2, 3, 4, 5, 8, 2, 3, 6, 6, 2, 3], 2) == [6, 6]  # the latest place
    assert guess([1, 2, 3]) == []
    assert guess([1, 2, 1], shortest=2) == []
    assert guess([5]) == []


def test_guesses_stop_where_the_text_does():
    exe = compiled(attention)
    steps = list(exe.speculate([3] * 60, max_new_tokens=100))
    plain = list(exe.steps([3] * 60, max_new_tokens=100))
    assert [(s.token, s.finish_reason) for s in steps] == [(s.token, s.finish_reason) for s in plain]
    assert steps[-1].finish_reason == "capacity"


# ---- refusals ----


def test_a_compiled_directory_cannot_check(tmp_path, shared):
    model = sy.load(shared / "oracle" / "gpt2")
    write_compiled(model, options_for(model, capacity=32, chunk=16), tmp_path / "compiled")
    exe = open_compiled(tmp_path / "compiled", "numpy", {})
    with pytest.raises(sy.SystolicError, match="compiled holds no program with logits at all positions"):
        exe.speculate([1])


def test_what_cannot_be_is_refused():
    exe = compiled(attention)
    with pytest.raises(sy.SystolicError, match="checking 16 guesses can take 17 positions at once"):
        exe.speculate([1], guesses=16)
    with pytest.raises(sy.SystolicError, match="mirostat learns from each choice"):
        exe.speculate([1], mirostat_tau=3.0, temperature=1.0)
    with pytest.raises(sy.SystolicError, match="guesses must be at least 1, not 0"):
        exe.speculate([1], guesses=0)

    def other(token):
        return {"logits": sy.take(sy.parameter("table", (5, 5)), token)}

    graph = sy.trace(other)
    small = sy.compile(graph, {"table": np.zeros((5, 5), np.float32)}, backend="numpy")
    with pytest.raises(sy.SystolicError, match="other cannot guess for attention: it has 5 tokens"):
        exe.speculate([1], draft=small)
