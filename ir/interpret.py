"""The meaning of a graph with time: one position after the other, nothing clever.

This is the definition that every derived program is tested against. The value of a node at
position t is its op applied to the values that its edges read; nothing is cached, masked or batched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .graph import Graph, Node, postorder
from .types import MAIN, TEXT, Dim, Past, Whole

Moment = tuple[Node, int]  # a stream at a position; what has no clock is at position 0


def interpret(
    graph: Graph, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs ``[T, …]`` by name, from inputs ``[T, …]`` and parameters by name.

    Inputs of one clock have the same T. An input or output without a clock has no T axis.
    """
    run = _Run(graph, inputs, parameters)
    wanted = {name: run.moments(node) for name, node in graph.outputs.items()}
    roots = [moment for moments in wanted.values() for moment in moments]
    for moment in postorder(roots, run.dependencies):
        run.values[moment] = run.value(moment)
    return {
        name: _joined([run.values[moment] for moment in moments])
        if graph.outputs[name].clock is not None
        else run.values[moments[0]]
        for name, moments in wanted.items()
    }


class _Run:
    """One run: what is given, and the values so far."""

    def __init__(
        self, graph: Graph, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, np.ndarray]
    ) -> None:
        self.parameters = parameters
        self.given = {node: np.asarray(inputs[node.name]) for node in graph.inputs}
        self.lengths = {n.clock: len(array) for n, array in self.given.items() if n.clock is not None}
        self.lengths[TEXT] = self.lengths.get(MAIN, 0)
        self.closing = dict(graph.feedback)
        self.values: dict[Moment, Any] = {}

    def moments(self, node: Node) -> list[Moment]:
        """The stream at every position of its clock."""
        return [(node, t) for t in range(1 if node.clock is None else self.lengths[node.clock])]

    def read(self, node: Node, t: int) -> list[Moment]:
        """The moments that each edge of the node reads at ``t``, oldest first."""
        moments = []
        for edge in node.inputs:
            if edge.source.clock is None:
                moments.append((edge.source, 0))
            else:
                steps = edge.access.steps(t, self.lengths[edge.source.clock])
                moments += [(edge.source, step) for step in steps]
        return moments

    def dependencies(self, moment: Moment) -> Iterator[Moment]:
        node, t = moment
        yield from self.read(node, t)
        if node.op.name == "feedback" and t > 0:
            yield _at(self.closing[node], t - 1)

    def value(self, moment: Moment) -> Any:
        """The value of a stream at a position, from the values that its edges read."""
        node, t = moment
        operands = [self.values[read] for read in self.read(node, t)]
        match node.op.name:
            case "input":
                return self.given[node] if node.clock is None else self.given[node][t]
            case "parameter":
                return np.asarray(self.parameters[node.name])
            case "position":
                return np.asarray(t, np.int32)
            case "history" | "whole":
                return np.stack(operands)
            case "delay":  # before the start, only the initial value is read
                return operands[0]
            case "feedback":
                return self.values[_at(self.closing[node], t - 1)] if t > 0 else operands[0]
        return node.op.numpy(*operands, **self.settled(node.params, t))

    def settled(self, params: Mapping[str, Any], t: int) -> dict[str, Any]:
        """The parameters with the ragged dimensions of a shape as numbers."""

        def settle(dim: Dim) -> Dim:
            if isinstance(dim, Past):
                return min(t + 1, dim.window or t + 1)
            return self.lengths[dim.clock] if isinstance(dim, Whole) else dim

        if "shape" not in params:
            return dict(params)
        return {**params, "shape": tuple(settle(dim) for dim in params["shape"])}


def _at(node: Node, t: int) -> Moment:
    return node, (0 if node.clock is None else t)


def _joined(steps: list[np.ndarray]) -> np.ndarray:
    """The values of all positions as one array; an object array where their lengths differ."""
    if len({step.shape for step in map(np.asarray, steps)}) == 1:
        return np.stack(steps)
    ragged = np.empty(len(steps), dtype=object)
    ragged[:] = steps
    return ragged
