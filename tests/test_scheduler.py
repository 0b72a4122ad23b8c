"""Continuous batching: whatever comes and goes around it, a request says what it says alone."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import V, attention, hybrid, recurrent, tiny, window

import systolic as sy
from systolic.runner.scheduler import PATIENCE, QueueFull, Scheduler

BACKENDS = ["numpy", "xla"]
MODELS = [attention, window, recurrent, hybrid]
compiled = cache(tiny)


@cache
def alone(step, prompt: tuple[int, ...], **generation) -> list[int]:
    return compiled(step).generate(prompt, **generation)


def text_of(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, V, length).tolist())


def new_scheduler(step=attention, backend: str = "numpy", batch: int = 3, **options) -> Scheduler:
    return compiled(step, backend=backend, batch=batch, chunk=8).scheduler(**options)


# ---- random schedules ----

requests = st.fixed_dictionaries(
    {
        # Beginnings of two texts, so that prefixes are shared.
        "prompt": st.builds(text_of, st.integers(1, 60), st.integers(0, 1)),
        "max_new_tokens": st.integers(0, 12),
        "temperature": st.sampled_from([0.0, 0.0, 2.0]),
        "seed": st.integers(0, 2),
        "top_k": st.sampled_from([0, 5]),
    }
)
actions = st.one_of(
    st.tuples(st.just("submit"), requests, st.integers(-1, 2)),
    st.tuples(st.just("step"), st.integers(1, 6), st.none()),
    st.tuples(st.just("cancel"), st.integers(0, 9), st.none()),
)


def follow(scheduler: Scheduler, step, plan) -> None:
    """Plays a schedule, and compares every request with what it is alone."""
    sent = []
    for kind, what, priority in plan:
        if kind == "submit":
            sent.append((what, scheduler.submit(priority=priority, **what)))
        elif kind == "step":
            for _ in range(what):
                scheduler.step()
        elif sent:
            sent[what % len(sent)][1].cancel()
    while scheduler.step():
        pass
    for what, request in sent:
        expected = alone(step, **what)
        if request.finish_reason == "cancelled":
            assert request.tokens == expected[: len(request.tokens)]
        else:
            assert request.tokens == expected
            assert request.finish_reason in ("length", "capacity")
    assert scheduler.running == scheduler.waiting == 0


plans = st.lists(actions, min_size=2, max_size=25)
kept_bytes = st.sampled_from([0, 30_000, 1 << 30])


@pytest.mark.parametrize("step", MODELS)
@given(plan=plans, kept=kept_bytes, share=st.sampled_from([1, 5, 8]))
@settings(max_examples=250, deadline=None)
def test_a_thousand_schedules(step, plan, kept, share):
    follow(new_scheduler(step, prefix_bytes=kept, checkpoint_every=8, prompt_tokens=share), step, plan)


@pytest.mark.parametrize("step", MODELS)
@given(plan=plans, kept=kept_bytes)
@settings(max_examples=15, deadline=None)
def test_schedules_on_xla(step, plan, kept):
    follow(new_scheduler(step, "xla", prefix_bytes=kept, checkpoint_every=8), step, plan)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama_gqa_llama3", "mistral_sliding", "mamba", "t5"])
def test_recorded_models(shared, name, backend):
    """The prompts of the recording, all at once and one of them twice, while others come and go."""
    folder = shared / "oracle" / name
    exe = sy.compile(sy.load(folder), backend=backend, batch=3, capacity=80, chunk=16)
    recorded = np.load(folder / "oracle.npz")
    scheduler = exe.scheduler(prompt_tokens=16)
    made = len(exe.programs)
    texts = [(recorded[f"ids_{i}"].tolist(), recorded[f"greedy_{i}"].tolist()) for i in (0, 1, 2, 1)]
    asked = [(scheduler.submit(ids, max_new_tokens=24, ignore_eos=True), greedy) for ids, greedy in texts]
    noise = [scheduler.submit([5 + i] * 9, max_new_tokens=30, temperature=1.0, seed=i) for i in range(4)]
    for request in noise[::2]:
        scheduler.step()
        request.cancel()
    for request, greedy in asked:
        assert request.result() == greedy
    assert len(exe.programs) == made


SAMPLINGS = [
    {},
    {"temperature": 1.5, "seed": 1},
    {"temperature": 1.0, "top_p": 0.8, "min_p": 0.05, "top_k": 12},
    {"temperature": 2.0, "typical_p": 0.7},
    {"temperature": 1.0, "repetition_penalty": 1.4, "presence_penalty": 0.5},
    {"no_repeat_ngram_size": 2},
    {"temperature": 1.0, "mirostat_tau": 3.0},
    {"temperature": 0.8, "logit_bias": {3: 4.0}},
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_be_sampled_in_any_way_side_by_side(backend, monkeypatch):
    scheduler = new_scheduler(attention, backend, batch=4)
    drawn, choose = [], scheduler._batch_chooser.choose

    def counted(logits, lengths):
        drawn.extend(lengths)
        return choose(logits, lengths)

    monkeypatch.setattr(scheduler._batch_chooser, "choose", counted)
    asked = [{"max_new_tokens": 15, "min_new_tokens": 0, **sampling} for sampling in SAMPLINGS]
    requests = [scheduler.submit(text_of(7, seed=i), **how) for i, how in enumerate(asked)]
    for i, (request, how) in enumerate(zip(requests, asked, strict=True)):
        assert request.result() == compiled(attention).generate(text_of(7, seed=i), **how)
    assert len(drawn) == 30  # two of them are drawn on the device


# ---- programs ----


@pytest.mark.parametrize("step", MODELS)
def test_nothing_is_compiled_while_serving(step, monkeypatch):
    exe = tiny(step, backend="xla", batch=3, chunk=16)
    scheduler = exe.scheduler(checkpoint_every=8)
    listed = [made.name for made in exe.programs]
    monkeypatch.setattr(exe.backend, "prepare", lambda program: pytest.fail(f"{program.name} was compiled"))
    requests = [scheduler.submit(text_of(n), max_new_tokens=5) for n in (1, 7, 8, 9, 16, 30, 40, 59, 63, 64)]
    for request in requests:
        request.result()
    assert [made.name for made in exe.programs] == listed
    assert {"decode", "prefill.16"} <= set(listed)
    assert all(made.seconds > 0 for made in exe.programs)
    assert f"decode: 3 rows of 1, {next(iter(exe.programs)).seconds:.3f} s" in str(exe.programs)


# ---- who goes first ----


def test_running_texts_do_not_wait_for_a_long_prompt():
    scheduler = new_scheduler(prompt_tokens=4)
    running = scheduler.submit([1], max_new_tokens=40)
    scheduler.step()
    long = scheduler.submit(text_of(40), max_new_tokens=1)
    before = len(running.tokens)
    steps = 0
    while not long.is_done:
        scheduler.step()
        steps += 1
    assert steps == 10  # four positions of the prompt at a time
    assert len(running.tokens) == before + 10


def test_a_short_prompt_does_not_wait_for_a_long_one():
    scheduler = new_scheduler(prompt_tokens=8)
    long, short = (scheduler.submit(text_of(n), max_new_tokens=1) for n in (60, 8))
    scheduler.step()
    assert scheduler.statistics.prompt_positions == 8
    while not short.is_done:
        scheduler.step()
    assert scheduler.statistics.steps == 2
    assert not long.is_done


def test_one_call_makes_many_tokens_while_nobody_waits():
    scheduler = new_scheduler(batch=2, tokens_per_call=8)
    first = scheduler.submit([1], max_new_tokens=33)
    second = scheduler.submit([2], max_new_tokens=17, temperature=1.5)
    assert first.result() == alone(attention, (1,), max_new_tokens=33)
    assert second.result() == alone(attention, (2,), max_new_tokens=17, temperature=1.5)
    assert scheduler.statistics.steps == 5  # the prompts, and four times eight
    scheduler.submit([1], max_new_tokens=40)
    scheduler.submit([1], max_new_tokens=40)
    scheduler.step()
    scheduler.submit([3], max_new_tokens=1)  # waits for a row, so all go on token by token
    tokens = scheduler.statistics.tokens
    scheduler.step()
    assert scheduler.statistics.tokens == tokens + 2


def test_a_call_that_makes_many_tokens_ends_with_the_text(shared):
    model = sy.load(shared / "real" / "stories260K")
    said = sy.compile(model, backend="numpy").generate("Once upon a time", max_new_tokens=30)
    model = dataclasses.replace(model, eos_ids=(said[20],))
    exe = sy.compile(model, batch=2, capacity=128, chunk=16)
    scheduler = exe.scheduler()
    settings_ = [{}, {"stop": ["girl named"]}, {"ignore_eos": True}, {"temperature": 0.9, "stop": [" the"]}]
    requests = [scheduler.submit("Once upon a time", max_new_tokens=30, **how) for how in settings_]
    for request, how in zip(requests, settings_, strict=True):
        steps = list(exe.steps("Once upon a time", max_new_tokens=30, **how))
        assert request.result() == [step.token for step in steps]
        assert request.text == "".join(step.text for step in steps)
        assert request.finish_reason == steps[-1].finish_reason
    assert {request.finish_reason for request in requests[:3]} == {"eos", "stop", "length"}


def test_priorities_and_age():
    scheduler = new_scheduler(batch=1)
    first = scheduler.submit([1], max_new_tokens=2)
    scheduler.step()
    low, old, high = (scheduler.submit([2], max_new_tokens=1, priority=p) for p in (0, 1, 2))
    order = []
    while scheduler.step():
        order += [r for r in (first, high, old, low) if r.is_done and r not in order]
    assert order == [first, high, old, low]


def test_nobody_waits_for_ever():
    scheduler = new_scheduler(batch=1)
    low = scheduler.submit([1], max_new_tokens=1)
    others = [scheduler.submit([2], max_new_tokens=1, priority=1) for _ in range(2)]
    for _ in range(2 * PATIENCE):
        scheduler.step()
        others.append(scheduler.submit([2], max_new_tokens=1, priority=1))
    assert low.is_done
    assert not all(request.is_done for request in others)


def test_the_queue_is_bounded():
    scheduler = new_scheduler(batch=1, queue=2)
    first, second = (scheduler.submit([1], max_new_tokens=3) for _ in range(2))
    with pytest.raises(QueueFull, match="2 requests wait already"):
        scheduler.submit([1])
    scheduler.step()
    third = scheduler.submit([1], max_new_tokens=3)
    second.cancel()
    scheduler.step()
    assert scheduler.submit([1], max_new_tokens=3).result() == first.result() == third.result()
    assert second.tokens == []
    assert scheduler.statistics.finished == {"length": 3}


def test_prefixes_are_reused():
    scheduler = new_scheduler(batch=2)
    ids = text_of(40)
    first = scheduler.submit(ids, max_new_tokens=8)
    first.result()
    again, more = scheduler.submit(ids, max_new_tokens=8), scheduler.submit([*ids, *first.tokens, 3])
    assert again.result() == first.tokens
    assert more.result() == compiled(attention).generate([*ids, *first.tokens, 3])
    assert (first.reused, again.reused, more.reused) == (0, 39, 47)
    assert scheduler.statistics.reused_positions == 86
    assert scheduler.prefix_bytes > 0


# ---- threads ----


def test_threads_read_while_a_thread_steps():
    prompts = [text_of(5 + n, seed=n) for n in range(12)]
    answers = {}
    with new_scheduler() as scheduler:
        requests = [scheduler.submit(prompt, max_new_tokens=10) for prompt in prompts]

        def read(i: int) -> None:
            answers[i] = [step.token for step in requests[i // 2]]

        readers = [threading.Thread(target=read, args=(i,)) for i in range(24)]  # two for each
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    for i, said in answers.items():
        assert said == alone(attention, prompts[i // 2], max_new_tokens=10)


def test_threads_take_the_steps_where_no_thread_does():
    scheduler, answers = new_scheduler(), {}

    def ask(n: int) -> None:
        answers[n] = scheduler.submit(text_of(n), max_new_tokens=10).result()

    readers = [threading.Thread(target=ask, args=(n,)) for n in range(1, 9)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert answers == {n: alone(attention, text_of(n), max_new_tokens=10) for n in range(1, 9)}


def test_asyncio_reads_many_requests():
    async def ask(scheduler: Scheduler, n: int) -> list[int]:
        request = scheduler.submit(text_of(n), max_new_tokens=20)
        said = []
        async for step in request:
            said.append(step.token)
            if n == 3 and len(said) == 4:
                request.cancel()
        return said

    async def ask_all() -> list[list[int]]:
        with new_scheduler() as scheduler:
            return await asyncio.gather(*(ask(scheduler, n) for n in range(1, 9)))

    for n, said in enumerate(asyncio.run(ask_all()), start=1):
        expected = alone(attention, text_of(n), max_new_tokens=20)
        assert said == (expected if n != 3 else expected[: len(said)])  # which may have been said by then


def test_asyncio_needs_a_running_scheduler():
    async def ask() -> None:
        async for _ in new_scheduler().submit([1]):
            pass

    with pytest.raises(sy.SystolicError, match="asyncio needs a scheduler that runs by itself"):
        asyncio.run(ask())


def test_closing_finishes_or_cancels():
    scheduler = new_scheduler(batch=1)
    with scheduler:
        requests = [scheduler.submit([1], max_new_tokens=5) for _ in range(3)]
    assert [request.finish_reason for request in requests] == ["length"] * 3
    with pytest.raises(sy.SystolicError, match="the scheduler is closed"):
        scheduler.submit([1])
    other = new_scheduler(batch=1)
    requests = [other.submit([1], max_new_tokens=5) for _ in range(3)]
    other.step()
    other.close(cancel=True)
    assert [request.finish_reason for request in requests] == ["cancelled"] * 3
    assert len(requests[0].tokens) == 1


# ---- mistakes ----


def test_mistakes_are_told_to_the_one_who_made_them():
    scheduler = new_scheduler(batch=2)
    with pytest.raises(sy.SystolicError, match="prompt has 65 tokens, more than the capacity of 64"):
        scheduler.submit([1] * 65)
    with pytest.raises(sy.SystolicError, match="temperature must be"):
        scheduler.submit([1], temperature=-1)
    with pytest.raises(sy.SystolicError, match="prompt_tokens must be at least 1, not 0"):
        new_scheduler(prompt_tokens=0)


@pytest.mark.parametrize("step", MODELS)
def test_a_text_without_numbers_fails_alone(step):
    exe = compiled(step)
    weights = {name: array.copy() for name, array in exe.model.weights.items()}
    weights["embedding"][7] = np.nan
    scheduler = sy.compile(exe.model.graph, weights, backend="numpy", capacity=64, chunk=8).scheduler()
    bad, good = scheduler.submit([1, 7, 2], max_new_tokens=4), scheduler.submit([1], max_new_tokens=1)
    assert good.result() == alone(step, (1,), max_new_tokens=1)  # in the row that the other had
    with pytest.raises(sy.SystolicError, match="weights may be damaged"):
        bad.result()
    assert scheduler.statistics.finished == {"error": 1, "length": 1}


def test_when_the_device_fails_everybody_is_told(monkeypatch):
    with new_scheduler() as scheduler:
        monkeypatch.setattr(scheduler._rows, "run", lambda tokens: 1 / 0)
        requests = [scheduler.submit([1]) for _ in range(5)]
        for request in requests:
            with pytest.raises(ZeroDivisionError):
                request.result()
    with pytest.raises(sy.SystolicError, match="closed"):
        scheduler.submit([1])
