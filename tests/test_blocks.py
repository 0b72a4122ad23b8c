"""The shared parts of models against formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

import systolic as sy
from systolic.ir.interpret import interpret
from systolic.models import blocks
from systolic.models.length import with_text_length
from systolic.models.positions import UNLIMITED, learned_positions, sinusoidal_positions
from systolic.models.rope import SCALINGS, NtkRope, RopeFields, rotate, rotation
from systolic.models.spec import Config

RANDOM = np.random.default_rng(7)
T, WIDTH = 6, 8


def run(function, *, x=None, parameters=None, length=T):
    """The output of ``function`` over a sequence of vectors ``x`` [T, …], one row per position."""
    x = RANDOM.normal(size=(length, 1)).astype(np.float32) if x is None else x
    declared = f"f32[{','.join(map(str, x.shape[1:]))}]"
    graph = sy.trace(lambda x: function(x), x=declared)
    return next(iter(interpret(graph, {"x": x}, parameters or {}).values()))


def vectors(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


# ---- layers ----


@pytest.mark.parametrize("axes", ["nd", "dn"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_contracts_the_weight_as_it_is_stored(axes, bias):
    x, weight, shift = vectors(T, WIDTH), vectors(3, WIDTH), vectors(3)
    stored = {"a.weight": weight if axes == "nd" else weight.T, "a.bias": shift}
    got = run(lambda x: blocks.linear(x, "a", 3, bias=bias, axes=axes), x=x, parameters=stored)
    np.testing.assert_allclose(got, x @ weight.T + (shift if bias else 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(offset):
    x, weight = vectors(T, WIDTH), vectors(WIDTH)
    got = run(lambda x: blocks.rms_norm(x, "n", 0.1, offset=offset), x=x, parameters={"n.weight": weight})
    want = x / np.sqrt((x.astype(float) ** 2).mean(-1, keepdims=True) + 0.1) * (weight + offset)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(bias):
    x, weight, shift = vectors(T, WIDTH), vectors(WIDTH), vectors(WIDTH)
    got = run(
        lambda x: blocks.layer_norm(x, "n", 0.1, bias=bias),
        x=x,
        parameters={"n.weight": weight, "n.bias": shift},
    )
    exact = x.astype(float)
    normal = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(got, normal * weight + (shift if bias else 0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(blocks.ACTIVATIONS))
def test_activations(name):
    x = np.linspace(-12, 12, 49, dtype=np.float32).reshape(-1, 1)
    exact = x.astype(float)
    erf = np.vectorize(math.erf)
    sigmoid = 1 / (1 + np.exp(-exact))
    normal = 0.5 * (1 + erf(exact / math.sqrt(2)))
    tanh_form = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (exact + 0.044715 * exact**3)))
    want = {
        "silu": exact * sigmoid,
        "swish": exact * sigmoid,
        "gelu": exact * normal,
        "gelu_python": exact * normal,
        "gelu_new": exact * tanh_form,
        "gelu_fast": exact * tanh_form,
        "gelu_10": np.clip(exact * normal, -10, 10),
        "gelu_accurate": exact * tanh_form,
        "gelu_python_tanh": exact * tanh_form,
        "gelu_pytorch_tanh": exact * tanh_form,
        "hardswish": exact * np.clip(exact + 3, 0, 6) / 6,
        "laplace": 0.5 * (1 + erf((exact - 0.707107) / (0.282095 * math.sqrt(2)))),
        "leaky_relu": np.where(exact < 0, 0.01 * exact, exact),
        "linear": exact,
        "mish": exact * np.tanh(np.log1p(np.exp(exact))),
        "quick_gelu": exact / (1 + np.exp(-1.702 * exact)),
        "relu": np.maximum(exact, 0),
        "relu2": np.maximum(exact, 0) ** 2,
        "relu6": np.clip(exact, 0, 6),
        "sigmoid": sigmoid,
        "tanh": np.tanh(exact),
    }[name]
    np.testing.assert_allclose(run(blocks.activation(name), x=x), want, rtol=1e-5, atol=2e-6)


def test_an_unknown_activation_is_named():
    with pytest.raises(sy.SystolicError, match=r"'gleu' is unknown; known: silu"):
        blocks.activation("gleu")


def test_mlp_and_gated_mlp():
    x, up, down, gate = vectors(T, WIDTH), vectors(5, WIDTH), vectors(WIDTH, 5), vectors(5, WIDTH)
    plain = run(
        lambda x: blocks.mlp(x, "up", "down", 5, "relu", bias=False),
        x=x,
        parameters={"up.weight": up, "down.weight": down},
    )
    np.testing.assert_allclose(plain, np.maximum(x @ up.T, 0) @ down.T, rtol=1e-4, atol=1e-5)
    gated = run(
        lambda x: blocks.gated_mlp(x, "m", 5, "relu"),
        x=x,
        parameters={"m.up_proj.weight": up, "m.down_proj.weight": down, "m.gate_proj.weight": gate},
    )
    want = (np.maximum(x @ gate.T, 0) * (x @ up.T)) @ down.T
    np.testing.assert_allclose(gated, want, rtol=1e-4, atol=1e-5)


# ---- attention ----


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("slope", [None, 0.25])
def test_attention_is_masked_attention(window, softcap, slope):
    keys, group, size = 2, 3, 4
    qkv = vectors(T, keys * group * size + 2 * keys * size)

    def step(x):
        q, k, v = sy.split(x, [keys * group * size, keys * size, keys * size])
        q, k, v = q.reshape(keys, group, size), k.reshape(keys, size), v.reshape(keys, size)
        bias = None
        if slope is not None:
            bias = (sy.history(sy.position(), window) - sy.position()).cast("f32") * slope
        return blocks.attention(q, k, v, scale=0.7, window=window, softcap=softcap, bias=bias)

    got = run(step, x=qkv)
    q, k, v = np.split(qkv.astype(float), [keys * group * size, keys * (group + 1) * size], axis=1)
    q, k, v = q.reshape(T, keys, group, size), k.reshape(T, keys, size), v.reshape(T, keys, size)
    scores = np.einsum("thgd,phd->thgp", q, k) * 0.7
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    distance = np.arange(T)[None, :] - np.arange(T)[:, None]
    scores = scores + (slope or 0) * distance[:, None, None, :]
    hidden = (distance > 0) | (distance <= -(window or T + 1))
    scores = np.where(hidden[:, None, None, :], -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = np.einsum("thgp,phd->thgd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# ---- positions ----


def test_learned_positions_start_at_the_offset():
    table = vectors(T + 2, WIDTH)
    got = run(lambda x: learned_positions("p", T + 2, WIDTH, offset=2), parameters={"p.weight": table})
    np.testing.assert_array_equal(got, table[2:])


def test_sinusoidal_positions():
    got = run(lambda x: sinusoidal_positions(WIDTH))
    for t in range(T):
        for i in range(WIDTH // 2):
            angle = t / 10000 ** (2 * i / WIDTH)
            assert got[t, i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert got[t, WIDTH // 2 + i] == pytest.approx(math.cos(angle), abs=1e-6)


# ---- rotary positions ----

WIDE, LIMIT, ORIGINAL, THETA = 16, 12, 6, 100.0


def angles_of(length=20, head_size=WIDE, **settings):
    """cos and sin [T, width / 2] for a rope whose settings are given in the 5.x layout."""
    return cos_sin_of(fields_of(**settings).rope(), length, head_size)


def cos_sin_of(rope, length=20, head_size=WIDE):
    both = run(lambda x: sy.stack(rotation(rope, head_size)), length=length)
    return both[:, 0], both[:, 1]


def fields_of(**settings):
    return Config("config.json", settings_of(**settings)).read(RopeFields)


def settings_of(**settings):
    return {"max_position_embeddings": LIMIT, "rope_parameters": {"rope_theta": THETA, **settings}}


def expect(cos_sin, frequency, magnitude=1.0, length=20, width=WIDE):
    """``frequency(t, i)`` is what the pair i must turn by per position, seen from position t."""
    for t in range(length):
        for i in range(width // 2):
            angle = t * frequency(t, i)
            assert cos_sin[0][t, i] == pytest.approx(math.cos(angle) * magnitude, abs=1e-5)
            assert cos_sin[1][t, i] == pytest.approx(math.sin(angle) * magnitude, abs=1e-5)


def plain(i, theta=THETA, width=WIDE):
    return theta ** (-2 * i / width)


def test_default_and_linear_rope():
    expect(angles_of(rope_type="default"), lambda t, i: plain(i))
    expect(angles_of(rope_type="linear", factor=3.0), lambda t, i: plain(i) / 3)


def test_partial_rope_turns_the_first_part_only():
    expect(
        angles_of(rope_type="default", partial_rotary_factor=0.5),
        lambda t, i: plain(i, width=WIDE // 2),
        width=WIDE // 2,
    )


def test_a_width_that_is_odd_is_rounded_up_to_pairs():
    got = angles_of(rope_type="default", partial_rotary_factor=0.2)
    expect(got, lambda t, i: plain(i, width=3), width=4)


def test_proportional_rope_lets_the_last_pairs_stand_still():
    got = angles_of(rope_type="proportional", partial_rotary_factor=0.4, factor=2.0)
    expect(got, lambda t, i: plain(i) / 2 if i < 3 else 0.0)


def test_ntk_rope_stretches_its_base():
    rope = NtkRope(rope_theta=THETA, alpha=50.0)
    expect(cos_sin_of(rope), lambda t, i: plain(i, theta=THETA * 50 ** (WIDE / (WIDE - 2))))


@pytest.mark.parametrize("length", [LIMIT - 4, LIMIT, 20])
def test_dynamic_rope_grows_its_base_with_the_length_of_the_text(length):
    def frequency(t, i):
        base = THETA * (2.5 * max(length, LIMIT) / LIMIT - 1.5) ** (WIDE / (WIDE - 2))
        return base ** (-2 * i / WIDE)

    expect(angles_of(rope_type="dynamic", factor=2.5, length=length), frequency, length=length)


def test_llama3_rope_has_three_bands():
    factor, low, high, original, kinds = 4.0, 1.0, 4.0, 64, set()

    def frequency(t, i):
        wavelength = 2 * math.pi / plain(i)
        if wavelength < original / high:
            kinds.add("kept")
            return plain(i)
        if wavelength > original / low:
            kinds.add("divided")
            return plain(i) / factor
        kinds.add("blended")
        smooth = (original / wavelength - low) / (high - low)
        return (1 - smooth) * plain(i) / factor + smooth * plain(i)

    got = angles_of(
        rope_type="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )
    expect(got, frequency)
    assert kinds == {"kept", "divided", "blended"}


@pytest.mark.parametrize("original", [64, 10**5])  # the second is clamped at both ends
@pytest.mark.parametrize(
    ("extra", "magnitude"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 2.0, "mscale_all_dim": 0.5}, (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
        ({"truncate": False}, 0.1 * math.log(4) + 1),
        ({"beta_fast": 8, "beta_slow": 2}, 0.1 * math.log(4) + 1),
        ({"beta_fast": 4096, "beta_slow": 0.5}, 0.1 * math.log(4) + 1),
    ],
)
def test_yarn_rope(extra, magnitude, original):
    def dimension(turns):
        return WIDE * math.log(original / (2 * math.pi * turns)) / (2 * math.log(THETA))

    low, high = dimension(extra.get("beta_fast", 32)), dimension(extra.get("beta_slow", 1))
    if extra.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, WIDE - 1)

    def frequency(t, i):
        ramp = min(max((i - low) / (high - low), 0), 1)
        return plain(i) * (1 - ramp) + plain(i) / 4 * ramp

    got = angles_of(rope_type="yarn", factor=4.0, original_max_position_embeddings=original, **extra)
    expect(got, frequency, magnitude)


@pytest.mark.parametrize("length", [ORIGINAL, ORIGINAL + 1])
@pytest.mark.parametrize("factor", [None, 2.0, 5.0])
def test_longrope_has_other_divisors_for_texts_beyond_the_original_context(factor, length):
    short, long = [1.0 + 0.1 * i for i in range(WIDE // 2)], [3.0 + i for i in range(WIDE // 2)]
    settings = {"factor": factor} if factor else {}
    got = angles_of(
        rope_type="longrope",
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=ORIGINAL,
        length=length,
        **settings,
    )
    magnitude = math.sqrt(1 + math.log(factor or LIMIT / ORIGINAL) / math.log(ORIGINAL))
    divisors = short if length == ORIGINAL else long
    expect(got, lambda t, i: plain(i) / divisors[i], magnitude, length=length)


def test_which_texts_turn_alike():
    divisors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    long = fields_of(rope_type="longrope", original_max_position_embeddings=ORIGINAL, **divisors)
    dynamic, plain = fields_of(rope_type="dynamic", factor=2.0), fields_of(rope_type="default")
    lengths = [1, ORIGINAL, ORIGINAL + 1, LIMIT, LIMIT + 1, LIMIT + 2]
    assert [long.shortest_like(n) for n in lengths] == [1, 1] + [ORIGINAL + 1] * 4
    assert [dynamic.shortest_like(n) for n in lengths] == [1, 1, 1, 1, LIMIT + 1, LIMIT + 2]
    assert [plain.shortest_like(n) for n in lengths] == [1] * 6
    assert [fields.context_length for fields in (long, plain, dynamic)] == [LIMIT, LIMIT, UNLIMITED]


def test_a_graph_for_texts_of_one_length_does_not_ask_for_it():
    rope = fields_of(rope_type="dynamic", factor=2.5).rope()
    graph = sy.trace(lambda x: sy.stack(rotation(rope, WIDE)), x="f32[1]")
    x = {"x": np.zeros((20, 1), np.float32)}
    settled = with_text_length(graph, 20)
    assert "text" in graph.clocks
    assert "text" not in settled.clocks
    np.testing.assert_array_equal(interpret(settled, x, {})["output"], interpret(graph, x, {})["output"])
    shorter = interpret(with_text_length(graph, LIMIT), x, {})["output"]
    assert not np.allclose(shorter, interpret(graph, x, {})["output"])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_turns_pairs_and_passes_the_rest(interleaved):
    x = vectors(T, 2, 12)  # two heads of 12, of which 8 turn
    rope = SCALINGS["default"](rope_theta=THETA, partial_rotary_factor=8 / 12)
    got = run(lambda x: rotate(x, rotation(rope, 12), interleaved=interleaved), x=x)
    for t in range(T):
        for i in range(4):
            first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + 4)
            turn = np.exp(1j * t * plain(i, width=8))
            want = (x[t, :, first] + 1j * x[t, :, second]) * turn
            np.testing.assert_allclose(got[t, :, first] + 1j * got[t, :, second], want, atol=1e-5)
    np.testing.assert_array_equal(got[:, :, 8:], x[:, :, 8:])


def test_old_and_new_layouts_of_rope_settings_agree():
    scaling = {"factor": 3.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0}
    new = settings_of(rope_type="llama3", original_max_position_embeddings=32, **scaling)
    old = {
        "max_position_embeddings": LIMIT,
        "rope_theta": THETA,
        "rope_scaling": {"type": "llama3", **scaling},
        "original_max_position_embeddings": 32,
    }
    read = [Config("config.json", layout).read(RopeFields).rope() for layout in (new, old)]
    assert read[0] == read[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rope_type": "mrope"},
            r"config\.json: rope_parameters: rope_type 'mrope' is unknown; known: default",
        ),
        ({"rope_type": "linear"}, "rope_parameters: factor is missing"),
        ({"rope_type": "linear", "factor": "2"}, 'rope_parameters: factor must be a number, not "2"'),
        ({"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}, "rope_parameters: mrope_section"),
        ({"rope_type": "default", "partial_rotary_factor": 0.05}, "need pairs of elements, not 0 of 16"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}, "must hold 8 numbers"),
        ({"rope_type": "longrope", "short_factor": 1.0, "long_factor": [1.0]}, "must be a list of numbers"),
        (
            {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 3},
            "max_position_embeddings",
        ),
    ],
)
def test_rope_settings_that_make_no_sense(settings, message):
    with pytest.raises(sy.SystolicError, match=message):
        angles_of(**settings)
