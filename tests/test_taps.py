"""Streams that are read while a model runs, and streams that are something else: against the definition of
a graph (the interpreter), against NumPy by hand, and against changed weights."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from small_models import attention, hybrid, recurrent, tiny, window

import systolic as sy
from systolic.backends.stablehlo import emit_stablehlo
from systolic.ir.interpret import interpret
from systolic.runner.artifacts import open_compiled, write_compiled
from systolic.runner.options import options_for
from systolic.runner.stages import Stages

BACKENDS = ["numpy", "xla"]
MODELS = [attention, window, recurrent, hybrid]
V, D, H = 23, 8, 2
TEXT = [int(token) for token in np.random.default_rng(3).integers(0, V, 30)]  # longer than a ring of 4 + 15


def heads(token):
    """Two layers of two heads each, the second with a window of 4: written so that NumPy can follow."""
    x = sy.take(sy.parameter("embedding", (V, D)), token).named("embed")
    for layer, past in (("layers.0", None), ("layers.1", 4)):
        with sy.scope(layer):
            q, k, v = (sy.parameter(f"{layer}.w{n}", (H, D, D)) for n in "qkv")
            keys = sy.history(sy.einsum("hed,d->he", k, x).named("k"), window=past)
            values = sy.history(sy.einsum("hed,d->he", v, x).named("v"), window=past)
            scores = sy.einsum("he,phe->hp", sy.einsum("hed,d->he", q, x), keys) * 0.3
            mixed = sy.einsum("hp,phe->he", sy.softmax(scores).named("probs"), values).named("mixed")
            x = (x + sy.einsum("dhe,he->d", sy.parameter(f"{layer}.o", (D, H, D)), mixed)).named("x")
    return {"logits": sy.parameter("head", (V, D)) @ x}


def heads_by_hand(w, ids, steering=0.0):
    """All logits [T, V], where ``steering`` [D] is added to what the first layer yields."""
    x = w["embedding"][ids]
    for layer, past in (("layers.0", len(ids)), ("layers.1", 4)):
        q, k, v = (np.einsum("hed,td->the", w[f"{layer}.w{n}"], x) for n in "qkv")
        scores = np.einsum("the,she->hts", q, k) * 0.3
        t, s = np.indices((len(ids), len(ids)))
        scores = np.where((s <= t) & (s > t - past), scores, -np.inf)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        x = x + np.einsum("dhe,hts,she->td", w[f"{layer}.o"], probs, v)
        x = x + steering * (layer == "layers.0")
    return x @ w["head"].T


def weights_of(executable):
    return {name: np.asarray(array) for name, array in executable.model.weights.items()}


def interpreted(executable, ids, names):
    """What the streams hold at each position, by the definition of the graph."""
    graph = executable.model.graph
    outputs = {name: graph.by_name[name] for name in names}
    whole = sy.Graph(graph.name, graph.inputs, graph.parameters, outputs, graph.feedback)
    return interpret(whole, {"token": np.array(ids, np.int32)}, weights_of(executable))


def every_stream(executable):
    graph = executable.model.graph
    return [node.name for node in graph.nodes if node.clock is not None]


# ---- taps ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", MODELS, ids=lambda step: step.__name__)
def test_every_stream_is_what_the_definition_says(step, backend):
    """While a prompt is read in chunks, through a ring that has wrapped around, and while tokens are made."""
    executable = tiny(step, backend=backend)
    taps = executable.tap(*every_stream(executable))
    readings = list(taps.trace(TEXT, max_new_tokens=6, temperature=0.0, ignore_eos=True))
    assert [reading.position for reading in readings] == list(range(len(TEXT) + 5))
    expected = interpreted(executable, [reading.token for reading in readings], taps.names)
    for name in taps.names:
        for reading in readings:
            wanted = expected[name][reading.position]
            assert reading.values[name].shape == wanted.shape, name
            np.testing.assert_allclose(reading.values[name], wanted, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", MODELS, ids=lambda step: step.__name__)
def test_streams_of_a_scored_text(step, backend):
    executable = tiny(step, backend=backend)
    taps = executable.tap(*every_stream(executable))
    logits, values = taps.score(TEXT)
    np.testing.assert_allclose(logits, executable.score(TEXT), rtol=1e-4, atol=1e-4)
    expected = interpreted(executable, TEXT, taps.names)
    for name in taps.names:
        for found, wanted in zip(values[name], expected[name], strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.5, "top_k": 9, "seed": 4}])
def test_a_trace_makes_the_tokens_of_generate(settings):
    executable = tiny(hybrid, batch=3)
    readings = list(executable.tap("take").trace(TEXT[:7], max_new_tokens=12, logprobs=3, **settings))
    steps = list(executable.steps(TEXT[:7], max_new_tokens=12, logprobs=3, **settings))
    traced = [reading.step for reading in readings if reading.step]
    assert [step.token for step in traced] == [step.token for step in steps]
    assert traced[-1].finish_reason == steps[-1].finish_reason == "length"
    np.testing.assert_allclose([s.logprob for s in traced], [s.logprob for s in steps], atol=1e-5)
    assert [[a.token for a in s.alternatives] for s in traced] == [
        [a.token for a in s.alternatives] for s in steps
    ]


def test_a_trace_heeds_a_grammar():
    executable = sy.compile(sy.load(), backend="numpy")
    settings = {"regex": "I (am|was) [a-z]{3}", "max_new_tokens": 20, "temperature": 0.7, "seed": 1}
    traced = [r.step for r in executable.tap("layers.0.mlp.x").trace("ROMEO:", **settings) if r.step]
    assert [step.token for step in traced] == executable.generate("ROMEO:", **settings)
    assert traced[-1].finish_reason == "stop"


@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_of_a_model_that_reads_the_whole_text(backend):
    def encoder(token):
        x = sy.take(sy.parameter("embedding", (V, D)), token)
        probs = sy.softmax(sy.einsum("d,pd->p", x, sy.whole(x)) * 0.3).named("probs")
        return {"y": sy.einsum("p,pd->d", probs, sy.whole(x))}

    executable = tiny(encoder, backend=backend)
    values = executable.tap("probs", "take").encode(TEXT[:11])
    assert values["probs"].shape == (11, 11)  # the program has room for 16
    expected = interpreted(executable, TEXT[:11], ["probs", "take"])
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_prompt_alone_can_be_read():
    readings = list(tiny().tap("take").trace(TEXT, max_new_tokens=0))
    assert len(readings) == len(TEXT)
    assert all(reading.step is None for reading in readings)


def test_a_trace_ends_where_the_capacity_does():
    executable = tiny(attention, capacity=32)
    readings = list(executable.tap("take").trace(TEXT, max_new_tokens=50))
    assert [r.step.token for r in readings if r.step] == executable.generate(TEXT, max_new_tokens=50)
    assert readings[-1].position == 31


def test_programs_without_taps_have_nothing_of_them():
    """Byte for byte: before and after somebody tapped the same executable."""
    executable = tiny(hybrid)
    made = [executable.programs.chunk(1), executable.programs.chunk(16), executable.programs.score(16)]
    before = [emit_stablehlo(prepared.program) for prepared in made]
    taps = executable.tap("take")
    list(taps.trace(TEXT, max_new_tokens=2))
    fresh = Stages(executable.model, executable.options, None).programs
    after = [emit_stablehlo(program) for program in (fresh.chunk(1), fresh.chunk(16), fresh.score(16))]
    assert before == after
    assert not any("tap." in text for text in after)
    tapped = emit_stablehlo(taps.executable.programs.chunk(1).program)
    assert tapped not in before
    assert executable.programs.chunk(1).program.results == ("logits",)


def test_names_are_those_of_dumps_with_wildcards():
    executable = tiny(heads)
    assert executable.tap("layers.*.probs").names == ("layers.0.probs", "layers.1.probs")
    assert executable.tap("layers.[1-9].x", "embed").names == ("embed", "layers.1.x")
    assert executable.tap("0.mixed").names == ("layers.0.mixed",)  # the only name that ends so
    with pytest.raises(sy.SystolicError, match=r"no node 'layers.0.prob'; similar: layers.0.probs"):
        executable.tap("layers.0.prob")
    with pytest.raises(sy.SystolicError, match=r"no node like 'layers.\*.prob'; similar: layers.0.probs"):
        executable.tap("layers.*.prob")
    with pytest.raises(sy.SystolicError, match="head never changes"):
        executable.tap("head")
    with pytest.raises(sy.SystolicError, match="tap needs the names of streams"):
        executable.tap()


# ---- patches ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_steering_vector_changes_logits_as_by_hand(backend):
    executable = tiny(heads, backend=backend)
    vector = np.random.default_rng(1).normal(size=D).astype(np.float32)
    steered = executable.patch("layers.0.x", add=vector)
    w = weights_of(executable)
    np.testing.assert_allclose(executable.score(TEXT), heads_by_hand(w, TEXT), rtol=1e-3, atol=1e-4)
    expected = heads_by_hand(w, TEXT, vector)
    np.testing.assert_allclose(steered.score(TEXT), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected - heads_by_hand(w, TEXT)).max() > 1
    # What is cached was patched, too: prompts in chunks, and then token by token.
    readings = list(steered.tap("layers.0.x").trace(TEXT[:20], max_new_tokens=6))
    text = [reading.token for reading in readings]
    found = np.stack([reading.logits for reading in readings])
    np.testing.assert_allclose(found, heads_by_hand(w, text, vector), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("stream", "backend"), [("probs", "numpy"), ("mixed", "numpy"), ("mixed", "xla")])
def test_ablating_a_head_is_zeroing_its_columns_of_the_output_projection(stream, backend):
    executable = tiny(heads, backend=backend)
    ablated = executable.patch(f"layers.1.{stream}", scale=np.array([[0.0], [1.0]]))
    weights = weights_of(executable)
    weights["layers.1.o"] = weights["layers.1.o"].copy()
    weights["layers.1.o"][:, 0] = 0.0
    options = {"backend": backend, "capacity": 64, "chunk": 16}
    without = sy.compile(executable.model.graph, weights, **options)
    np.testing.assert_allclose(ablated.score(TEXT), without.score(TEXT), rtol=1e-4, atol=1e-5)
    assert np.abs(executable.score(TEXT) - without.score(TEXT)).max() > 0.1


def test_a_head_of_a_real_model(shared):
    """The columns of ``o_proj`` that a head of a checkpoint writes through."""
    executable = sy.compile(sy.load(shared / "real" / "stories260K"), backend="numpy")
    name = "model.layers.1.self_attn.o_proj.weight"
    ids = executable.prompt_ids("Once upon a time, there was a little girl")
    mask = np.ones((4, 2, 1), np.float32)
    mask[1, 1] = 0.0  # the fourth of eight heads
    weights = dict(executable.model.weights)
    weights[name] = weights[name].copy()
    weights[name][:, 3 * 8 : 4 * 8] = 0.0
    without = sy.compile(executable.model.graph, weights, backend="numpy", capacity=64)
    ablated = executable.patch("layers.1.attn.probs", scale=mask)
    np.testing.assert_allclose(ablated.score(ids), without.score(ids), rtol=1e-4, atol=1e-4)
    assert np.abs(executable.score(ids) - without.score(ids)).max() > 0.01


def follows_its_definition(executable, name):
    """The readings of a trace, once they and the scored text are what the interpreter says."""
    readings = list(executable.tap(name).trace(TEXT, max_new_tokens=5))
    ids = [reading.token for reading in readings]
    expected = interpreted(executable, ids, [name, executable.model.graph.outputs["logits"].name])
    values = np.stack([reading.values[name] for reading in readings])
    np.testing.assert_allclose(values, expected.pop(name), rtol=2e-3, atol=2e-4)
    (logits,) = expected.values()
    np.testing.assert_allclose(executable.score(ids), logits, rtol=2e-3, atol=1e-3)
    return readings


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layers.0.x", lambda x: sy.tanh(x)),
        ("layers.0.k", lambda x: x * 0.5 + sy.delay(x, 1)),  # may read time
        ("layers.1.probs", lambda p: p * sy.where(sy.position() < 9, 1.0, 0.5)),
        ("embed", lambda x: sy.parameter("embedding", (V, D))[3] + x),  # may read weights
        ("token", lambda token: (token + 1) % V),
        ("layers.0.v", lambda x: sy.zeros((H, D))),  # a constant, of which there is still a history
        ("layers.*.x", lambda x: x + 1.0),
    ],
    ids=["layer", "delayed", "from position 9", "weight", "token", "constant", "all layers"],
)
def test_a_function_is_compiled_into_every_program(name, change):
    executable = tiny(heads)
    changed = executable.patch(name, change)
    readings = follows_its_definition(changed, "layers.1.x")
    ids = [reading.token for reading in readings]
    assert changed.generate(TEXT, max_new_tokens=5) == [r.step.token for r in readings if r.step]
    assert np.abs(executable.score(ids) - changed.score(ids)).max() > 0.01


def test_functions_in_xla():
    """Several patches at once, of the kinds above."""
    changed = tiny(heads, backend="xla")
    changed = changed.patch("token", lambda token: (token + 1) % V)
    changed = changed.patch("layers.0.k", lambda x: x * 0.5 + sy.delay(x, 1))
    changed = changed.patch("layers.1.probs", lambda p: p * sy.where(sy.position() < 9, 1.0, 0.5))
    changed = changed.patch("layers.1.v", lambda x: sy.zeros((H, D)) + 0.3)
    follows_its_definition(changed, "layers.1.x")


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_recurrence_carries_is_patched(backend):
    executable = tiny(recurrent, backend=backend)
    (_, carried), *_ = executable.model.graph.feedback
    halved = executable.patch(carried.name, scale=0.5)
    readings = list(halved.tap(carried.name, f"{carried.name}.before").trace(TEXT, max_new_tokens=4))
    w, before = weights_of(executable), np.zeros(D)
    for reading in readings:
        inner = np.tanh(w["embedding"][reading.token] + before @ w["recurrent"] * 0.2)
        np.testing.assert_allclose(reading.values[f"{carried.name}.before"], inner, rtol=1e-3, atol=1e-4)
        before = inner * 0.5
        np.testing.assert_allclose(reading.values[carried.name], before, rtol=1e-3, atol=1e-4)


def test_patches_compose_and_leave_the_executable_alone():
    executable = tiny(heads)
    before, names = executable.score(TEXT), set(executable.model.graph.by_name)
    twice = executable.patch("layers.0.x", scale=2.0).patch("layers.0.x", scale=3.0)
    (reading,) = twice.tap("layers.0.x*").trace(TEXT[:1], max_new_tokens=0)
    (plain,) = executable.tap("layers.0.x").trace(TEXT[:1], max_new_tokens=0)
    found = {name: value / plain.values["layers.0.x"] for name, value in reading.values.items()}
    for name, factor in (("layers.0.x", 6), ("layers.0.x.before", 1), ("layers.0.x.before.1", 2)):
        np.testing.assert_allclose(found[name], factor, rtol=1e-5)
    tapped = executable.tap("layers.0.x").patch("layers.0.x", scale=2.0)
    (reading,) = tapped.trace(TEXT[:1], max_new_tokens=0)
    np.testing.assert_allclose(reading.values["layers.0.x"], 2 * plain.values["layers.0.x"], rtol=1e-6)
    assert (executable.score(TEXT) == before).all()
    assert set(executable.model.graph.by_name) == names
    assert names <= set(twice.model.graph.by_name)  # a patch renames nothing


def test_another_number_needs_no_other_program():
    """The numbers of a patch are weights."""
    executable = tiny(heads)
    texts = {
        emit_stablehlo(executable.patch("layers.0.x", scale=s).programs.chunk(1).program) for s in (0.5, 2.0)
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "layers.0.y", "scale": 0.0}, "no node 'layers.0.y'; similar: layers.0.x"),
        ({"name": "layers.0.x", "add": np.zeros(3)}, r"patch of layers.0.x: .*\[3\]"),
        ({"name": "layers.0.x", "add": "loud"}, "must be numbers"),
        ({"name": "layers.0.x"}, "is one of: a value or function, add=…, scale=…"),
        ({"name": "layers.0.x", "add": 1.0, "scale": 2.0}, "is one of"),
        ({"name": "layers.0.x", "value": lambda x: x.reshape(2, 4)}, r"must be f32\[8\], not f32\[2,4\]"),
        ({"name": "layers.0.x", "value": lambda x: 3.0}, "must return a stream, not 3.0"),
        ({"name": "layers.0.x", "scale": lambda x: x}, "scale= of a patch must be numbers"),
        ({"name": "head", "value": lambda w: w * sy.position().cast("f32")}, "the same at every position"),
        ({"name": "embed", "value": lambda x: sy.parameter("other", (D,)) + x}, "the weight other, which"),
    ],
)
def test_a_mistake_in_a_patch_is_explained(arguments, message):
    with pytest.raises(sy.SystolicError, match=message):
        tiny(heads).patch(**arguments)


def test_a_patch_that_reads_the_future_is_refused():
    with pytest.raises(sy.SystolicError, match=r"future|whole"):
        tiny(heads).patch("embed", lambda x: sy.sum(sy.whole(x), axis=0)).generate(TEXT, max_new_tokens=1)


def test_the_logit_lens_ends_with_what_is_chosen():
    """Behind the last layer, the lens is the model's own head."""
    example = runpy.run_path(str(Path(sy.__file__).parent / "examples" / "logit_lens.py"))
    executable = sy.compile(sy.load(), backend="numpy")
    readings = executable.tap("layers.4.mlp.x").trace("ROMEO:", max_new_tokens=3, temperature=0.0, logprobs=1)
    for reading in readings:
        if reading.step is not None:
            chances = example["lens"](executable.model, reading.values["layers.4.mlp.x"])
            assert int(chances.argmax()) == reading.step.token
            assert np.log(chances.max()) == pytest.approx(reading.step.logprob, abs=1e-4)


