"""Layers that repeat: what is found in a program, what is not, and that a loop over it means the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from random_graphs import WIDTH, follow, recipes

import systolic as sy
from systolic.compiler.derive import choose_states, derive_chunk
from systolic.compiler.pipeline import run_passes
from systolic.compiler.program import Program
from systolic.compiler.repetition import Repetition, find_repetition
from systolic.ir.evaluate import evaluate
from systolic.ir.graph import Graph, Node
from systolic.ir.types import DTYPES


def program(layer, layers: int, width: int = 4) -> Program:
    """A decode step of ``layers`` layers between two products: ``layer(x, number)`` is one of them."""

    def model(x):
        x = sy.tanh(x)
        for number in range(layers):
            with sy.scope(f"part.{number}"):
                x = layer(x, number)
        return sy.parameter("head", (width, width)) @ x

    graph = run_passes(sy.trace(model, x=f"f32[{width}]"))[-1].graph
    return derive_chunk(graph, choose_states(graph), rows=2, chunk=1, capacity=8)


def attend(x, number, window=None):
    q, k, v = (sy.parameter(f"{name}.{number}", (4, 4)) @ x for name in "qkv")
    k, v = sy.history(k, window=window), sy.history(v, window=window)
    return x + sy.softmax(sy.einsum("d,pd->p", q, k)) @ v


def shown(found: Repetition | None) -> str:
    """What was found, one line for each node of the unit that stands for all."""
    if found is None:
        return "nothing"
    unit, last = found.unit, found.units[0]
    lines = [
        f"{len(found.units)} units of {len(unit)} nodes, {len(found.before)} before, {len(found.after)} after"
    ]
    places = {node: f"inside {at}" for at, node in enumerate(unit)}
    places |= {last[at]: f"carried {at}, first {node.name}" for at, node in found.carried.items()}
    places |= {node: f"own {each[0].name} … {each[-1].name}" for node, each in found.own.items()}
    for at, node in enumerate(unit):
        operands = "; ".join(places.get(s, s.name or "constant") for s in node.sources)
        kept = f" -> {found.kept[at].name}" if at in found.kept else ""
        lines.append(f"{at:3d} {node.op.name}: {node.type}  ({operands}){kept}")
    return "\n".join(lines)


def test_layers_of_attention(golden):
    golden("repetition", shown(find_repetition(program(attend, 4).graph)))


def test_layers_that_alternate_are_units_together():
    def layer(x, number):
        return attend(x, number, window=3 if number % 2 else None)

    found = find_repetition(program(layer, 8).graph)
    alone = find_repetition(program(attend, 8).graph)
    assert len(found.units) == 4
    assert len(found.unit) == 2 * len(alone.unit)
    kinds = {len({state.tensor.static_shape for state in found.own[s]}) for s in found.kept.values()}
    assert kinds == {1}


def test_a_layer_that_is_different_ends_the_units():
    def layer(x, number):
        return attend(x, number, window=3 if number == 5 else None)

    found = find_repetition(program(layer, 9).graph)
    assert len(found.units) == 5
    behind = {source.name for node in found.after for source in node.sources}
    assert {"k.5", "k.6", "k.7", "k.8"} <= behind


def test_constants_that_differ_are_no_repetition():
    def layer(x, number):
        return attend(x * (1.0 + number), number)

    found = find_repetition(program(layer, 6).graph)
    assert found is None or not found.own


def test_what_a_layer_yields_is_no_loop():
    """A tap: an output that is not a state."""
    graph = program(attend, 4).graph
    found = find_repetition(graph)
    inner = {f"tap.{i}": unit[0] for i, unit in enumerate(found.units)}
    tapped = Graph("tapped", graph.inputs, graph.parameters, {**graph.outputs, **inner})
    again = find_repetition(tapped)
    assert again is None or not again.own


def test_values_that_reach_over_a_layer_are_no_loop():
    def model(x):
        streams = [sy.tanh(x), x]
        for number in range(6):
            streams.append(sy.parameter(f"w.{number}", (4, 4)) @ streams[-1] + streams[-2])
        return streams[-1]

    graph = run_passes(sy.trace(model, x="f32[4]"))[-1].graph
    stepped = derive_chunk(graph, choose_states(graph), rows=1, chunk=1, capacity=8)
    found = find_repetition(stepped.graph)
    assert found is None or all(len(each) <= 6 for each in found.own.values())
    if found is not None:
        compare(stepped)


@pytest.mark.parametrize("layers", [2, 3, 12])
def test_every_layer_is_found(layers):
    found = find_repetition(program(attend, layers).graph)
    if layers == 2:  # which of the two would stand for both cannot be told
        assert found is None or len(found.units) <= 2
    else:
        assert len(found.units) == layers


# ---- a loop over the units means the same ----


def looped(graph: Graph, found: Repetition, given_values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs, where layers are computed by the unit that stands for all, one after the other."""
    values: dict[Node, np.ndarray] = {}

    def compute(nodes: Sequence[Node], own: dict[Node, np.ndarray]) -> Iterator[tuple[Node, np.ndarray]]:
        for node in nodes:
            operands = [own[s] if s in own else values[s] if s in values else source(s) for s in node.sources]
            own[node] = node.op.numpy(*operands, **node.params)
            yield node, own[node]

    def source(node: Node) -> np.ndarray:
        if node.name in given_values:
            return given_values[node.name]
        return node.op.numpy(**node.params)

    values |= dict(compute(found.before, {}))
    handed = [values[node] if node in values else source(node) for node in found.carried.values()]
    kept: list[dict[Node, np.ndarray]] = []
    for number in range(len(found.units)):
        own = {node: source(each[number]) for node, each in found.own.items()}
        own |= {found.units[0][at]: value for at, value in zip(found.carried, handed, strict=True)}
        inside = dict(compute(found.unit, own))
        handed = [inside[found.unit[at]] for at in found.carried]
        kept.append({found.units[number][at]: inside[found.unit[at]] for at in found.kept})
    values |= {found.units[-1][at]: value for at, value in zip(found.carried, handed, strict=True)}
    for states in kept:
        values |= states
    values |= dict(compute(found.after, {}))
    return {name: values[node] if node in values else source(node) for name, node in graph.outputs.items()}


def compare(stepped: Program) -> Repetition | None:
    graph, random = stepped.graph, np.random.default_rng(3)
    values = {
        node.name: (random.normal(size=node.tensor.static_shape) * 0.3).astype(DTYPES[node.tensor.dtype])
        for node in (*graph.parameters, *graph.inputs)
    }
    values["offset"] = np.full(stepped.rows, 4, np.int32)
    values["length"] = np.ones(stepped.rows, np.int32)
    found = find_repetition(graph)
    if found is not None:
        want, got = evaluate(graph, values), looped(graph, found, values)
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)
    return found


def test_a_loop_over_attention_means_the_same():
    assert len(compare(program(attend, 5)).units) == 5


@settings(max_examples=60, deadline=None)
@given(recipes)
def test_a_loop_over_random_layers_means_the_same(recipe):
    def layer(x, number):
        return follow(recipe, x, f"w.{number}.")

    compare(program(layer, 5, WIDTH))
