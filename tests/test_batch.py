"""Rows that go on, go back, and are copied: whatever was done to a row, its logits are those of its text."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import V, attention, hybrid, recurrent, tiny, window

import systolic as sy
from systolic.runner.batch import MOST_CHECKPOINTS

BACKENDS = ["numpy", "xla"]
MODELS = [attention, window, recurrent, hybrid]
CAPACITY = 64
text = st.lists(st.integers(0, V - 1), min_size=1, max_size=20)
actions = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 2), text),
    st.tuples(st.just("rewind"), st.integers(0, 2), st.floats(0, 1)),
    st.tuples(st.just("fork"), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("begin"), st.integers(0, 2), st.none()),
)
scored = cache(tiny)
compiled = cache(tiny)


def text_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, V, length).tolist()


def expect(step, logits: np.ndarray, ids: list[int]) -> None:
    np.testing.assert_allclose(logits, scored(step).score(ids)[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", MODELS)
@given(plan=st.lists(actions, max_size=8), every=st.sampled_from([0, 3, 8]))
@settings(max_examples=25, deadline=None)
def test_a_row_is_what_its_text_says(step, backend, plan, every):
    rows = compiled(step, backend=backend, batch=3, chunk=8, capacity=CAPACITY).batch(every)
    texts: list[list[int]] = [[], [], []]
    for kind, row, what in plan:
        if kind == "read":
            more = what[: CAPACITY - 1 - len(texts[row])]
            rows.read({row: more})
            texts[row] = texts[row] + more
        elif kind == "rewind":
            position = round(what * len(texts[row]))
            promised = rows.plan(row, position).recomputed
            again = rows.rewind(row, position)
            assert len(again) == promised
            rows.read({row: again})
            texts[row] = texts[row][:position]
        elif kind == "fork":
            rows.fork(row, [what])
            texts[what] = list(texts[row])
        else:
            rows.begin(row)
            texts[row] = []
        assert [state.tokens for state in rows.rows] == texts
    for row, logits in rows.read({0: [1], 1: [2], 2: [3]}).items():
        expect(step, logits, [*texts[row], row + 1])


@pytest.mark.parametrize(
    ("step", "position", "every", "recomputed"),
    [
        (attention, 3, None, 0),
        (window, 40, None, 0),  # 8 back: all that a ring keeps in reserve
        (window, 39, None, 39),  # the interval of 64 made no checkpoint yet
        (window, 39, 16, 7),  # one at 32
        (window, 24, 16, 0),  # the one at 32 can be set back
        (recurrent, 47, None, 47),
        (recurrent, 47, 16, 15),
        (recurrent, 32, 16, 0),
        (recurrent, 31, 0, 31),
        (hybrid, 47, 16, 15),
    ],
)
def test_what_going_back_costs_is_known_before(step, position, every, recomputed):
    rows = tiny(step, chunk=8).batch(every)
    ids = text_of(48)
    rows.read({0: ids})
    assert rows.take(0).recomputed(position) == recomputed
    assert rows.plan(0, position).recomputed == recomputed
    again = rows.rewind(0, position)
    assert again == ids[position - recomputed : position]
    expect(step, rows.read({0: [*again, 7]})[0], [*ids[:position], 7])


@pytest.mark.parametrize("step", MODELS)
def test_a_value_does_not_change_and_many_rows_can_go_on_from_it(step):
    rows = tiny(step, batch=3, chunk=8).batch(8)
    ids = text_of(20)
    rows.read({1: ids})
    value = rows.take(1)
    rows.read({1: text_of(12, seed=1)})
    earlier, again = value.rewind(10)
    rows.put(0, value)
    rows.put(2, earlier)
    logits = rows.read({0: [4], 2: [*again, 5]})
    expect(step, logits[0], [*ids, 4])
    expect(step, logits[2], [*ids[:10], 5])
    rows.put(1, value)
    expect(step, rows.read({1: [6]})[1], [*ids, 6])


def test_a_ring_that_went_back_remembers_what_it_lost():
    """Behind position 40 it was set back to 33; what it holds of 25 to 28 was written over before."""
    rows = tiny(window, chunk=8).batch(0)
    ids = text_of(40)
    rows.read({0: ids})
    assert rows.rewind(0, 33) == []
    rows.read({0: ids[33:36]})
    assert rows.plan(0, 32).recomputed == 0
    assert rows.plan(0, 31).recomputed == 31


def test_checkpoints_of_a_long_text_are_bounded():
    rows = tiny(recurrent, capacity=256).batch(1)
    rows.read({0: text_of(200)})
    positions = [checkpoint.position for checkpoint in rows.rows[0].checkpoints]
    assert len(positions) <= MOST_CHECKPOINTS
    assert positions[-10:] == list(range(191, 201))
    assert positions == sorted(positions)


def test_undo_is_described():
    assert str(tiny(hybrid, chunk=8).undo).splitlines() == [
        "append: any position, at no cost",
        "ring: the last 8 positions at no cost, further back from a checkpoint",
        "tail: from a checkpoint",
        "carry: from a checkpoint",
    ]


# ---- on disk ----


@pytest.mark.parametrize("step", MODELS)
def test_a_saved_state_goes_on_anywhere(step, tmp_path):
    ids, file = text_of(30), tmp_path / "text.state"
    first = tiny(step, batch=2, chunk=8)
    rows = first.batch(8)
    rows.read({1: ids})
    first.save_state(rows.take(1), file)
    other = tiny(step, backend="xla", capacity=48, chunk=8)
    value = other.load_state(file)
    assert value.tokens == tuple(ids)
    earlier, again = value.rewind(13)
    assert len(again) == (5 if step in (recurrent, hybrid) else 0)
    rows = other.batch()
    rows.put(0, value)
    expect(step, rows.read({0: [4]})[0], [*ids, 4])
    rows.put(0, earlier)
    expect(step, rows.read({0: [*again, 4]})[0], [*ids[:13], 4])


def test_mistakes_in_saved_states_are_named(tmp_path):
    exe, file = tiny(window), tmp_path / "text.state"
    rows = exe.batch()
    rows.read({0: text_of(30)})
    exe.save_state(rows.take(0), file)
    with pytest.raises(sy.SystolicError, match=r"text.state is a state of window, not of this attention"):
        tiny(attention).load_state(file)
    with pytest.raises(sy.SystolicError, match=r"has 30 positions, more than the capacity of 20"):
        tiny(window, capacity=20).load_state(file)
    with pytest.raises(sy.SystolicError, match=r"\[1, 19, 8\] for the ring .* f32\[1,11,8\] is expected"):
        tiny(window, chunk=8).load_state(file)
    (tmp_path / "other").write_text("no state")
    with pytest.raises(sy.SystolicError, match=r"other is no saved state"):
        exe.load_state(tmp_path / "other")
    with pytest.raises(sy.SystolicError, match=r"absent is no saved state"):
        exe.load_state(tmp_path / "absent")


# ---- recorded models ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", ["llama_gqa_llama3", "mistral_sliding", "mamba", "lstm_lm", "wavenet_lm", "t5"]
)
def test_recorded_models_go_back(shared, name, backend):
    exe = sy.compile(sy.load(shared / "oracle" / name), backend=backend, batch=2, capacity=48, chunk=16)
    source = [3, 4, 5, 6] if exe.inputs.source else []
    ids = np.random.default_rng(0).integers(3, exe.logit_count, 40).tolist()
    rows = exe.batch(8)
    for row in range(2):
        rows.begin(row, source)
    rows.read({0: ids})
    rows.fork(0, [1])
    again = rows.rewind(1, 21)
    logits = rows.read({0: [9], 1: [*again, 9]})
    for row, read in ((0, [*ids, 9]), (1, [*ids[:21], 9])):
        expected = exe.score(source, target=read) if source else exe.score(read)
        np.testing.assert_allclose(logits[row], expected[-1], rtol=1e-3, atol=1e-3)


# ---- mistakes ----


def test_mistakes_in_positions_are_named():
    rows = tiny(batch=2).batch()
    rows.read({0: [1, 2, 3]})
    with pytest.raises(sy.SystolicError, match="position 4 is not one of the 3 that were read"):
        rows.rewind(0, 4)
    with pytest.raises(sy.SystolicError, match="row 0 is full: its capacity is 64 positions"):
        rows.read({0: [1] * 62})
    long = tiny(capacity=128).batch()
    long.read({0: [1] * 100})
    with pytest.raises(sy.SystolicError, match="a state of 100 positions does not fit a capacity of 64"):
        rows.put(0, long.take(0))
