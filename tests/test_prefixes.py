"""The radix tree: what was read before is not read again, and nothing is ever mistaken for it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import attention, hybrid, recurrent, tiny, window

from systolic.runner.prefixes import PrefixTree

PLENTY = 1 << 30
MODELS = [attention, window, recurrent, hybrid]
compiled = cache(tiny)


def remember(tree: PrefixTree, rows, ids: list[int], row: int = 0) -> int:
    """Reads a text as a scheduler would, and stores it; how many positions were known."""
    rows.begin(row)
    known = tree.restore(rows, row, ids[:-1])
    rows.read({row: ids[known:]})
    tree.store(rows, row)
    return known


def new_tree(step, budget: int = PLENTY, every: int | None = None, **options):
    rows = compiled(step, batch=2, chunk=8, **options).batch(every)
    return PrefixTree(rows.undo, budget), rows


# Few different tokens, so that many texts begin alike.
texts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=1, max_size=8)


@pytest.mark.parametrize("budget", [PLENTY, 20_000, 0])
@pytest.mark.parametrize("step", MODELS)
@given(texts=texts)
@settings(max_examples=25, deadline=None)
def test_a_text_behind_a_known_prefix_is_what_it_is_alone(step, budget, texts):
    tree, rows = new_tree(step, budget, 8)
    seen: list[list[int]] = []
    for ids in texts:
        rows.begin(1)
        known = tree.restore(rows, 1, ids[:-1])
        logits = rows.read({1: ids[known:]})[1]
        np.testing.assert_allclose(logits, compiled(step).score(ids)[-1], rtol=1e-3, atol=1e-3)
        tree.store(rows, 1)
        assert tree.bytes <= budget
        if budget == PLENTY and step is attention:
            assert known == max((common(ids[:-1], other) for other in seen), default=0)
        seen.append(ids)


def common(left: list[int], right: list[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


SYSTEM = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 2


@pytest.mark.parametrize(
    ("step", "every", "known"),
    [
        (attention, None, 20),  # any length
        (window, 8, 20),  # the checkpoint at 24 can be set back
        (recurrent, 8, 16),
        (hybrid, 8, 16),
        (recurrent, 0, 0),  # only the whole text has a checkpoint
    ],
)
def test_what_two_texts_have_in_common(step, every, known):
    tree, rows = new_tree(step, every=every)
    assert remember(tree, rows, [*SYSTEM, 11, 12, 13, 14]) == 0
    assert remember(tree, rows, [*SYSTEM, 15, 16]) == known


@pytest.mark.parametrize("step", MODELS)
def test_a_text_goes_on_behind_all_of_an_earlier_one(step):
    tree, rows = new_tree(step)
    remember(tree, rows, [*SYSTEM, 11, 12, 13])
    assert remember(tree, rows, [*SYSTEM, 11, 12, 13, 14, 15], row=1) == 23


def test_least_recently_used_goes_first():
    tree, rows = new_tree(attention)
    for branch in (11, 12):
        remember(tree, rows, [*SYSTEM, *[branch] * 10])
    tree.budget = tree.bytes
    remember(tree, rows, [*SYSTEM, *[11] * 10, 1])  # used again
    remember(tree, rows, [*SYSTEM, *[13] * 10])
    assert remember(tree, rows, [*SYSTEM, *[11] * 10, 1]) == 30
    assert remember(tree, rows, [*SYSTEM, *[12] * 10, 1]) == 20


def test_a_shared_prefix_is_held_once():
    tree, rows = new_tree(attention)
    long = SYSTEM * 2
    remember(tree, rows, [*long, 11])
    one = tree.bytes
    for branch in range(12, 22):
        remember(tree, rows, [*long, branch])
    assert tree.bytes < 11 * one / 2


@pytest.mark.parametrize("step", MODELS)
def test_nothing_is_made_once_all_is_prepared(step):
    tree, rows = new_tree(step, backend="xla", every=8)
    rows.prepare()
    exe = compiled(step, batch=2, chunk=8, backend="xla")
    made = len(exe.programs)
    for length in (1, 3, 20, 21, 40, 63):
        remember(tree, rows, (SYSTEM * 4)[:length])
        rows.fork(0, [1])
    assert len(exe.programs) == made


def test_a_restored_ring_remembers_what_it_lost():
    tree, rows = new_tree(window, every=8)
    remember(tree, rows, [*SYSTEM, 11, 12, 13, 14])
    rows.begin(1)
    assert tree.restore(rows, 1, [*SYSTEM, 15]) == 20  # from the checkpoint at 24
    assert rows.plan(1, 16).recomputed == 0
    assert rows.plan(1, 15).recomputed == 15