def test_taps_of_a_model_without_a_cache():
    """Everything is recomputed from the tokens at each position, and is the same."""
    kept, recomputed = (
        list(tiny(hybrid, state=state).tap("softmax*").trace(TEXT, max_new_tokens=3))
        for state in ("auto", "tokens")
    )
    for one, other in zip(kept, recomputed, strict=True):
        for name, value in one.values.items():
            np.testing.assert_allclose(other.values[name], value, rtol=2e-3, atol=2e-4)


def test_a_compiled_directory_can_be_tapped_and_patched(tmp_path, shared):
    """Its programs are derived anew; the directory stays as it is."""
    model = sy.load(shared / "real" / "stories260K")
    options = options_for(model, capacity=32, chunk=16)
    write_compiled(model, options, tmp_path / "compiled")
    opened = open_compiled(tmp_path / "compiled", "numpy", {})
    patched = opened.patch("layers.1.attn.probs", scale=0.0)
    (reading,) = patched.tap("layers.1.attn.mixed").trace([1], max_new_tokens=0)
    assert not reading.values["layers.1.attn.mixed"].any()
    (reading,) = opened.tap("layers.1.attn.mixed").trace([1], max_new_tokens=0)
    assert reading.values["layers.1.attn.mixed"].any()


def test_an_output_is_patched():
    executable = tiny(heads)
    bias = np.arange(V, dtype=np.float32)
    biased = executable.patch(executable.model.graph.outputs["logits"].name, add=bias)
    np.testing.assert_allclose(biased.score(TEXT), executable.score(TEXT) + bias, rtol=1e-5, atol=1e-5)
    always = executable.patch(executable.model.graph.outputs["logits"].name, np.eye(V)[5])
    assert always.generate(TEXT, max_new_tokens=3) == [5, 5, 5]
