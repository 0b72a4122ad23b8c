"""Each pass: what it does, what it must leave alone, and that no value changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from random_graphs import build, draw_parameters, recipes

import systolic as sy
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.compiler.derive.forms import choose_forms, derive_cheapest, latent_form
from systolic.compiler.passes.fold_constants import fold_constants
from systolic.compiler.passes.reassociate import reassociate
from systolic.compiler.passes.share import share
from systolic.compiler.passes.simplify import simplify
from systolic.compiler.passes.transpose_weights import transpose_weights
from systolic.compiler.pipeline import PASSES, run_passes
from systolic.ir.dumps.text import print_graph
from systolic.ir.graph import Graph, rebuild
from systolic.ir.interpret import interpret


def ops(graph: Graph) -> list[str]:
    return [node.op.name for node in graph if node.op.kind != "source"]


def printed(graph: Graph) -> str:
    return print_graph(graph, locations=False)


def test_fold_constants(golden):
    def model(x):
        return x * (1.0 / sy.sqrt(sy.constant(64.0)))

    graph = sy.trace(model, x="f32[4]")
    golden("fold_constants", printed(graph) + "\n\n→\n\n" + printed(fold_constants(graph)))
    assert ops(fold_constants(graph)) == ["multiply"]


def test_fold_constants_leaves_what_would_grow_or_changes():
    def model(x):
        grown = sy.broadcast_to(sy.constant(1.0), (100, 4))
        return sy.sum(grown, 0) + x + sy.parameter("w", (4,)) + sy.position().cast("f32")

    graph = sy.trace(model, x="f32[4]")
    assert ops(fold_constants(graph)) == ops(graph)


def test_simplify(golden):
    def model(x):
        y = sy.transpose(sy.transpose(x.reshape(2, 2)) * 1.0) + 0.0
        return y.reshape(4, 1).reshape(4)

    graph = sy.trace(model, x="f32[4]")
    golden("simplify", printed(graph) + "\n\n→\n\n" + printed(simplify(graph)))
    assert ops(simplify(graph)) == []


def test_transpose_weights(golden):
    def model(x):
        y = sy.einsum("d,dn->n", x, sy.parameter("w", (4, 6)))
        return sy.einsum("d,dn->n", y, sy.parameter("other", (6, 4)))

    graph = sy.trace(model, x="f32[4]")
    changed = transpose_weights(graph, {"w"})
    golden("transpose_weights", printed(graph) + "\n\n→\n\n" + printed(changed))
    assert ops(simplify(changed)) == ["contraction", "contraction"]
    assert printed(transpose_weights(graph, ())) == printed(graph)
    weights = {"w": np.arange(24, dtype=np.float32).reshape(4, 6), "other": np.eye(6, 4, dtype=np.float32)}
    inputs = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    (want,), (found,) = (
        interpret(each, inputs, {**weights, "w.transposed": weights["w"].T}).values()
        for each in (graph, simplify(changed))
    )
    np.testing.assert_array_equal(found, want)


def test_a_slice_of_joined_parts_is_the_part():
    def model(x):
        joined = sy.concatenate([x, x * 2.0, x[:2]], axis=0)
        return {"part": joined[4:8], "across": joined[3:7]}

    simplified = simplify(sy.trace(model, x="f32[4]"))
    assert simplified.outputs["part"].op.name == "multiply"
    assert simplified.outputs["across"].op.name == "slice"


def test_simplify_leaves_a_constant_that_broadcasts():
    def model(x):
        return x * sy.constant(np.ones((3, 1), np.float32)) + sy.constant(np.float32(0.0))

    graph = sy.trace(model, x="f32[1]")
    simplified = simplify(graph)
    assert ops(simplified) == ["multiply"]
    assert simplified.outputs["output"].type == graph.outputs["output"].type


def test_share(golden):
    def model(x):
        return (x * 2.0 + sy.position().cast("f32")) * (x * 2.0 - sy.position().cast("f32"))

    graph = sy.trace(model, x="f32[4]")
    golden("share", printed(graph) + "\n\n→\n\n" + printed(share(graph)))
    assert ops(share(graph)).count("position") == 1


def test_share_leaves_feedbacks_and_different_parameters():
    def model(x):
        first, second = sy.feedback(sy.zeros((4,))), sy.feedback(sy.zeros((4,)))
        total = first.close(first + x) * second.close(second * 0.5 + x)
        return total + sy.sum(sy.history(x, window=2), 0) + sy.sum(sy.history(x, window=3), 0)

    graph = sy.trace(model, x="f32[4]")
    shared = share(graph)
    assert ops(shared).count("feedback") == 2
    assert ops(shared).count("history") == 2


# ---- reassociation ----


def latent_attention(x, *, rank=4, heads=3, size=8, width=6, window=None):
    """Keys joined from a projection of a latent and a part that all heads share; values projected, too."""
    latent = sy.parameter("down", (rank, width)) @ x
    shared = sy.parameter("turned", (2, width)) @ x
    kv = (sy.parameter("up", (heads * 2 * size, rank)) @ latent).reshape(heads, 2 * size)
    k, v = sy.split(kv, [size, size])
    k = sy.concatenate([k, sy.broadcast_to(shared, (heads, 2))], axis=-1)
    q = (sy.parameter("query", (heads * (size + 2), width)) @ x).reshape(heads, size + 2)
    scores = sy.einsum("hd,phd->hp", q, sy.history(k, window))
    return sy.einsum("hp,phe->he", sy.softmax(scores), sy.history(v, window))


def stored(graph):
    return {str(node.tensor) for node in choose_states(graph).histories}


def test_reassociate(golden):
    graph = sy.trace(lambda x: latent_attention(x), x="f32[6]")
    golden("reassociate", printed(graph) + "\n\n→\n\n" + printed(latent_form(graph)))
    assert stored(graph) == {"f32[3,10]", "f32[3,8]"}
    assert stored(latent_form(graph)) == {"f32[4]", "f32[2]"}


@pytest.mark.parametrize("window", [None, 3])
def test_reassociation_changes_no_value(window):
    graph = sy.trace(lambda x: latent_attention(x, window=window), x="f32[6]")
    assert latent_form(graph) is not None
    run_passes(graph, (reassociate, simplify, share), check=True)


def test_reassociation_needs_an_operand_that_is_smaller_and_cheaper_to_read():
    as_large = sy.trace(lambda x: latent_attention(x, rank=24), x="f32[6]")
    assert latent_form(as_large) is None

    def values_of_wide_heads(x):  # smaller to keep, but each head would have to read all of it
        v = (sy.parameter("v", (64 * 7, 420)) @ x).reshape(64, 7)
        p = sy.softmax(sy.einsum("h,ph->hp", sy.parameter("q", (64, 420)) @ x, sy.history(x[:64])))
        return sy.einsum("hp,phe->he", p, sy.history(v))

    assert latent_form(sy.trace(values_of_wide_heads, x="f32[420]")) is None


def test_reassociation_leaves_what_is_not_linear_or_repeats_into_the_result():
    def turned(x):
        k = sy.tanh(sy.parameter("k", (30, 2)) @ (sy.parameter("down", (2, 6)) @ x))
        return sy.sum(sy.einsum("d,pd->p", sy.parameter("q", (30, 6)) @ x, sy.history(k)))

    def repeated(x):
        v = sy.broadcast_to(sy.parameter("down", (2, 6)) @ x, (9, 2))
        return sy.einsum("p,phe->he", sy.softmax(sy.history(x[0])), sy.history(v))

    assert latent_form(sy.trace(turned, x="f32[6]")) is None
    assert latent_form(sy.trace(repeated, x="f32[6]")) is None


def test_long_chunks_project_the_past_and_steps_read_the_latent_from_the_same_states():
    graph = sy.trace(lambda x: latent_attention(x, rank=32, heads=4, size=16, width=99), x="f32[99]")
    forms = choose_forms(graph)

    def program(chunk):
        return derive_cheapest(
            forms,
            lambda g, plan: derive_chunk(g, plan, rows=1, chunk=chunk, capacity=256, reserve=128, last=False),
        )

    def projects_the_past(program):
        return any("@past" in node.name for node in program.graph if node.op.name == "contraction")

    assert [projects_the_past(program(chunk)) for chunk in (1, 128)] == [False, True]
    assert program(1).states == program(128).states


@settings(max_examples=30, deadline=None)
@given(recipe=recipes)
def test_no_pass_changes_a_value(recipe):
    graph = build(recipe)
    values = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    parameters = draw_parameters(graph)
    last = run_passes(graph, check=True)[-1].graph
    want = interpret(graph, {"x": values}, parameters)["output"]
    np.testing.assert_allclose(
        interpret(last, {"x": values}, parameters)["output"], want, rtol=1e-5, atol=1e-5
    )


def test_stages_are_named_counted_and_verified():
    graph = build([("decay", 0, 0, 1), ("window_attention", 1, 1, 3)])
    stages = run_passes(graph)
    assert [stage.name for stage in stages] == ["traced", *(change.__name__ for change in PASSES)]
    assert stages[-1].removed > 0


def test_the_driver_catches_a_pass_that_changes_values():
    def break_it(graph: Graph) -> Graph:
        def visit(node, sources):
            swapped = sources[::-1] if node.op.name == "subtract" else sources
            from systolic.ir.graph import copy_node

            return copy_node(node, swapped)

        return rebuild(graph, visit)

    graph = sy.trace(lambda x: x - 2.0 * x, x="f32[4]")
    with pytest.raises(sy.GraphError, match="break_it"):
        run_passes(graph, (break_it,), check=True)
