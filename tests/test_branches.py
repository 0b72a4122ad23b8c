"""Weights that a text chooses: the rewriting, and programs in which every row chooses for itself."""

from __future__ import annotations

import numpy as np
import pytest

import systolic as sy
from systolic.compiler.branches import LowRank, Site, Whole, add_branches, untie
from systolic.compiler.pipeline import run_passes
from systolic.ir.dumps.parse import parse_graph
from systolic.ir.dumps.text import print_graph
from systolic.ir.interpret import interpret

V, D, N, E, R, CHOICES = 11, 4, 3, 5, 2, 3
BRANCHES = {
    Site("table", "take"): LowRank("table.adapters", R),
    Site("up", "contraction"): LowRank("up.adapters", R),
    Site("down", "contraction"): LowRank("down.adapters", R),
    Site("experts", "contraction"): LowRank("experts.adapters", R),
    Site("bias"): Whole("bias.adapters", (0, 1, 0)),
    Site("head", "contraction"): Whole("head.adapters", (0, 1, 2)),
}


def model(token):
    """Every way in which weights are read, a past, and something that is carried."""
    x = sy.take(sy.parameter("table", (V, D)), token)
    x = x + sy.einsum("n,nd->d", sy.tanh(sy.parameter("up", (N, D)) @ x), sy.parameter("down", (N, D)))
    scores, chosen = sy.top_k(x, 2)
    matrices = sy.take(sy.parameter("experts", (E, N, D)), chosen)
    x = x + sy.einsum("k,kn,nd->d", scores, sy.einsum("d,knd->kn", x, matrices), sy.parameter("down", (N, D)))
    past = sy.history(x)
    x = x + sy.softmax(sy.einsum("d,pd->p", x, past)) @ past
    before = sy.feedback(sy.zeros((D,)))
    x = before.close(sy.tanh(x + before * 0.5 + sy.parameter("bias", (D,))))
    return {"logits": sy.einsum("d,vd->v", x, sy.parameter("head", (V, D)))}


def draw(graph):
    random = np.random.default_rng(3)
    return {n.name: random.normal(size=n.tensor.static_shape).astype(np.float32) for n in graph.parameters}


def of_choice(weights, stacks, choice):
    """The weights of the graph without branches that compute what one choice does."""
    merged = dict(weights)
    for name, size in (("table", V), ("up", None), ("down", None), ("experts", E)):
        left, right = (stacks[f"{name}.adapters.{side}"] for side in ("left", "right"))
        if name == "experts":
            left, right = (part.reshape(CHOICES, E, *part.shape[1:]) for part in (left, right))
        elif size:
            left = left.reshape(CHOICES, size, R)
        merged[name] = weights[name] + left[choice] @ right[choice]
    merged["bias"] = stacks["bias.adapters"][(0, 1, 0)[choice]]
    merged["head"] = stacks["head.adapters"][choice]
    return merged


@pytest.fixture(scope="module")
def graphs():
    plain = sy.trace(model)
    branched = add_branches(plain, BRANCHES, CHOICES)
    return plain, branched, draw(plain), draw(branched)


def test_a_branch(golden):
    def small(x):
        return sy.einsum("d,nd->n", x, sy.parameter("w", (3, 4))).named("y")

    graph = sy.trace(small, x="f32[4]")
    branched = add_branches(graph, {Site("w", "contraction"): LowRank("w.adapters", 2)}, 3)
    before, after = (print_graph(one, locations=False) for one in (graph, branched))
    golden("branches", f"{before}\n\n→\n\n{after}")


@pytest.mark.parametrize("choice", range(CHOICES))
def test_a_choice_computes_what_its_merged_weights_do(graphs, choice):
    plain, branched, weights, stacks = graphs
    stacks = {**stacks, **{name: weights[name] for name in set(weights) & set(stacks)}}
    token = np.array([3, 1, 4, 1, 5], np.int32)
    want = interpret(plain, {"token": token}, of_choice(weights, stacks, choice))["logits"]
    inputs = {"token": token, "adapter": np.array(choice, np.int32)}
    np.testing.assert_allclose(interpret(branched, inputs, stacks)["logits"], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("state", ["auto", "sources", "tokens"])
@pytest.mark.parametrize("backend", ["numpy", "xla"])
def test_rows_choose_for_themselves(graphs, backend, state):
    _, branched, _, stacks = graphs
    executable = sy.compile(
        branched, stacks, backend=backend, batch=CHOICES, capacity=16, chunk=4, state=state
    )
    rows, token = executable.batch(), np.array([3, 1, 4, 1, 5, 9, 2], np.int32)
    for row in range(CHOICES):
        rows.begin(row, adapter=row)
    logits = rows.read({row: token.tolist() for row in range(CHOICES)})  # a chunk of 4, and one of 3
    more = rows.read({row: [6] for row in range(CHOICES)})
    for row in range(CHOICES):
        inputs = {"token": np.array([*token, 6], np.int32), "adapter": np.array(row, np.int32)}
        want = interpret(branched, inputs, stacks)["logits"]
        np.testing.assert_allclose(logits[row], want[-2], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(more[row], want[-1], rtol=1e-3, atol=1e-3)


def test_weights_that_nothing_reads_any_more_are_left_out(graphs):
    plain, branched, _, _ = graphs
    names = {node.name for node in branched.parameters}
    assert {"bias", "head"} <= {node.name for node in plain.parameters} - names
    assert {"table", "up", "down", "experts"} <= names


def test_factors_of_experts_are_read_where_they_lie(graphs):
    final = run_passes(graphs[1])[-1].graph
    routed = [node for node in final if node.op.name == "routed_contraction"]
    stacks = {source.name for node in routed for source in node.sources}
    assert {"experts", "experts.adapters.left", "experts.adapters.right", "head.adapters"} <= stacks


def test_no_pass_changes_a_value_and_the_text_is_the_graph(graphs):
    run_passes(graphs[1], check=True)
    text = print_graph(graphs[1], locations=False)
    assert print_graph(parse_graph(text), locations=False) == text


def test_a_choice_is_no_position(graphs):
    entries = graphs[1].certificate().entries
    assert graphs[1].certificate().causal
    assert {entry.input for entry in entries} == {"token"}


@pytest.mark.parametrize(
    "read",
    [
        lambda x, w: sy.einsum("d,nd->nd", x, w)[0],
        lambda x, w: sy.reshape(w, 12)[:4] + x,
        lambda x, w: sy.einsum("d,nd->n", x, w)[:1] + sy.reshape(w, 12)[:4],
    ],
)
def test_what_is_read_in_another_way_is_an_error(read):
    graph = sy.trace(lambda x: read(x, sy.parameter("w", (3, 4))), x="f32[4]")
    with pytest.raises(sy.SystolicError, match=r"reads w in no way .* merge the adapter"):
        add_branches(graph, {Site("w", "contraction"): LowRank("a", 2)}, 2)


def test_untie_gives_one_reader_weights_of_its_own():
    def tied(token):
        table = sy.parameter("table", (V, D))
        return sy.einsum("d,vd->v", sy.take(table, token), table)

    graph = untie(sy.trace(tied), "table", "contraction", "head")
    assert [node.name for node in graph.parameters] == ["table", "head"]
    weights, token = draw(graph), np.array([2, 7], np.int32)
    want = weights["table"][token] @ weights["head"].T
    np.testing.assert_allclose(interpret(graph, {"token": token}, weights)["output"], want, rtol=1e-5)
