"""Steering: an edited text goes on as if it had always been so, and only what must be is read again."""

from __future__ import annotations

import threading
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import V, attention, hybrid, recurrent, tiny, window

import systolic as sy

BACKENDS = ["numpy", "xla"]
MODELS = [attention, window, recurrent, hybrid]
compiled = cache(tiny)


def text_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, V, length).tolist()


def next_tokens(session, count: int) -> list[int]:
    return [step.token for step in session.steps(count)]


class Counted:
    """How many positions a session has read."""

    def __init__(self, session, monkeypatch) -> None:
        self.positions = 0
        read = session._rows.run

        def run(tokens, **options):
            self.positions += sum(map(len, tokens.values()))
            return read(tokens, **options)

        monkeypatch.setattr(session._rows, "run", run)


edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 5), st.integers(0, 4), st.integers(0, 6)), max_size=6
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", MODELS)
@given(plan=edits)
@settings(max_examples=25, deadline=None)
def test_an_edited_text_goes_on_as_if_it_had_always_been_so(step, backend, plan):
    """Each edit: where, how many tokens go, how many come, how many are said next."""
    exe = compiled(step, backend=backend, chunk=8)
    session = exe.session(text_of(9), checkpoint_every=4)
    next_tokens(session, 3)
    for i, (where, remove, insert, count) in enumerate(plan):
        text = session.tokens
        position = round(where * len(text))
        remove = min(remove, len(text) - position)
        added = text_of(insert, seed=i)
        wanted = [*text[:position], *added, *text[position + remove :]]
        if not 1 <= len(wanted) <= 40:
            continue
        edit = session.edit(position, remove, added)
        assert edit.length == len(wanted)
        assert session.tokens == wanted
        assert next_tokens(session, count) == compiled(step).generate(wanted, max_new_tokens=count)


@pytest.mark.parametrize("settings_", [{}, {"temperature": 2.0, "seed": 4, "top_k": 9}])
def test_an_untouched_session_says_what_generate_says(settings_):
    expected = compiled(attention).generate(text_of(5), max_new_tokens=20, **settings_)
    session = compiled(attention).session(text_of(5), **settings_)
    assert next_tokens(session, 8) + next_tokens(session, 12) == expected


@pytest.mark.parametrize(
    ("step", "every", "position", "kept"),
    [
        (attention, 16, 30, 30),
        (window, 16, 36, 36),  # in reach
        (window, 16, 30, 30),  # in reach of the checkpoint at 32
        (window, 16, 20, 16),
        (recurrent, 16, 30, 16),
        (hybrid, 8, 30, 24),
    ],
)
def test_only_what_must_be_is_read_again(step, every, position, kept, monkeypatch):
    session = compiled(step, chunk=8).session(text_of(38), checkpoint_every=every)
    next_tokens(session, 3)  # the last one is not read yet
    session.edit(40, remove=1)
    counted = Counted(session, monkeypatch)
    edit = session.edit(position, remove=1, insert=[(session.tokens[position] + 1) % V])
    assert edit.preserved == kept / 40
    next_tokens(session, 1)
    assert counted.positions == edit.recomputed == 40 - kept


def test_what_is_taken_back_at_the_end_is_chosen_again_without_reading(monkeypatch):
    session = compiled(recurrent).session(text_of(10))
    said = next_tokens(session, 6)
    counted = Counted(session, monkeypatch)
    assert session.edit(13, remove=3).preserved == 1.0
    assert next_tokens(session, 1) == said[3:4]
    assert counted.positions == 0


def test_forced_tokens_and_other_settings():
    exe = compiled(attention)
    session = exe.session([1, 2, 3])
    said = next_tokens(session, 4)
    assert session.force([7, 8]).recomputed == 3  # and the newest token
    goes_on = next_tokens(session, 3)
    assert goes_on == exe.generate([1, 2, 3, *said, 7, 8], max_new_tokens=3)
    session.change(temperature=5.0, seed=1)
    assert session.generation.temperature == 5.0
    assert next_tokens(session, 8) != exe.generate([1, 2, 3, *said, 7, 8, *goes_on], max_new_tokens=8)


def test_another_thread_steers():
    """Paused, edited and resumed in the middle of a loop that knows nothing of it."""
    exe = compiled(attention)
    session, said, reached = exe.session([1, 2, 3]), [], threading.Event()

    def speak() -> None:
        for step in session.steps(30):
            said.append(step.token)
            if len(said) == 5:
                reached.set()
                session.pause()

    speaker = threading.Thread(target=speak)
    speaker.start()
    assert reached.wait(20)
    session.pause()
    assert session.is_paused
    assert len(said) == 5
    session.edit(4, remove=4, insert=[9, 9])
    edited = session.tokens
    session.resume()
    speaker.join()
    assert len(said) == 30
    assert said[5:] == exe.generate(edited, max_new_tokens=25)
    assert session.tokens == edited + said[5:]


