"""The meaning of a graph with time: one position after the other, nothing clever.

This is the definition that every derived program is tested against. The value of a node at
position t is its op applied to the values that its edges read; nothing is cached, masked or batched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .graph import Graph, Node, postorder
from .types import Dim, Past, Whole

Moment = tuple[Node, int]  # a stream at a position; what has no clock is at position 0


def interpret(
    graph: Graph, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs ``[T, …]`` by name, from inputs ``[T, …]`` and parameters by name.

    Inputs of one clock have the same T. An output without a clock has no T axis.
    """
    given = {node: np.asarray(inputs[node.name]) for node in graph.inputs}
    lengths = {str(node.clock): len(array) for node, array in given.items()}
    closing = dict(graph.feedback)
    values: dict[Moment, Any] = {}

    def at(node: Node, t: int) -> Moment:
        return node, (0 if node.clock is None else t)

    def dependencies(moment: Moment) -> Iterator[Moment]:
        node, t = moment
        for edge in node.inputs:
            steps = edge.access.steps(t, lengths.get(str(edge.source.clock), 1))
            yield from (at(edge.source, step) for step in steps)
        if node.op.name == "feedback" and t > 0:
            yield at(closing[node], t - 1)

    def value(moment: Moment) -> Any:
        node, t = moment
        match node.op.name:
            case "input":
                return given[node][t]
            case "parameter":
                return np.asarray(parameters[node.name])
            case "position":
                return np.asarray(t, np.int32)
            case "history" | "whole":
                (edge,) = node.inputs
                steps = edge.access.steps(t, lengths[str(edge.source.clock)])
                return np.stack([values[at(edge.source, step)] for step in steps])
            case "delay":
                stream, initial = node.sources
                earlier = t - node.params["steps"]
                return values[at(stream, earlier)] if earlier >= 0 else values[at(initial, t)]
            case "feedback":
                return values[at(closing[node], t - 1)] if t > 0 else values[at(node.sources[0], 0)]
        operands = [values[at(source, t)] for source in node.sources]
        return node.op.numpy(*operands, **_settled(node.params, t, lengths))

    roots = [
        at(node, t)
        for node in graph.outputs.values()
        for t in range(1 if node.clock is None else lengths[node.clock])
    ]
    for moment in postorder(roots, dependencies):
        values[moment] = value(moment)
    results = {}
    for name, node in graph.outputs.items():
        if node.clock is None:
            results[name] = values[(node, 0)]
        else:
            steps = [values[(node, t)] for t in range(lengths[node.clock])]
            ragged = len({np.shape(step) for step in steps}) > 1
            results[name] = np.array(steps, dtype=object) if ragged else np.stack(steps)
    return results


def _settled(params: Mapping[str, Any], t: int, lengths: Mapping[str, int]) -> dict[str, Any]:
    """The parameters with the ragged dimensions of a shape as numbers."""

    def settle(dim: Dim) -> Dim:
        if isinstance(dim, Past):
            return min(t + 1, dim.window or t + 1)
        return lengths[dim.clock] if isinstance(dim, Whole) else dim

    if "shape" not in params:
        return dict(params)
    return {**params, "shape": tuple(settle(dim) for dim in params["shape"])}
