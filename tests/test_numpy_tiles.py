"""Loops over tiles: every schedule computes what the untiled program does, and says what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs_by_hand import (
    apply,
    attention_graph,
    compare,
    constant,
    expected,
    input_node,
    program_from,
    weight,
)

import systolic as sy
from systolic.backends import numpy_backend
from systolic.backends.numpy_source import emit_numpy, emit_scheduled
from systolic.compiler.cost.attention_schedule import choose_attention_schedule
from systolic.compiler.cost.program_schedule import (
    AttentionNest,
    MatmulNest,
    epilogue_of,
    layout_of,
    schedule_program,
    users_of,
)
from systolic.compiler.cost.schedule import fastest_schedules
from systolic.compiler.cost.targets import Arrays, Memory, Target, Vector
from systolic.ir.graph import Graph, Node

SIZE = st.integers(1, 14)


def small_target(room: int = 1500, bandwidth: float = 4e9) -> Target:
    arrays = Arrays(4, 4, clock_hz=1e9, overlapped=True, dataflows=("ws", "os", "is"))
    return Target("small", "", arrays, Memory(room, hbm_bytes_per_second=bandwidth), {}, Vector(1024))


def values_for(graph: Graph, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and inputs, random in 16 bits so that sums of products differ little with their order."""
    random = np.random.default_rng(seed)

    def value(node: Node) -> np.ndarray:
        shape, dtype = node.tensor.static_shape, node.tensor.dtype
        if dtype == "bool":
            return random.random(shape) < 0.7
        if dtype in ("i32", "i8"):
            return random.integers(-5, 5, shape).astype(np.int32 if dtype == "i32" else np.int8)
        return random.normal(size=shape).astype(np.float32)

    parameters = {node.name: value(node) for node in graph.parameters}
    return parameters, {node.name: value(node) for node in graph.inputs}


def run(source: str, parameters: dict, inputs: dict) -> dict[str, Any]:
    module: dict[str, Any] = {}
    exec(source, module)
    return module["run"](parameters, inputs, {})[0]


def agree(graph: Graph, *sources: str) -> None:
    """What the sources compute is what the untiled program does, and what the ops' definitions do."""
    parameters, inputs = values_for(graph)
    want = run(emit_numpy(program_from(graph)), parameters, inputs)
    compare((want, {}), expected(graph, parameters, inputs, {}))
    for source in sources:
        compare((run(source, parameters, inputs), {}), want)


def projection(rows: int, chunk: int, width: int, columns: int, form: str) -> Graph:
    """x · w with a bias, an activation and a residual, as a model writes them."""
    x = input_node("x", f"f32[{rows},{chunk},{width}]")
    residual = input_node("residual", f"f32[{rows},{chunk},{columns}]")
    w = weight("w", f"f32[{columns},{width}]" if form == "nd" else f"f32[{width},{columns}]")
    bias = weight("bias", f"f32[{columns}]")
    product = apply("contraction", x, w, subscripts=f"BCd,{form}->BCn", name="product")
    added = apply("add", product, bias, name="added")
    active = apply("multiply", added, apply("sigmoid", added, name="gate"), name="active")
    result = apply("add", residual, active, name="result")
    return Graph("projection", (x, residual), (w, bias), {"y": result})


