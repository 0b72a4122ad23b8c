"""The certificate against perturbation: change one input position, see which outputs change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import systolic as sy
from systolic.ir.errors import CausalityError
from systolic.ir.graph import Graph
from systolic.ir.interpret import interpret
from systolic.ir.time import PREFIX, Reach

LENGTH = 9
WEIGHTS = np.random.default_rng(0).uniform(0.3, 0.9, 64)  # generic, so that nothing cancels


def perturbed(graph: Graph, lengths: dict[str, int]) -> dict[tuple[str, str], set[tuple[int, int]]]:
    """For each output and input, the pairs (position of the output, position of the input it shows)."""
    generator = np.random.default_rng(1)
    parameters = {node.name: generator.normal(size=node.tensor.static_shape) for node in graph.parameters}
    inputs = {
        node.name: generator.normal(size=(lengths[node.clock], *node.tensor.static_shape))
        for node in graph.inputs
    }
    before = interpret(graph, inputs, parameters)
    found: dict[tuple[str, str], set[tuple[int, int]]] = {
        (output, name): set() for output in graph.outputs for name in inputs
    }
    for name, array in inputs.items():
        for position in range(len(array)):
            changed = array.copy()
            changed[position] += 10.0
            after = interpret(graph, {**inputs, name: changed}, parameters)
            for output in graph.outputs:
                for t in range(len(before[output])):
                    if not np.array_equal(before[output][t], after[output][t]):
                        found[output, name].add((t, position))
    return found


def certified(graph: Graph, lengths: dict[str, int]) -> dict[tuple[str, str], set[tuple[int, int]]]:
    """The same pairs as the certificate claims them."""
    return {
        (entry.output, entry.input): {
            (t, position)
            for t in range(lengths[str(graph.outputs[entry.output].clock)])
            for position in entry.reach.steps(t, lengths[str(entry.clock)])
        }
        for entry in graph.certificate().entries
    }


def check(function, lengths: dict[str, int] | None = None, **inputs: str) -> Graph:
    lengths = lengths or {"main": LENGTH}
    graph = sy.trace(function, **inputs)
    assert certified(graph, lengths) == perturbed(graph, lengths)
    return graph


def reads(graph: Graph) -> dict[str, str]:
    return {entry.output: entry.describe() for entry in graph.certificate().entries}


# ---- random models ----

KINDS = ("delay", "window", "prefix", "feedback", "shift", "add")
instructions = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9), st.integers(1, 4)),
    min_size=1,
    max_size=8,
)


def build(program: list[tuple[str, int, int, int]]):
    """A linear model of two inputs: each instruction makes a stream out of earlier ones."""

    def model(a, b):
        weights = iter(WEIGHTS)
        streams, open_feedback = [a, b], []
        for kind, first, second, size in program:
            x, y = streams[first % len(streams)], streams[second % len(streams)]
            if kind == "delay":
                new = sy.delay(x, size)
            elif kind == "window":
                new = sy.sum(sy.history(x, window=size), axis=0)
            elif kind == "prefix":
                new = sy.sum(sy.history(x), axis=0)
            elif kind == "add":
                new = x + y * float(next(weights))
            else:  # what a feedback carries is known only once all streams are there
                new = sy.feedback(sy.zeros((), "f64"))
                open_feedback.append((new, kind, second, size))
            streams.append(new * float(next(weights)))
        for state, kind, second, size in open_feedback:
            source = streams[second % len(streams)]
            kept = state * float(next(weights))
            # A shift carries an input on; a proper feedback depends on its own previous value.
            state.close(kept + source if kind == "feedback" else [a, b][size % 2] * 0.5)
        return {"last": streams[-1], "middle": streams[len(streams) // 2 + 1]}

    return model


@settings(max_examples=150, deadline=None)
@given(instructions)
def test_random_models_reach_exactly_what_is_certified(program):
    check(build(program), a="f64[]", b="f64[]")


@settings(max_examples=50, deadline=None)
@given(instructions, st.integers(1, 3), st.integers(0, 9))
def test_a_delayed_carry_is_never_underestimated(program, steps, tap):
    def model(a, b):
        outputs = build(program)(a, b)
        state = sy.feedback(sy.zeros((), "f64"))
        new = state.close(sy.delay(state * 0.5, steps) + outputs["last"])
        return {"y": new, "z": outputs["middle"] + state}

    graph = sy.trace(model, a="f64[]", b="f64[]")
    claimed, found = certified(graph, {"main": LENGTH}), perturbed(graph, {"main": LENGTH})
    assert all(found[pair] <= claimed[pair] for pair in found)
    assert graph.certificate().causal


# ---- known models ----


def test_dilated_delays_leave_gaps():
    def dilated(x):
        for dilation in (1, 4):
            x = x + sy.delay(x, dilation) * 0.7
        return x

    graph = check(dilated, x="f64[]")
    assert reads(graph) == {"output": "positions t-5:t-4, t-1:t"}


def test_windows_of_stacked_layers_add_up():
    def stacked(x):
        for _ in range(3):
            x = x + sy.sum(sy.history(x * 0.5, window=3), axis=0)
        return x

    assert reads(check(stacked, x="f64[]")) == {"output": "window 7"}


def test_attention_reads_the_prefix_and_a_weight_has_no_position():
    def attend(x):
        w = sy.parameter("w", (2, 2), "f64")
        keys = sy.history(x @ w)
        return {
            "mixed": sy.softmax(keys @ x) @ keys,
            "now": x @ w,
            "nothing": w[0] + 0.0 * sy.position().cast("f64"),
        }

    graph = check(attend, x="f64[2]")
    assert reads(graph) == {"mixed": "prefix", "now": "now", "nothing": "nothing"}


def test_a_recurrence_reads_everything_older():
    def recurrent(x):
        state = sy.feedback(sy.zeros((), "f64"))
        new = state.close(state * 0.5 + sy.delay(x, 2))
        return {"before": state + 0.0, "after": new, "beside": new + x}

    graph = check(recurrent, x="f64[]")
    assert reads(graph) == {
        "before": "positions 0:t-3",
        "after": "positions 0:t-2",
        "beside": "positions 0:t-2, t",
    }


def test_a_feedback_that_carries_an_input_is_a_delay():
    def shift(x):
        first, second = sy.feedback(sy.zeros((), "f64")), sy.feedback(sy.zeros((), "f64"))
        first.close(x)
        second.close(first)
        return second * 1.5

    assert reads(check(shift, x="f64[]")) == {"output": "delay 2"}


def test_feedbacks_that_run_through_each_other():
    def coupled(x):
        a, b = sy.feedback(sy.zeros((), "f64")), sy.feedback(sy.zeros((), "f64"))
        a.close(a * 0.5 + b)
        b.close(b * 0.5 + x + a * 0.3)
        return {"a": a + 0.0, "b": b + 0.0}

    assert reads(check(coupled, x="f64[]")) == {"a": "positions 0:t-2", "b": "positions 0:t-1"}


def test_another_clock_is_read_whole_without_a_leak():
    def translate(token, sound):
        encoded = sound + sy.sum(sy.whole(sound), axis=0) * 0.5
        heard = sy.sum(sy.whole(encoded), axis=0)
        return sy.sum(sy.history(token + heard), axis=0)

    lengths = {"target": 4, "source": 3}
    graph = check(translate, lengths, token="f64[]@target", sound="f64[]@source")
    assert graph.certificate().causal
    assert [entry.describe() for entry in graph.certificate().entries] == [
        "prefix of clock target",
        "whole of clock source",
    ]


# ---- leaks ----


def _leaking(x):
    centred = x - sy.mean(sy.whole(x), axis=0)
    y = centred * 2.0
    for _ in range(5):
        y = y * 0.5
    return {"slow": y, "logits": sy.tanh(centred).named("squashed")}


def test_a_leak_is_the_shortest_path_with_source_lines():
    certificate = check(_leaking, x="f64[]").certificate()
    first = _leaking.__code__.co_firstlineno
    assert not certificate.causal
    steps = [
        (step.op, str(step.access), step.location.line - first if step.location else None)
        for step in certificate.leak
    ]
    assert steps == [
        ("tanh", "None", 5),
        ("subtract", "t", 1),
        ("divide", "t", 1),
        ("sum", "t", 1),
        ("whole", "t", 1),
        ("input", ":", None),
    ]
    with pytest.raises(CausalityError, match="squashed depends on later positions of x") as caught:
        certificate.raise_if_leaking()
    assert f"test_causality.py:{first + 1}" in str(caught.value)
    assert "x[:]" in str(certificate)


def test_a_leak_through_a_feedback_is_found():
    def model(x):
        state = sy.feedback(sy.zeros((), "f64"))
        state.close(state * 0.5 + sy.sum(sy.whole(x), axis=0))
        return state + 0.0

    certificate = sy.trace(model, x="f64[]").certificate()
    assert certificate.leak is not None
    assert [str(step.access) for step in certificate.leak] == ["None", "t", "t-1", "t", "t", ":"]
    assert certificate.entries[0].describe() == "whole"


def test_a_whole_that_its_own_feedback_reads_is_found():
    def model(x):
        state = sy.feedback(sy.zeros((), "f64"))
        state.close(sy.sum(sy.whole(state), axis=0) + x)
        return state + 0.0

    certificate = sy.trace(model, x="f64[]").certificate()
    assert not certificate.causal
    assert not certificate.entries[0].reach.is_causal


def test_a_sentence_encoder_without_a_clock_does_not_leak():
    def encode(x):
        return sy.mean(sy.whole(x), axis=0)

    certificate = sy.trace(encode, x="f64[]").certificate()
    assert certificate.causal
    assert certificate.entries[0].describe() == "whole"


def test_a_leak_of_a_source_clock_is_only_that_of_its_own_outputs():
    def model(token, sound):
        mixed = sound + sy.sum(sy.whole(sound), axis=0)
        return {"tokens": token + sy.sum(sy.whole(mixed), axis=0), "sounds": mixed}

    certificate = sy.trace(model, token="f64[]@target", sound="f64[]@source").certificate()
    assert certificate.leak is not None
    assert certificate.leak[0].name == "add"
    leaking = {entry.output for entry in certificate.entries if not entry.reach.is_causal}
    assert leaking == {"tokens", "sounds"}


def test_the_certificate_is_a_table_and_json():
    def model(x, y):
        return {"logits": sy.delay(x, 2) + y, "copy": y * 1.0}

    certificate = sy.trace(model, x="f64[]", y="f64[]").certificate()
    assert str(certificate) == (
        "model is causal: no output depends on a later input\n"
        "  output  input  depends on\n"
        "  logits  x      delay 2\n"
        "  logits  y      now\n"
        "  copy    x      nothing\n"
        "  copy    y      now"
    )
    assert certificate.to_json()["entries"][0] == {
        "output": "logits",
        "input": "x",
        "clock": "main",
        "positions": ["t-2"],
        "description": "delay 2",
    }
    assert certificate.to_json()["leak"] is None
    certificate.raise_if_leaking()
    leaking = sy.trace(_leaking, x="f64[]").certificate().to_json()
    assert leaking["causal"] is False
    assert leaking["leak"][-1]["access"] == ":"


def test_a_thousand_layers_with_feedback_are_certified():
    def deep(x):
        generated = sy.feedback(sy.zeros((), "f64"))
        x = x + generated
        for _ in range(1000):
            state = sy.feedback(sy.zeros((), "f64"))
            x = state.close(state * 0.5 + x)
        return generated.close(x)

    assert sy.trace(deep, x="f64[]").certificate().entries[0].reach == Reach((PREFIX,))
