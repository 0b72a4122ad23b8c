"""Beam search: recorded outputs, exhaustive search, and states that follow their beams."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from test_runner import BACKENDS, V, attention_step, recurrent_step, tiny

import systolic as sy
from systolic.models.load import load
from systolic.models.model import Constraints
from systolic.runner.compilation import compile


def log_probabilities(executable: sy.Executable, text: list[int]) -> np.ndarray:
    logits = executable.score(text)[-1].astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.mark.parametrize("backend", ["numpy", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["llama_gqa_llama3", "t5"])
def test_as_recorded(shared, name, backend):
    folder = shared / "oracle" / name
    model, recorded = load(folder), np.load(folder / "oracle.npz")
    for j, settings in enumerate(json.loads((folder / "meta.json").read_text())["beams"]):
        eos = tuple(settings.pop("eos_token_id") or ())
        ids = recorded[f"ids_{settings.pop('prompt')}"].tolist()
        settings |= {"beams": settings.pop("num_beams"), "n": settings.pop("num_return_sequences")}
        executable = compile(dataclasses.replace(model, eos_ids=eos), backend=backend, capacity=64)
        found = executable.beam_search(ids, **settings)
        given = 1 if name == "t5" else len(ids)
        lengths = recorded[f"beam{j}_lengths"]
        expected = [row[:n] for row, n in zip(recorded[f"beam{j}_sequences"], lengths, strict=True)]
        starts = {len(row) - len(one.tokens) for row, one in zip(expected, found, strict=True)}
        assert starts <= {0, given}  # recorded with the prompt or without
        for row, one in zip(expected, found, strict=True):
            assert row[len(row) - len(one.tokens) :].tolist() == list(one.tokens)
        np.testing.assert_allclose([one.score for one in found], recorded[f"beam{j}_scores"], atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [attention_step, recurrent_step])
def test_as_many_beams_as_texts_find_the_best_of_all(step, backend):
    executable = tiny(step, backend=backend)
    allowed, prompt = (3, 8, 11, 20), [5, 1, 7]
    banned = [token for token in range(V) if token not in allowed]
    found = executable.beam_search(prompt, beams=16, n=5, max_new_tokens=3, banned_tokens=banned)
    totals = {}
    for text in itertools.product(allowed, repeat=3):
        parts = [log_probabilities(executable, [*prompt, *text[:i]])[text[i]] for i in range(3)]
        totals[text] = sum(parts) / 3
    best = sorted(totals, key=lambda text: -totals[text])[:5]
    assert [one.tokens for one in found] == best
    np.testing.assert_allclose([one.score for one in found], [totals[text] for text in best], atol=1e-4)


def test_one_beam_is_greedy_and_wider_searches_find_no_worse():
    executable = tiny(batch=2)
    greedy = executable.generate([4, 2], max_new_tokens=12)
    (one,) = executable.beam_search([4, 2], beams=1, max_new_tokens=12)
    assert list(one.tokens) == greedy
    (wide,) = executable.beam_search([4, 2], beams=8, max_new_tokens=12)
    assert wide.score >= one.score


def test_rows_that_the_search_does_not_need_rest():
    few, many = tiny(), tiny(batch=7)
    settings = {"beams": 3, "n": 3, "max_new_tokens": 8}
    pairs = zip(few.beam_search([1, 2, 3], **settings), many.beam_search([1, 2, 3], **settings), strict=True)
    for one, other in pairs:
        assert one.tokens == other.tokens
        assert one.score == pytest.approx(other.score, abs=1e-5)


def test_groups_choose_different_tokens():
    executable = tiny()
    alike = executable.beam_search([6], beams=4, n=4, groups=4, max_new_tokens=1)
    assert len({one.tokens for one in alike}) == 1  # four greedy searches
    apart = executable.beam_search([6], beams=4, n=4, groups=4, diversity=100.0, max_new_tokens=1)
    order = np.argsort(-log_probabilities(executable, [6]))[:4]
    assert sorted(one.tokens[0] for one in apart) == sorted(order.tolist())
    for one in apart:
        rank = order.tolist().index(one.tokens[0])  # nobody before it had chosen this token
        assert one.score == pytest.approx(log_probabilities(executable, [6])[order[rank]], abs=1e-4)


def test_penalties_follow_the_text_of_each_beam():
    executable = tiny()
    (one,) = executable.beam_search([3, 9], beams=4, max_new_tokens=20, no_repeat_ngram_size=2)
    text = [3, 9, *one.tokens]
    pairs = list(itertools.pairwise(text))
    assert len(set(pairs)) == len(pairs)
    (free,) = executable.beam_search([3, 9], beams=4, max_new_tokens=20)
    pairs = list(itertools.pairwise([3, 9, *free.tokens]))
    assert len(set(pairs)) < len(pairs)


def test_what_the_model_forces_is_forced_in_every_beam(shared):
    model = load(shared / "oracle" / "t5")
    forced = dataclasses.replace(model, constraints=Constraints(first=(17,), last=(1,)), eos_ids=(1,))
    executable = compile(forced, backend="numpy", capacity=32)
    found = executable.beam_search([5, 6, 7], beams=3, n=3, max_new_tokens=6)
    assert {one.tokens[0] for one in found} == {17}
    assert {one.tokens[-1] for one in found} == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, "beams must be an integer of at least 1"),
        ({"beams": 2, "n": 3}, "n must be at most beams"),
        ({"beams": 4, "groups": 3}, "groups must divide beams"),
        ({"early_stopping": "soon"}, "early_stopping must be"),
        ({"temperature": 1.0}, "draws nothing"),
    ],
)
def test_a_bad_setting_is_named(settings, message):
    with pytest.raises(sy.SystolicError, match=message):
        tiny().beam_search([1], **settings)


def test_the_command_prints_the_best_text_or_all(cli, shared):
    folder = shared / "real" / "stories260K"
    common = (folder, "--prompt", "Once upon a time", "--beams", "3", "--max-new-tokens", "8")
    status, out, _ = cli("run", *common, "--backend", "numpy", "--json")
    assert status == 0
    beams = json.loads(out)["beams"]
    assert len(beams) == 3
    assert beams[0]["score"] >= beams[1]["score"] >= beams[2]["score"]
    status, out, _ = cli("run", *common, "--backend", "numpy")
    assert (status, out.strip()) == (0, beams[0]["text"].strip())