@settings(max_examples=25, deadline=None)
@given(SIZE, SIZE, SIZE, SIZE, st.sampled_from(["nd", "dn"]), st.integers(100, 2000))
def test_every_schedule_computes_the_untiled_result(rows, chunk, width, columns, form, room):
    graph = projection(rows, chunk, width, columns, form)
    product = next(node for node in graph.nodes if node.name == "product")
    layout, users = layout_of(product, {product.sources[1]}), users_of(graph)
    found = fastest_schedules(*layout.shape, "f32", small_target(room), 10**6)
    sources = []
    for schedule in found[:: max(len(found) // 8, 1)]:
        follows = () if schedule.spills else epilogue_of(product, layout, graph.nodes, users)
        assert len(follows) == (0 if schedule.spills else 4)
        nest = MatmulNest((product,), layout, schedule, follows)
        sources.append(emit_scheduled(program_from(graph), (nest,)))
    agree(graph, *sources)


@settings(max_examples=20, deadline=None)
@given(
    st.permutations("bmkn"),
    st.permutations("bmkn"),
    st.tuples(*[st.integers(1, 9)] * 4),
    st.sampled_from(["f32", "bf16", "i8"]),
    st.integers(0, 3),
)
def test_operands_in_any_layout_with_a_batch(first, second, sizes, dtype, turn):
    """Axes in any order, also of the result; 16-bit operands are summed in 32 bits."""
    size = dict(zip("bmkn", sizes, strict=True))
    x, y = ("".join(c for c in order if c != without) for order, without in ((first, "n"), (second, "m")))
    result = "".join(c for c in first[turn:] + first[:turn] if c != "k")
    types = [f"{dtype}[{','.join(str(size[c]) for c in term)}]" for term in (x, y)]
    nodes = tuple(input_node(name, type_) for name, type_ in zip("xy", types, strict=True))
    product = apply("contraction", *nodes, subscripts=f"{x},{y}->{result}", name="product")
    graph = Graph("product", nodes, (), {"out": product})
    layout = layout_of(product, set())
    parameters, inputs = values_for(graph)
    if dtype == "bf16":
        inputs = {name: value.astype(nodes[0].tensor.dtype and _bfloat16()) for name, value in inputs.items()}
    want = run(emit_numpy(program_from(graph)), parameters, inputs)["out"].astype(np.float32)
    for schedule in fastest_schedules(*layout.shape, dtype, small_target(300), 6):
        source = emit_scheduled(program_from(graph), (MatmulNest((product,), layout, schedule),))
        got = run(source, parameters, inputs)["out"].astype(np.float32)
        np.testing.assert_allclose(got, want, rtol=1e-2 if dtype == "bf16" else 1e-5, atol=1e-5)


def _bfloat16():
    from ml_dtypes import bfloat16

    return bfloat16


def attention(rows: int, chunk: int, heads: int, group: int, width: int, past: int) -> Graph:
    """Scaled, bounded and masked scores of grouped queries over a past, and the mix of its values."""
    query = input_node("q", f"f32[{rows},{chunk},{heads},{group},{width}]")
    keys = input_node("k", f"f32[{rows},{heads},{past},{width}]")
    values = input_node("v", f"f32[{rows},{heads},{past},{width + 1}]")
    mask = input_node("mask", f"bool[{rows},{chunk},1,1,{past}]")
    slope = weight("slope", f"f32[{heads},1,1]")
    scores = apply("contraction", query, keys, subscripts="BChgd,Bhpd->BChgp", name="scores")
    scaled = apply(
        "multiply", apply("multiply", scores, constant(0.4), name="scores.less"), slope, name="scaled"
    )
    bounded = apply("tanh", scaled, name="bounded")
    visible = apply("where", mask, bounded, constant(-3.4e38), name="visible")
    probs = apply("softmax", visible, axis=4, name="probs")
    mixed = apply("contraction", probs, values, subscripts="BChgp,Bhpe->BChge", name="mixed")
    return Graph("attention", (query, keys, values, mask), (slope,), {"mixed": mixed})


@settings(max_examples=25, deadline=None)
@given(*[st.integers(1, 3)] * 4, st.integers(1, 5), st.integers(2, 40))
def test_attention_in_tiles_is_attention(rows, chunk, heads, group, width, past):
    graph = attention(rows, chunk, heads, group, width, past)
    nests = schedule_program(program_from(graph), small_target(900))
    sources = [emit_scheduled(program_from(graph), nests)]
    for nest in nests:
        if isinstance(nest, AttentionNest):
            assert nest.schedule.on_chip <= nest.schedule.room == 900
            for tile in ((1, 1), (chunk, 3), (1, past)):
                tiled = replace(nest, schedule=replace(nest.schedule, tile=tile))
                sources.append(emit_scheduled(program_from(graph), (tiled,)))
    agree(graph, *sources)


def test_attention_is_joined_where_its_scores_do_not_fit_and_apart_where_they_do():
    graph = attention(1, 16, 2, 2, 8, 64)
    tight, roomy = (
        schedule_program(program_from(graph), small_target(room, bandwidth=1e8)) for room in (4000, 10**7)
    )
    assert [type(nest) for nest in tight] == [AttentionNest]
    assert [type(nest) for nest in roomy] == [MatmulNest, MatmulNest]
    source = emit_numpy(program_from(graph), small_target(4000, bandwidth=1e8))
    assert "probs" not in source  # no probability has a name: none is kept
    assert "[1,16,2,2,64]" not in source  # and no array has the shape of all scores
    assert "# scores never leave the chip" in source


def test_probabilities_that_are_read_elsewhere_are_kept():
    graph = attention(1, 16, 2, 2, 8, 64)
    probs = graph.outputs["mixed"].sources[0]
    shown = Graph("attention", graph.inputs, graph.parameters, {**graph.outputs, "probs": probs})
    nests = schedule_program(program_from(shown), small_target(4000, bandwidth=1e8))
    assert [type(nest) for nest in nests] == [MatmulNest, MatmulNest]
    agree(shown, emit_scheduled(program_from(shown), nests))


def test_larger_tiles_of_queries_read_keys_less_often():
    passes = [
        choose_attention_schedule(4, 64, 1, 512, 16, 16, "f32", small_target(room, bandwidth=1e8)).passes
        for room in (2_000, 10_000, 100_000)
    ]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > passes[-1] == 1


def test_an_epilogue_ends_before_a_value_that_others_read():
    graph = projection(2, 6, 12, 10, "nd")
    added = next(node for node in graph.nodes if node.name == "added")
    for outputs, names in (
        (graph.outputs, ["added", "gate", "active", "result"]),
        ({**graph.outputs, "shown": added}, ["added"]),
    ):
        shown = Graph("projection", graph.inputs, graph.parameters, outputs)
        (nest,) = schedule_program(program_from(shown), small_target(400))
        assert [node.name for node in nest.epilogue] == names
        agree(shown, emit_scheduled(program_from(shown), (nest,)))


def two_products(same: bool) -> Graph:
    """Two projections, of one vector or of two."""
    x, y = input_node("x", "f32[2,3,16]"), input_node("y", "f32[2,3,16]")
    first, second = weight("first", "f32[10,16]"), weight("second", "f32[6,16]")
    a = apply("contraction", x, first, subscripts="BCd,nd->BCn", name="a")
    b = apply("contraction", x if same else y, second, subscripts="BCd,nd->BCn", name="b")
    return Graph("two", (x, y), (first, second), {"a": a, "b": b})


def test_weights_of_one_vector_are_laid_side_by_side():
    memory_bound = small_target(600, bandwidth=1e8)
    merged, apart = (two_products(same) for same in (True, False))
    (nest,) = schedule_program(program_from(merged), memory_bound)
    assert [node.name for node in nest.products] == ["a", "b"]
    assert "np.concatenate((first.T, second.T), axis=1)" in emit_numpy(program_from(merged), memory_bound)
    agree(merged, emit_scheduled(program_from(merged), (nest,)))
    assert len(schedule_program(program_from(apart), memory_bound)) == 2


def test_what_fits_whole_is_not_looped_over():
    shape, target = (6, 16, 10), small_target(10**6)
    whole = [s for s in fastest_schedules(*shape, "f32", target, 10**6) if not list(s.loops)]
    graph = two_products(False)
    product = graph.outputs["a"]
    nest = MatmulNest((product,), layout_of(product, set(graph.parameters)), whole[0])
    source = emit_scheduled(program_from(graph), (nest,))
    assert "for " not in source.partition("def run")[2]
    assert f"[6, 16] · [16, 10]: one tile; {whole[0].dataflow}, " in source
    agree(graph, source)


def test_a_tiled_module_reads_like_its_schedule(golden):
    graph = attention_graph(rows=1)
    golden("numpy_tiles", emit_numpy(program_from(graph), small_target(150)).rstrip("\n"))


@pytest.fixture
def emitted(monkeypatch) -> list[str]:
    """The source of every program that is prepared."""
    sources: list[str] = []

    def record(program, target=None):
        sources.append(emit_numpy(program, target))
        return sources[-1]

    monkeypatch.setattr(numpy_backend, "emit_numpy", record)
    return sources


SMALL = """
name = "small"
[arrays]
rows = 8
columns = 8
clock_hz = 1e9
overlapped = true
dataflows = ["ws", "os", "is"]
[memory]
on_chip_bytes = 6000
hbm_bytes_per_second = 4e9
[vector]
lanes = 8
"""


@pytest.mark.parametrize(
    "name",
    [
        *("gpt2", "llama_gqa_llama3", "mistral_sliding", "gemma2", "deepseek_v3", "mixtral", "qwen3"),
        *("mamba", "lstm_lm", "wavenet_lm"),
    ],
)
def test_recorded_models_in_tiles_say_the_same(shared, tmp_path, emitted, name):
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    folder = shared / "oracle" / name
    recorded = np.load(folder / "oracle.npz")
    exe = sy.compile(sy.load(str(folder)), backend=f"numpy:{file}", capacity=64, chunk=16)
    got = exe.generate(recorded["ids_1"].tolist(), max_new_tokens=24, temperature=0, ignore_eos=True)
    assert got == recorded["greedy_1"].tolist()
    text = "\n".join(emitted)
    assert "    for n in range(0, " in text
    assert ("# attention, " in text) == (name not in ("mamba", "lstm_lm", "wavenet_lm"))


def test_a_real_model_in_tiles_tells_the_same_story(shared, tmp_path, emitted):
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    folder = shared / "real" / "stories260K"
    tiled, plain = (
        sy.compile(sy.load(str(folder)), backend=backend, capacity=128, chunk=32)
        for backend in (f"numpy:{file}", "numpy")
    )
    prompt = "Once upon a time"
    told = "".join(tiled.stream(prompt, max_new_tokens=40, temperature=0))
    text = "\n".join(emitted)
    assert told == "".join(plain.stream(prompt, max_new_tokens=40, temperature=0))
    assert text.count("# attention, ") >= 2 * 5
    assert text.count("np.concatenate((model_layers_0_self_attn_q_proj_weight") >= 1


def test_the_command_prints_the_loops_of_a_target(cli, shared):
    folder = shared / "real" / "stories260K"
    status, out, _ = cli("graph", folder, "--stage", "numpy", "--target", "gemmini-16", "--capacity", 64)
    assert status == 0
    assert "Emitted by systolic, tiled for gemmini-16." in out
    assert "# limited by main memory (" in out
    status, _, err = cli("graph", folder, "--stage", "numpy", "--target", "nowhere")
    assert (status, "target 'nowhere' is not known" in err) == (2, True)


def test_a_target_without_arrays_is_refused(cli, tmp_path):
    file = tmp_path / "plain.toml"
    file.write_text('name = "plain"\n[memory]\non_chip_bytes = 0\n[peak]\nf32 = 1e9\n')
    config = {
        "model_type": "gpt2",
        "vocab_size": 11,
        "n_positions": 16,
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, _, err = cli("graph", tmp_path / "config.json", "--stage", "numpy", "--target", file)
    assert (status, "target plain has no arrays to tile for" in err.replace("\n", " ")) == (2, True)
