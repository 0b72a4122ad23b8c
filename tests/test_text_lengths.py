"""Models that compute all positions of a text by its length: exact, by reading again what has changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from seeded_weights import seeded_tensor

import systolic as sy
from systolic.models.load import load
from systolic.runner.artifacts import open_compiled, write_compiled
from systolic.runner.compilation import compile
from systolic.runner.options import options_for

RECORDED = Path(__file__).parent / "recorded"
PROMPTS = [[5, 9, 60, 7], list(range(10, 36))]  # 4 and 26 tokens
LIMITS = {"llama_dynamic": 24, "llama_longrope": 27}


@pytest.fixture(scope="module", params=LIMITS)
def model(request, tmp_path_factory):
    case, folder = RECORDED / request.param, tmp_path_factory.mktemp(request.param)
    shapes = json.loads((case / "tensors.json").read_text())
    shutil.copy(case / "config.json", folder)
    save_file({n: seeded_tensor(n, tuple(s), 0) for n, s in shapes.items()}, folder / "model.safetensors")
    return load(folder)


def recomputed(executable, prompt, count):
    """The most likely tokens, each after reading all of the text before it in one pass."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(executable.score(text)[-1].argmax()))
    return text[len(prompt) :]


def limit_of(model):
    return next(n for n in range(64, 0, -1) if model.shortest_like(n) == 1)


def test_the_certificate_names_the_length(model):
    assert "logits  embed.length  whole of clock text" in str(model.graph.certificate())
    bounded = model.for_texts_up_to(limit_of(model)).graph.certificate()
    assert [entry.input for entry in bounded.entries] == ["token"]


def test_where_the_mathematics_changes(model):
    assert limit_of(model) == LIMITS[next(name for name in LIMITS if name in str(model.path))]


def test_logits_change_for_all_positions_once_the_text_is_longer(model):
    executable, limit = compile(model, backend="numpy", capacity=40), limit_of(model)
    text = list(range(4, 4 + limit + 1))
    short, longer = executable.score(text[:limit]), executable.score(text)
    assert np.abs(short[1:] - longer[1:limit]).max() > 1e-2 * np.abs(short).max()
    np.testing.assert_allclose(executable.score(text[:5]), short[:5], atol=1e-5)


def test_rows_grow_beyond_the_limit_each_at_its_own_time(model):
    executable = compile(model, backend="numpy", capacity=40, batch=3, chunk=16)
    replies = executable.generate_batch(PROMPTS, max_new_tokens=8, ignore_eos=True)
    assert replies == [recomputed(executable, prompt, 8) for prompt in PROMPTS]


def test_within_the_limit_it_is_a_model_like_any_other(model):
    limit = limit_of(model)
    executable = compile(model, backend="numpy", capacity=limit)
    assert executable.model.graph.clocks == ("main",)
    whole = compile(model, backend="numpy", capacity=limit + 4)
    text = list(range(4, 4 + limit))
    np.testing.assert_allclose(executable.score(text), whole.score(text), atol=1e-5)
    executable.batch().read({0: [5, 6]})


def test_rows_that_can_go_back_refuse_texts_that_are_computed_anew(model):
    executable, limit = compile(model, backend="numpy", capacity=40), limit_of(model)
    with pytest.raises(
        sy.SystolicError, match=f"grows beyond {limit} positions.*capacity of at most {limit}"
    ):
        executable.batch()


def test_a_compiled_directory_reads_again_too(model, tmp_path):
    options = options_for(model, "numpy", capacity=40, chunk=16)
    write_compiled(model, options, tmp_path / "compiled", copy_weights=True)
    executable = open_compiled(tmp_path / "compiled", "numpy", {})
    assert executable.generate(PROMPTS[1], max_new_tokens=6, ignore_eos=True) == recomputed(
        compile(model, backend="numpy", capacity=40), PROMPTS[1], 6
    )
