"""Derived programs against the meaning of time: any split, any row, any choice of states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import (
    WIDTH,
    build,
    build_two_clocks,
    draw_parameters,
    recipes,
    run_at_once,
    run_in_chunks,
)

import systolic as sy
from systolic.compiler.derive import choose_states, derive_chunk, derive_score, derive_source
from systolic.ir.evaluate import evaluate
from systolic.ir.interpret import interpret
from systolic.ir.verify import verify

# float32 sums in another order: values stay below about 10, so 1e-4 is some hundred roundings.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
LENGTH = 8
STRATEGIES = ("auto", "sources", "tokens")


def draw_values(rows: int, length: int = LENGTH, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, length, WIDTH)).astype(np.float32)


def splits(total: int) -> st.SearchStrategy[list[int]]:
    """Chunk lengths that add up to ``total``."""
    cuts = st.sets(st.integers(1, total - 1))
    return cuts.map(lambda chosen: np.diff([0, *sorted(chosen), total]).tolist())


@settings(max_examples=60, deadline=None)
@given(recipe=recipes, split=splits(LENGTH), strategy=st.sampled_from(STRATEGIES))
def test_any_split_equals_the_interpreter(recipe, split, strategy):
    graph = build(recipe)
    parameters, values = draw_parameters(graph), draw_values(2)
    want = [interpret(graph, {"x": row}, parameters)["output"] for row in values]
    plan = choose_states(graph, strategy)
    got = run_in_chunks(graph, plan, values, parameters, [(n, n) for n in split], capacity=LENGTH + 1)
    np.testing.assert_allclose(got, want, **TOLERANCE)
    np.testing.assert_allclose(run_at_once(graph, values, parameters), want, **TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(recipe=recipes, calls=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=5))
def test_ragged_rows_equal_rows_alone(recipe, calls):
    graph = build(recipe)
    parameters, values = draw_parameters(graph), draw_values(3, length=15)
    got = run_in_chunks(graph, choose_states(graph), values, parameters, calls, capacity=16)
    for row, outputs in enumerate(got):
        length = sum(call[row] for call in calls)
        if length:
            want = interpret(graph, {"x": values[row, :length]}, parameters)["output"]
            np.testing.assert_allclose(outputs, want, **TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(recipe=recipes)
def test_last_is_the_last_of_all(recipe):
    graph = build(recipe)
    parameters, values = draw_parameters(graph), draw_values(2)
    plan = choose_states(graph)
    lengths = np.array([5, 8], np.int32)
    given_inputs = {"x": values, "offset": np.zeros(2, np.int32), "length": lengths}
    results = []
    for last in (False, True):
        program = derive_chunk(graph, plan, rows=2, chunk=8, capacity=8, last=last)
        verify(program.graph, "program")
        states = {f"state.{s.name}": np.zeros(s.type.static_shape, np.float32) for s in program.states}
        results.append(evaluate(program.graph, {**parameters, **states, **given_inputs})["output"])
    np.testing.assert_allclose(results[1][:, 0], [results[0][0, 4], results[0][1, 7]], **TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(source=recipes, target=recipes, split=splits(6), strategy=st.sampled_from(STRATEGIES))
def test_two_clocks(source, target, split, strategy):
    graph = build_two_clocks(source, target)
    parameters = draw_parameters(graph)
    sources, values = draw_values(2, 5, seed=2), draw_values(2, 6, seed=3)
    counts = np.array([5, 3], np.int32)
    want = [
        interpret(graph, {"source": s[:n], "x": x}, parameters)["output"]
        for s, x, n in zip(sources, values, counts, strict=True)
    ]
    zero, full, sizes = np.zeros(2, np.int32), np.full(2, 6, np.int32), {"source": 5}
    common = {**parameters, "source": sources, "length.source": counts, "offset": zero, "length": full}
    at_once = derive_score(graph, rows=2, length=6, source_lengths=sizes)
    np.testing.assert_allclose(evaluate(at_once.graph, {**common, "x": values})["output"], want, **TOLERANCE)

    plan = choose_states(graph, strategy)
    first = derive_source(graph, plan, rows=2, source_lengths=sizes, capacity=8)
    assert {state.kind for state in first.states} == {"constant"}
    states, outputs, start = evaluate(first.graph, common), [], 0
    for chunk in split:
        program = derive_chunk(
            graph,
            plan,
            rows=2,
            chunk=chunk,
            capacity=8,
            reserve=max(split),
            source_lengths=sizes,
            last=False,
        )
        for state in program.states:
            states.setdefault(f"state.{state.name}", np.zeros(state.type.static_shape, np.float32))
        step = {
            "x": values[:, start : start + chunk],
            "offset": np.full(2, start, np.int32),
            "length": np.full(2, chunk, np.int32),
        }
        results = evaluate(program.graph, {**parameters, **states, **step, "length.source": counts})
        outputs.append(results.pop("output"))
        states.update(results)
        start += chunk
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), want, **TOLERANCE)


# ---- the states that are found ----


def states_of(function, strategy="auto", capacity=64, chunk=4, **inputs):
    graph = sy.trace(function, **inputs)
    program = derive_chunk(graph, choose_states(graph, strategy), rows=1, chunk=chunk, capacity=capacity)
    return {state.name: state for state in program.states}


def test_grouped_keys_are_stored_before_they_are_repeated():
    def model(x):
        k = (x @ sy.parameter("wk", (16, 8))).reshape(2, 4).named("k")
        repeated = sy.broadcast_to(k.reshape(2, 1, 4), (2, 3, 4)).reshape(6, 4)
        scores = sy.einsum(
            "hd,phd->hp", sy.reshape(x @ sy.parameter("wq", (16, 24)), 6, 4), sy.history(repeated)
        )
        return sy.sum(sy.softmax(scores), (0, 1))

    found = states_of(model, x="f32[16]")
    (keys,) = found.values()
    assert keys.value.size == 2 * 4
    assert keys.bytes_per_token == 2 * 4 * 4
    assert "recomputed from it" in keys.reason
    asked = states_of(model, "sources", x="f32[16]")
    assert [s.bytes_per_token for s in asked.values()] == [6 * 4 * 4]


def test_positions_are_counted_and_not_stored():
    def model(x):
        keys = sy.history(x.named("k"))
        distance = (sy.position() - sy.history(sy.position())).cast("f32")
        return sy.softmax(sy.einsum("d,pd->p", x, keys) - 0.5 * distance) @ keys

    assert list(states_of(model, x="f32[4]")) == ["x"]


def test_keys_are_stored_after_their_rotation():
    def model(x):
        angle = sy.position().cast("f32")
        k = (x @ sy.parameter("wk", (4, 4))).named("before")
        k = (k * sy.cos(angle)).named("after")
        return sy.softmax(sy.einsum("d,pd->p", x, sy.history(k))) @ sy.history(k)

    assert list(states_of(model, x="f32[4]")) == ["after"]


def test_kinds_and_sizes():
    def model(x):
        state = sy.feedback(sy.zeros((4,)))
        h = state.close(state * 0.5 + x)
        near = sy.sum(sy.history(sy.tanh(x).named("near"), window=8), 0)
        far = sy.sum(sy.history(sy.sin(x).named("far")), 0)
        return h + near + far + sy.delay(x, 3)

    found = {s.kind: s for s in states_of(model, x="f32[4]").values()}
    assert set(found) == {"ring", "append", "tail", "carry"}
    # A ring holds window + chunk - 1 values, so that a chunk of 4 does not overwrite what it reads.
    assert found["ring"].type.shape == (1, 8 + 4 - 1, 4)
    assert found["append"].type.shape == (1, 64, 4)
    assert found["tail"].type.shape == (1, 3, 4)
    assert found["carry"].type.shape == (1, 4)
    assert found["ring"].bytes_per_token == found["append"].bytes_per_token == 16
    assert found["tail"].bytes_per_token == found["carry"].bytes_per_token == 0


def test_tokens_stores_the_inputs_alone():
    def model(token):
        x = sy.take(sy.parameter("embed", (11, 4)), token)
        return sy.softmax(sy.einsum("d,pd->p", x, sy.history(x))) @ sy.history(sy.tanh(x))

    found = states_of(model, "tokens")
    assert [(s.name, s.bytes_per_token) for s in found.values()] == [("token", 4)]


def test_a_whole_read_of_its_own_clock_cannot_be_decoded():
    def model(x):
        return x + sy.sum(sy.whole(x), 0)

    graph = sy.trace(model, x="f32[4]")
    with pytest.raises(sy.CausalityError, match="whole"):
        derive_chunk(graph, choose_states(graph), rows=1, chunk=1, capacity=8)
    assert derive_score(graph, rows=1, length=8).graph.outputs


def ops_of_chunk(function, chunk: int) -> set[str]:
    graph = sy.trace(function, x="f32[4]")
    program = derive_chunk(graph, choose_states(graph), rows=1, chunk=chunk, capacity=16)
    return {node.op.name for node in program.graph}


def test_a_linear_recurrence_is_a_scan_and_any_other_a_loop():
    def linear(x):
        h = sy.feedback(sy.zeros((4,)))
        return h.close(sy.sigmoid(x) * h + sy.tanh(x))

    def total(x):
        h = sy.feedback(sy.zeros((4,)))
        return h.close(x + h) + sy.sum(sy.history(h), 0)

    def gated(x):
        h = sy.feedback(sy.zeros((4,)))
        return h.close(sy.sigmoid(h) * h + x)

    def squared(x):
        h = sy.feedback(sy.zeros((4,)))
        return h.close(h * h + x)

    def highest(x):
        h = sy.feedback(sy.zeros((4,)) - 1e30)
        return h.close(sy.maximum(h + -0.5, x))

    for function in (linear, total, highest):
        assert "linear_scan" in ops_of_chunk(function, 8)
        assert "loop" not in ops_of_chunk(function, 8)
    for function in (gated, squared):
        assert "loop" in ops_of_chunk(function, 8)
        assert "linear_scan" not in ops_of_chunk(function, 8)
    # One position needs neither.
    assert not {"loop", "linear_scan"} & (ops_of_chunk(linear, 1) | ops_of_chunk(gated, 1))


HEADS, KEY, VALUE = 2, 8, 16


def remembering(correct=lambda value, read: value, decay=(HEADS, 1, 1)):
    """A model that reads a memory of outer products, f32[HEADS, KEY, VALUE]."""

    def model(x):
        q, k = (x @ sy.parameter(n, (4, HEADS * KEY)) for n in ("wq", "wk"))
        q, k = sy.tanh(q.reshape(HEADS, KEY)), sy.tanh(k.reshape(HEADS, KEY)) * 0.3
        v = (x @ sy.parameter("wv", (4, HEADS * VALUE))).reshape(HEADS, VALUE)
        before = sy.feedback(sy.zeros((HEADS, KEY, VALUE)))
        faded = sy.sigmoid(sy.parameter("decay", decay) * sy.sum(x)) * before
        value = correct(v, sy.einsum("hkv,hk->hv", faded, k))
        after = before.close(faded + sy.einsum("hk,hv->hkv", k, value))
        return sy.einsum("hkv,hk->hv", after, q)

    return model


def loops_and_largest(function) -> tuple[list[int], int]:
    """The lengths of the loops of a chunk of 32 positions, and how many numbers its largest array has."""
    graph = sy.trace(function, x="f32[4]")
    program = derive_chunk(graph, choose_states(graph), rows=1, chunk=32, capacity=32, last=False)
    loops = [node.params["length"] for node in program.graph if node.op.name == "loop"]
    arrays = [node.tensor for node in program.graph if node.op.name != "loop"]
    return loops, max(array.bytes // 4 for array in arrays)


def test_a_memory_is_read_in_blocks_without_its_state_at_each_position():
    state = HEADS * KEY * VALUE
    loops, largest = loops_and_largest(remembering())
    assert not loops
    assert largest < 32 * state / 2
    # Where the decay differs along what is summed, states are made, but for one block at a time.
    loops, largest = loops_and_largest(remembering(decay=(HEADS, KEY, 1)))
    assert loops == [32 // 16]
    assert largest < 32 * state / 2


def channels(
    read=lambda state, leave: sy.einsum("cn,n->c", state, leave),
    then=lambda y, state: y,
    flow=lambda x, step, enter: step[:, None] * enter,
):
    """A model of eight channels with sixteen numbers each, every one with a decay of its own."""

    def model(x):
        step, enter, leave = (
            sy.tanh(x @ sy.parameter(n, (4, k))) for n, k in (("d", 8), ("e", 16), ("l", 16))
        )
        before = sy.feedback(sy.zeros((8, 16)))
        decay = sy.exp(step[:, None] * sy.parameter("rate", (8, 16)))
        after = before.close(decay * before + flow(x, step, enter))
        return then(read(after, leave), after)

    return model


def test_states_that_are_larger_than_what_is_read_of_them_are_made_block_by_block():
    loops, largest = loops_and_largest(channels())
    assert loops == [32 // 16]
    assert largest < 32 * 8 * 16 / 4
    loops, _ = loops_and_largest(channels(lambda state, leave: sy.sum(sy.tanh(state) * leave, 1)))
    assert loops == [32 // 16]  # read in several steps
    wanted_otherwise = (
        channels(then=lambda y, state: {"y": y, "state": state}),
        channels(then=lambda y, state: y + sy.sum(sy.delay(state, 2), 1)),
        channels(then=lambda y, state: y + sy.sum(sy.history(state, window=2), (0, 2))),
        channels(then=lambda y, state: sy.sum(state * y[:, None], 1)),  # needs y first
        channels(lambda state, leave: state * leave),  # as large as the state
        channels(flow=lambda x, step, enter: (x @ sy.parameter("w", (4, 128))).reshape(8, 16)),
    )
    for model in wanted_otherwise:
        loops, largest = loops_and_largest(model)
        assert not loops
        assert largest >= 32 * 8 * 16


def test_a_correction_of_a_memory_is_solved_block_by_block_unless_it_is_not_linear():
    def linear(value, read):
        return 0.4 * (value - read)

    state = HEADS * KEY * VALUE
    loops, largest = loops_and_largest(remembering(linear))
    assert loops == [32 // 8]
    assert largest < 32 * state / 2
    for other in (
        lambda value, read: value - sy.tanh(read),
        lambda value, read: value - read * read,
        lambda value, read: value - sy.arange(VALUE).cast("f32") * read,  # a system for each element
    ):
        assert loops_and_largest(remembering(other))[0] == [32]


def test_corrections_by_repeated_keys_stay_accurate():
    """A system whose powers grow beyond all bounds although its solution does not: the same key each time."""

    def model(x):
        k = sy.constant(np.full((1, 4), 0.5, np.float32))
        before = sy.feedback(sy.zeros((1, 4, 1024)))
        value = sy.broadcast_to(sy.sum(x), (1, 1024)) - sy.einsum("hkv,hk->hv", before, k)
        after = before.close(before + sy.einsum("hk,hv->hkv", k, value))
        return sy.sum(sy.einsum("hkv,hk->hv", after, k)) / 1024.0

    values = np.random.default_rng(3).normal(size=(1, 64, 4)).astype(np.float32)
    got = run_at_once(sy.trace(model, x="f32[4]"), values, {})
    np.testing.assert_allclose(got, values.sum(-1), rtol=1e-4, atol=1e-4)


def test_a_thousand_layers_need_no_recursion():
    def model(x):
        for i in range(1000):
            with sy.scope(f"layers.{i}"):
                past = sy.history(x)
                x = x + sy.tanh(sy.softmax(sy.einsum("d,pd->p", x, past)) @ past)
        return x

    graph = sy.trace(model, x="f32[4]")
    program = derive_chunk(graph, choose_states(graph), rows=1, chunk=1, capacity=8)
    assert len(program.states) == 1000
    assert len(str(program.graph)) > 100_000
