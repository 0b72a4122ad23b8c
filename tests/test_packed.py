"""Weights in fewer bytes: the same floats, bit for bit, and the same tokens on every backend."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_native import chunk_program, native, optimised, plain  # noqa: F401  (fixtures)

import systolic as sy
from systolic.ir.ops import OPS
from systolic.ir.ops.packing import pack_rows, packed_types
from systolic.models.compact import keep_compact
from systolic.models.load import COMPACT, load
from systolic.models.packed import PACKINGS
from systolic.models.precision import keep_weights_as

FLOATS = {"f32": np.float32, "bf16": ml_dtypes.bfloat16}


def packed_and_back(floats: np.ndarray, dtype: str) -> tuple[np.ndarray, int]:
    types = packed_types(*floats.shape, dtype)
    assert types is not None
    rows = np.zeros(types[0].static_shape, np.uint8)
    places = pack_rows(floats, rows)
    values = floats.reshape(-1)[places]
    return OPS["unpack"].numpy(rows, places.astype(np.int32), values), len(places)


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
def test_any_bits_come_back(dtype, data):
    word = {"f32": np.uint32, "bf16": np.uint16}[dtype]
    bits = data.draw(arrays.arrays(word, (3, 128)))
    floats = bits.view(FLOATS[dtype])
    found, _ = packed_and_back(floats, dtype)
    np.testing.assert_array_equal(found.astype(np.float32), floats.astype(np.float32))  # 0 is -0, NaN is NaN


@pytest.mark.parametrize(("dtype", "bits"), [("f32", 28), ("bf16", 12)])
def test_weights_of_one_size_have_places_and_few_bits(dtype, bits):
    weights = np.random.default_rng(0).normal(size=(256, 1024)).astype(FLOATS[dtype])
    weights[::3] *= FLOATS[dtype](1e-20)  # a row has a table of its own
    weights[:, ::5] = 0
    assert packed_and_back(weights, dtype)[1] < weights.size / 2000
    types = packed_types(*weights.shape, dtype)
    assert types is not None
    assert types[0].bytes == weights.size * bits // 8 + 16 * 256
    assert sum(t.bytes for t in types) < 1.03 * types[0].bytes + 64


def test_outliers_do_not_move_a_table():
    weights = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    weights[:, 17] *= 1e6
    found, outside = packed_and_back(weights, "f32")
    np.testing.assert_array_equal(found, weights)
    assert 64 <= outside < 100


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 3, 4, 8, 9, 40])
def test_kernels_read_them_as_they_are_kept(native, plain, dtype, rows):  # noqa: F811
    random = np.random.default_rng(2)
    weights = random.normal(size=(131, 320)).astype(FLOATS[dtype])
    weights[random.random(weights.shape) < 1 / 400] *= FLOATS[dtype](
        1e6
    )  # these matter most, and have no place
    graph = sy.trace(lambda x: sy.parameter("w", (131, 320)) @ x, x="f32[320]")
    if dtype != "f32":
        graph = keep_weights_as(graph, dtype)
    small, kept = keep_compact(graph, {"w": weights}, PACKINGS[f"{dtype}-packed"])
    assert kept is not None
    x = random.normal(size=(rows, 1, 320)).astype(np.float32)
    inputs = {"x": x, "offset": np.zeros(rows, np.int32), "length": np.ones(rows, np.int32)}

    def output(backend, graph, weights):
        prepared = backend.prepare(chunk_program(graph, rows=rows))
        assert (backend is plain) == ("custom_call" not in prepared.text)
        return np.asarray(prepared.run(dict(weights), inputs, {})[0]["output"])

    whole, packed = output(native, graph, {"w": weights}), output(native, small, kept)
    scale = np.abs(whole).max()
    np.testing.assert_allclose(packed, whole, rtol=0, atol=1e-5 * scale)
    # Kernels round many vectors to bf16 beside weights of bf16, XLA's products do not.
    tolerance = 1e-5 if dtype == "f32" or rows <= 8 else 1e-2
    np.testing.assert_allclose(output(plain, small, kept), whole, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("count", "width", "rows"),
    [
        (2, 64, 1),
        (7, 192, 2),
        (13, 192, 6),
        (5, 8256, 1),
        (5, 8256, 2),
        (5, 8256, 4),
    ],  # 8256: two side by side
)
def test_kernels_read_rows_of_any_length(native, plain, dtype, count, width, rows):  # noqa: F811
    random = np.random.default_rng(3)
    weights = random.normal(size=(count, width)).astype(FLOATS[dtype])
    graph = sy.trace(lambda x: sy.parameter("w", (count, width)) @ x, x=f"f32[{width}]")
    if dtype != "f32":
        graph = keep_weights_as(graph, dtype)
    small, kept = keep_compact(graph, {"w": weights}, PACKINGS[f"{dtype}-packed"])
    assert kept is not None
    x = random.normal(size=(rows, 1, width)).astype(np.float32)
    inputs = {"x": x, "offset": np.zeros(rows, np.int32), "length": np.ones(rows, np.int32)}
    found, expected = (
        np.asarray(backend.prepare(chunk_program(small, rows=rows)).run(dict(kept), inputs, {})[0]["output"])
        for backend in (native, plain)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("backend", ["numpy", "xla"])
@pytest.mark.parametrize("name", ["llama_gqa_llama3", "qwen2", "mistral_sliding"])
def test_models_say_the_same_as_with_whole_weights(shared, backend, name):
    replies = []
    for dtype in ("f32", "f32-packed"):
        model = load(shared / "oracle" / name, dtype=dtype)
        executable = sy.compile(model, backend=backend, capacity=48, chunk=16)
        replies.append(executable.generate([1, 5, 9, 2], max_new_tokens=24, ignore_eos=True))
        found = sum(node.name.endswith(".rows") for node in model.graph.parameters)
        assert found == (13 if dtype == "f32-packed" else 0)
    assert replies[0] == replies[1]


def test_bf16_is_packed_after_it_is_rounded(shared):
    folder = shared / "real" / "stories260K"
    replies = [
        sy.compile(load(folder, dtype=dtype), capacity=128).generate([1], max_new_tokens=100, ignore_eos=True)
        for dtype in ("bf16", "bf16-packed")
    ]
    assert replies[0] == replies[1]


def test_matrices_that_lie_turned_are_packed_along_what_is_summed():
    graph = sy.trace(lambda x: x @ sy.parameter("w", (128, 96)), x="f32[128]")
    weights = {"w": np.random.default_rng(0).normal(size=(128, 96)).astype(np.float32)}
    small, kept = keep_compact(graph, weights, PACKINGS["f32-packed"])
    assert kept is not None
    assert kept["w.rows"].shape == (96, 16 + 2 * 224)
    found = OPS["unpack"].numpy(kept["w.rows"], kept["w.places"], kept["w.values"])
    np.testing.assert_array_equal(found, weights["w"].T)
    assert {node.name for node in small.parameters} == set(kept)


def test_a_table_that_is_also_looked_up_is_kept_for_that():
    def model(token):
        table = sy.parameter("table", (96, 128))
        return table @ sy.take(table, token)

    graph, _ = keep_compact(sy.trace(model, token="i32[]"), None, PACKINGS["f32-packed"])
    assert {node.name for node in graph.parameters} == {
        "table",
        "table.rows",
        "table.values",
        "table.places",
    }


def test_what_has_odd_rows_stays():
    graph = sy.trace(lambda x: sy.parameter("w", (128, 100)) @ x, x="f32[100]")
    assert [node.name for node in keep_compact(graph, None, PACKINGS["f32-packed"])[0].parameters] == ["w"]


@pytest.mark.parametrize("kind", PACKINGS)
def test_weights_of_too_many_sizes_are_refused_by_name(kind):
    graph = sy.trace(lambda x: sy.parameter("odd", (64, 64)) @ x, x="f32[64]")
    dtype = COMPACT[kind].dtype
    spread = np.exp2(np.random.default_rng(0).uniform(-100, 100, (64, 64))).astype(FLOATS[dtype])
    graph = graph if dtype == "f32" else keep_weights_as(graph, dtype)
    _, kept = keep_compact(graph, {"odd": spread}, COMPACT[kind])
    assert kept is not None
    with pytest.raises(sy.SystolicError, match=f"^odd: more than one in 256 .*; keep weights as {dtype}$"):
        kept["odd.rows"]