def test_a_loop_that_was_left_goes_on():
    exe = compiled(hybrid)
    session = exe.session([1, 2, 3])
    for _ in session.steps():
        if len(session.tokens) == 8:
            break
    assert next_tokens(session, 4) == exe.generate([1, 2, 3], max_new_tokens=9)[5:]


def test_an_interrupted_call_loses_nothing(monkeypatch):
    exe = tiny(recurrent)
    session = exe.session([1, 2, 3])
    said = next_tokens(session, 4)
    program = exe.programs.chunk(1)
    with monkeypatch.context() as patch:
        patch.setattr(exe.programs, "chunk", lambda size, source: _Interrupting(program))
        with pytest.raises(KeyboardInterrupt):
            next_tokens(session, 1)
    assert next_tokens(session, 4) == exe.generate([1, 2, 3, *said], max_new_tokens=4)


class _Interrupting:
    """A program during whose call Ctrl-C comes, when its states have been used up."""

    def __init__(self, prepared) -> None:
        self._prepared = prepared

    def run(self, parameters, inputs, states):
        self._prepared.run(parameters, inputs, states)
        raise KeyboardInterrupt


def test_text_is_edited_as_text(shared):
    exe = sy.compile(sy.load(shared / "real" / "stories260K"))
    session = exe.session("Once upon a time", max_new_tokens=12)
    "".join(step.text for step in session.steps())
    assert session.text.startswith("Once upon a time")
    edit = session.rewrite("Once upon a time, there was a red dragon")
    assert edit.preserved > 0.3
    session.force(". He")
    said = "".join(step.text for step in session.steps())
    assert said == "".join(exe.stream(session.tokens[:-12], max_new_tokens=12))
    assert session.text == f"Once upon a time, there was a red dragon. He{said}"


# ---- backtracking ----


@pytest.mark.parametrize("step", MODELS)
def test_rejected_choices_are_banned_where_they_were_made(step):
    """No token may follow an equal one: the most likely other is said instead."""
    exe = compiled(step)

    def repeats(tokens: list[int], text: str) -> int:
        return int(len(tokens) > 1 and tokens[-1] == tokens[-2])

    session = exe.session([1, 2, 3], max_new_tokens=12)
    checked = session.generate_checked(repeats)
    expected: list[int] = []
    while len(expected) < 12:
        logits = exe.score([1, 2, 3, *expected])[-1]
        if expected:
            logits[expected[-1]] = -np.inf
        expected.append(int(logits.argmax()))
    assert checked.tokens == expected
    plain = exe.generate([1, 2, 3], max_new_tokens=12)
    assert (checked.retries > 0) == (plain != expected)


def test_several_tokens_are_taken_back():
    exe = compiled(attention)
    plain = exe.generate([1, 2, 3], max_new_tokens=8)

    def check(tokens: list[int], text: str) -> int:
        return 3 if tokens == plain[:5] else 0

    checked = exe.session([1, 2, 3], max_new_tokens=8).generate_checked(check)
    assert checked.retries == 1
    assert checked.tokens[:2] == plain[:2]
    assert checked.tokens[2] != plain[2]
    logits = exe.score([1, 2, 3, *plain[:2]])[-1]
    logits[plain[2]] = -np.inf
    assert checked.tokens[2] == logits.argmax()


def test_backtracking_is_bounded():
    session = compiled(attention).session([1, 2, 3], max_new_tokens=8)
    with pytest.raises(sy.SystolicError, match="rejected 6 continuations; the text is as it was"):
        session.generate_checked(lambda tokens, text: 1, retries=5)
    assert session.tokens == [1, 2, 3]
    with pytest.raises(sy.SystolicError, match=f"rejected {V} continuations"):
        session.generate_checked(lambda tokens, text: 1, retries=1000)


def test_another_attempt_draws_another_number():
    session = compiled(attention).session([1], max_new_tokens=1, temperature=100.0)
    seen = []

    def collect(tokens: list[int], text: str) -> int:
        seen.append(tokens[-1])
        return int(len(seen) < 10)

    session.generate_checked(collect)
    assert len(set(seen)) == 10
    assert seen != sorted(seen)


# ---- mistakes ----


def test_mistakes_in_edits_are_named():
    session = compiled(attention).session([1, 2, 3])
    with pytest.raises(sy.SystolicError, match="the text has 3 tokens; 2 from position 2 on are not among"):
        session.edit(2, remove=2)
    with pytest.raises(sy.SystolicError, match="the text has 66 tokens, more than the capacity of 64"):
        session.force([1] * 63)
    with pytest.raises(sy.SystolicError, match="the text is empty"):
        session.edit(0, remove=3)
    with pytest.raises(sy.SystolicError, match="token id 23 is outside"):
        session.edit(1, insert=[V])
    with pytest.raises(sy.SystolicError, match="temperature must be"):
        session.change(temperature=-1)
    with pytest.raises(sy.SystolicError, match="has no tokenizer"):
        _ = session.text
    assert session.tokens == [1, 2, 3]
