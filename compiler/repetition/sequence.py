"""The nodes of a program in an order in which layers follow each other, and where that order repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Graph, Node, postorder

LONGEST_PERIOD = 8  # layers that alternate
_DISTANCES = 32  # between nodes of a kind: the most frequent ones are tried


@dataclass(frozen=True)
class Stretch:
    """``length`` nodes from ``start`` on that repeat after ``period``."""

    start: int
    period: int
    length: int


class Sequence:
    """The nodes of a graph that are no sources: what shallow outputs need stands before what deep ones need.

    Two nodes are alike at a distance when they are of one kind, and each operand is the same node for both,
    or as far apart as they are, or a source of one kind: constants of one value, parameters of one type.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        depth: dict[Node, int] = {}
        for node in graph.nodes:
            depth[node] = max((depth[source] for source in node.sources), default=0) + 1
        outputs = sorted(dict.fromkeys(graph.outputs.values()), key=lambda node: depth[node])
        order = postorder(outputs, lambda node: node.sources)
        self.nodes = [node for node in order if node.op.kind != "source"]
        self.place = {node: i for i, node in enumerate(self.nodes)}
        numbers: dict[Hashable, int] = {}
        self.kind = {node: numbers.setdefault(_kind(node), len(numbers)) for node in order}
        width = max((len(node.sources) for node in self.nodes), default=0)
        self._kinds = np.array([self.kind[node] for node in self.nodes], np.int64)
        self._reads = np.full((len(self.nodes), width), -1)  # places; below -1, kinds of sources
        for i, node in enumerate(self.nodes):
            for j, source in enumerate(node.sources):
                self._reads[i, j] = self.place.get(source, -2 - self.kind[source])

    def stretches(self) -> list[Stretch]:
        """The longest stretch of each period, the longest of all first."""
        found = [stretch for period in self._periods() if (stretch := self._longest(period)) is not None]
        return sorted(found, key=lambda stretch: (-stretch.length, stretch.period))

    def _periods(self) -> list[int]:
        """Distances that may be periods: from a node to the next of its kind, and their multiples."""
        last: dict[int, int] = {}
        distances: Counter[int] = Counter()
        for i, kind in enumerate(self._kinds.tolist()):
            if kind in last:
                distances[i - last[kind]] += 1
            last[kind] = i
        common = [distance for distance, _ in distances.most_common(_DISTANCES)]
        multiples = {distance * times for distance in common for times in range(1, LONGEST_PERIOD + 1)}
        return sorted(period for period in multiples if 2 * period <= len(self.nodes))

    def _longest(self, period: int) -> Stretch | None:
        now, later = self._reads[:-period], self._reads[period:]
        same = (now == later) | ((now >= 0) & (later - now == period))
        alike = (self._kinds[:-period] == self._kinds[period:]) & same.all(axis=1)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], alike.astype(np.int8), [0])))).reshape(-1, 2)
        if not len(edges):
            return None
        start, end = map(int, edges[(edges[:, 1] - edges[:, 0]).argmax()])
        return Stretch(start, period, end - start + period) if end - start >= period else None

    def beginnings(self, stretch: Stretch) -> list[int]:
        """The places where units of a stretch can begin so that each hands the fewest bytes to the next."""
        start, period = stretch.start, stretch.period
        crossing = np.zeros(period, np.int64)
        for place in range(start, start + period):
            node = self.nodes[place]
            readers = (self.place.get(user, 0) for user in self.graph.users[node])
            until = max((reader for reader in readers if reader < start + 2 * period), default=0)
            for edge in range(place + 1, until + 1):
                crossing[(edge - start) % period] += _bytes(node)
        possible = range(min(period, stretch.length - 2 * period + 1))
        fewest = min(crossing[phase] for phase in possible)
        return [start + phase for phase in possible if crossing[phase] == fewest]


def _bytes(node: Node) -> int:
    return sum(type_.bytes for type_ in (node.type if isinstance(node.type, tuple) else (node.type,)))


def _kind(node: Node) -> Hashable:
    """What nodes that are alike have in common; of inputs and parameters it is only the type."""
    if node.op.name in ("input", "parameter"):
        return node.op.name, node.type
    params = tuple((name, _value_kind(value)) for name, value in sorted(node.params.items()))
    return node.op.name, params, node.type, len(node.sources)


def _value_kind(value: object) -> Hashable:
    if isinstance(value, Graph):
        place = {node: i for i, node in enumerate(value.nodes)}
        rows = ((_kind(node), *(place[source] for source in node.sources)) for node in value.nodes)
        return *rows, *(place[node] for node in (*value.inputs, *value.parameters, *value.outputs.values()))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.str, value.shape, value.tobytes()
    return str(value)
