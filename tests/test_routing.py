"""Mixtures of experts: the pass that routes, and programs that compute what the dense formula says."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs_by_hand import apply, input_node, program_from

import systolic as sy
from systolic.backends.numpy_source import emit_numpy
from systolic.backends.xla import XlaBackend
from systolic.compiler.derive import choose_states, derive_chunk, derive_score
from systolic.compiler.passes.route import route
from systolic.compiler.pipeline import run_passes
from systolic.ir.dumps.text import print_graph
from systolic.ir.evaluate import evaluate
from systolic.ir.graph import Graph
from systolic.ir.interpret import interpret
from systolic.ir.types import DTYPES, TensorType, dtype_name
from systolic.models.experts import routed_mlp, router_logits, softmax_routing
from systolic.models.precision import keep_weights_as

pytestmark = pytest.mark.optimised

WIDTH, HIDDEN = 6, 5


def mixture(experts: int, k: int, width: int = WIDTH, hidden: int = HIDDEN, dtype: str = "f32") -> Graph:
    """One layer: f32[width] through the best ``k`` of ``experts`` gated MLPs, as it is compiled.

    ``dtype`` is how the weights are kept.
    """

    def step(x):
        routing = softmax_routing(router_logits(x, "gate", experts), k, normalise=False)
        return routed_mlp(x, "experts", routing, experts=experts, width=hidden, act="silu")

    return run_passes(keep_weights_as(sy.trace(step, x=f"f32[{width}]"), dtype))[-1].graph


def weights_of(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {n.name: random.normal(size=n.tensor.static_shape).astype(np.float32) for n in graph.parameters}


def dense(x: np.ndarray, weights: dict[str, np.ndarray], k: int) -> np.ndarray:
    """What every expert says of each row of x, weighted; those that are not chosen by zero."""
    logits = x.astype(np.float64) @ weights["gate.weight"].T
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    shares = np.where((best[..., None] == np.arange(scores.shape[-1])).any(-2), scores, 0.0)
    gate, up, down = (weights[f"experts.*.{name}_proj.weight"] for name in ("gate", "up", "down"))
    gated = np.einsum("...d,efd->...ef", x, gate)
    hidden = gated / (1 + np.exp(-gated)) * np.einsum("...d,efd->...ef", x, up)
    return np.einsum("...e,edf,...ef->...d", shares, down, hidden)


def program_inputs(x: np.ndarray, lengths: list[int]) -> dict[str, np.ndarray]:
    return {"x": x, "offset": np.zeros(len(x), np.int32), "length": np.array(lengths, np.int32)}


# ---- the pass ----


def take_and_multiply(token):
    stack = sy.parameter("experts", (4, 3, 2))
    _, chosen = sy.top_k(sy.take(sy.parameter("scores", (9, 4)), token), 2)
    return sy.einsum("d,knd->kn", sy.take(sy.parameter("embedding", (9, 2)), token), sy.take(stack, chosen))


def test_route(golden):
    graph = sy.trace(take_and_multiply)
    before, after = (print_graph(g, locations=False) for g in (graph, route(graph)))
    golden("route", f"{before}\n\n→\n\n{after}")


@pytest.mark.parametrize(
    ("subscripts", "x", "routed"),
    [
        ("d,knd->kn", (2,), True),
        ("kd,knd->kn", (2, 2), True),
        ("e,ked->kd", (3,), True),  # stored the other way
        ("d,knd->n", (2,), False),  # summed over the choices
        ("d,knd->nk", (2,), False),
        ("td,knd->ktn", (5, 2), False),  # several rows for each choice
        ("nd,knd->k", (3, 2), False),
    ],
)
def test_which_contractions_are_routed(subscripts, x, routed):
    def model(token):
        taken = sy.take(sy.parameter("experts", (4, 3, 2)), sy.take(sy.parameter("i", (9, 2), "i32"), token))
        vector = sy.take(sy.parameter("x", (9, *x)), token)
        return sy.einsum(subscripts, vector, taken)

    graph = sy.trace(model)
    ops = [node.op.name for node in route(graph)]
    assert ("routed_contraction" in ops, "contraction" in ops) == (routed, not routed)
    values = {"token": np.array([3, 1, 8], np.int32)}
    weights = weights_of(graph) | {"i": np.random.default_rng(0).integers(-3, 9, (9, 2)).astype(np.int32)}
    want = interpret(graph, values, weights)["output"]
    got = interpret(route(graph), values, weights)["output"]  # indices outside are moved inside, as by take
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_what_is_not_a_parameter_or_always_the_same_is_not_routed():
    def model(x):
        fixed = sy.take(sy.parameter("experts", (4, 3, 2)), np.array([1, 2], np.int32))
        made = sy.take(x.reshape(1, 1, 2) * sy.parameter("made", (4, 3, 2)), sy.position() % 4)
        return sy.einsum("d,knd->n", x, fixed) + sy.einsum("d,nd->n", x, made)

    graph = sy.trace(model, x="f32[2]")
    assert "routed_contraction" not in {node.op.name for node in route(graph)}


def test_narrow_weights_are_routed_as_they_are_kept():
    def model(x):
        stack = sy.parameter("experts", (4, 3, 2), "bf16").cast("f32")
        return sy.einsum("d,nd->n", x, sy.take(stack, sy.argmax(sy.parameter("gate", (4, 2)) @ x)))

    graph = route(sy.trace(model, x="f32[2]"))
    (node,) = (node for node in graph if node.op.name == "routed_contraction")
    assert [source.type.dtype for source in node.sources] == ["f32", "bf16", "i32"]
    assert "cast" not in {node.op.name for node in graph}


def test_the_work_is_that_of_the_chosen_experts():
    (node, *_) = (n for n in mixture(experts=16, k=3) if n.op.name == "routed_contraction")
    work = node.op.work(tuple(source.tensor for source in node.sources), node.type, node.params)
    assert work.multiply_adds == 3 * WIDTH * HIDDEN


# ---- programs ----


@settings(max_examples=40, deadline=None)
@given(
    experts=st.integers(1, 9),
    share=st.integers(1, 9),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    ties=st.booleans(),
    seed=st.integers(0, 99),
)
def test_programs_say_what_the_dense_formula_says(experts, share, lengths, ties, seed):
    k = min(share, experts)
    graph = mixture(experts, k)
    weights = weights_of(graph, seed)
    if ties:
        weights["gate.weight"][:] = weights["gate.weight"][0]  # every expert is as good as the others
    x = np.random.default_rng(seed).normal(size=(len(lengths), 12, WIDTH)).astype(np.float32)
    program = derive_chunk(
        graph, choose_states(graph), rows=len(lengths), chunk=12, capacity=12, last=False
    ).graph
    got = evaluate(program, {**weights, **program_inputs(x, lengths)})["output"]
    want = dense(x, weights, k)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(got[row, :length], want[row, :length], rtol=1e-4, atol=1e-4)
        assert not got[row, length:].any()  # padding is sent nowhere


def test_what_padding_holds_changes_nothing():
    graph = mixture(experts=4, k=2)
    x = np.random.default_rng(1).normal(size=(2, 9, WIDTH)).astype(np.float32)
    program = derive_chunk(graph, choose_states(graph), rows=2, chunk=9, capacity=9, last=False).graph
    results = []
    for filler in (0.0, 1e6):
        x[0, 4:], x[1, 7:] = filler, -filler
        results.append(evaluate(program, {**weights_of(graph), **program_inputs(x, [4, 7])})["output"])
    np.testing.assert_array_equal(*results)


@pytest.mark.usefixtures("quick_xla")
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (3, 3), (5, 2)])
def test_long_and_short_chunks_agree_on_xla(tmp_path, experts, k, native):
    graph = mixture(experts, k)
    weights, backend = weights_of(graph), XlaBackend("cpu", tmp_path, native=native)
    x = np.random.default_rng(2).normal(size=(2, 40, WIDTH)).astype(np.float32)
    for size, lengths in ((40, [33, 40]), (1, [1, 0])):
        program = derive_chunk(graph, choose_states(graph), rows=2, chunk=size, capacity=40, last=False)
        results, _ = backend.prepare(program).run(weights, program_inputs(x[:, :size], lengths), {})
        got, want = backend.fetch(results["output"]), dense(x, weights, k)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(got[row, :length], want[row, :length], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("quick_xla")
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("axes", ["nd", "dn"])
@pytest.mark.parametrize(("rows", "own"), [(1, False), (3, True), (50, False)])
def test_a_kernel_multiplies_with_the_chosen_matrices(tmp_path, dtype, axes, rows, own):
    """One row beside several matrices, rows of each choice, and many rows for each matrix; some for none."""
    random, (d, n, matrices, k) = np.random.default_rng(0), (70, 45, 5, 2)
    values = {
        "x": random.normal(size=(rows, k, d) if own else (rows, d)).astype(np.float32),
        "w": random.normal(size=(matrices, *((n, d) if axes == "nd" else (d, n)))).astype(DTYPES[dtype]),
        "index": random.integers(-1, matrices + 1, (rows, k)).astype(np.int32),
    }
    nodes = [
        input_node(name, TensorType(array.shape, dtype_name(array.dtype))) for name, array in values.items()
    ]
    graph = Graph("routed", tuple(nodes), (), {"y": apply("routed_contraction", *nodes, axes=axes)})
    backend = XlaBackend("cpu", tmp_path)
    prepared = backend.prepare(program_from(graph))
    assert ("@systolic_route_" in prepared.text) == (backend.kernels is not None)
    got = backend.fetch(prepared.run({}, values, {})[0]["y"])
    np.testing.assert_allclose(got, evaluate(graph, values)["y"], rtol=1e-5, atol=1e-4)


# ---- what it costs ----


def largest_array(text: str) -> int:
    """Elements of the largest array of floats that an operation of optimised HLO makes, arguments aside."""
    made = re.findall(r"%\S+ = f32\[([\d,]+)\]\S* (?!parameter|get-tuple-element)", text)
    return max(int(np.prod([int(size) for size in shape.split(",")])) for shape in made)


@pytest.mark.parametrize("chunk", [1, 64])
def test_xla_copies_neither_all_experts_nor_one_for_each_position(tmp_path, chunk):
    experts, k, width, hidden = 32, 4, 64, 96
    graph = mixture(experts, k, width, hidden)
    program = derive_chunk(graph, choose_states(graph), rows=1, chunk=chunk, capacity=64, last=False)
    text = XlaBackend("cpu", tmp_path, native=False).prepare(program).optimized_text
    activations = 2 * (chunk * k + 128) * hidden
    assert largest_array(text) <= max(width * hidden, activations) < experts * width * hidden
    assert text.count(" sort(") <= 2  # the order of a layer is found once for its three products


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(("chunk", "copied"), [(1, 0), (16, 1)])
def test_matrices_are_read_one_at_a_time_and_in_place_while_decoding(tmp_path, dtype, chunk, copied):
    graph = mixture(experts=32, k=4, width=512, hidden=384, dtype=dtype)
    program = derive_chunk(graph, choose_states(graph), rows=1, chunk=chunk, capacity=16, last=False)
    memory = XlaBackend("cpu", tmp_path, native=False).prepare(program).memory
    activations = 4 * 2 * (chunk * 4 + 128) * (512 + 384)
    assert memory.temp_size_in_bytes < 512 * 384 * (1 + 4 * copied) + copied * activations  # bytes


def test_emitted_numpy_loops_over_the_experts_that_occur():
    graph = mixture(experts=8, k=2)
    source = emit_numpy(derive_score(graph, rows=1, length=16))
    assert source.count("def routed_contraction(") == 1
    assert len(re.findall(r"= routed_contraction\(.*, axes='nd'\)", source)) == 3
    assert "for chosen in np.unique(index):" in source
