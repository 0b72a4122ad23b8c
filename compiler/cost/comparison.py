"""A prediction beside what a compiler estimates for its own operations, joined by the names of nodes.

A fusion of the compiler and a region of ours need not cover the same nodes. Each product (contraction,
gather, scan) inside a fusion ties the fusion to the region of that product; a fusion without one belongs to
the region of the node that it was built around. Regions that share a fusion are compared together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .prediction import Prediction

_NUMBERED = re.compile(r"^(.+?)(?:\.\d+)?$")
POSITIONS = "(positions)"
UNNAMED = "(no name)"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a compiler says of one of its operations: ``node`` it was built around, ``nodes`` inside of it,
    ``cycles`` of all its runs."""

    name: str
    node: str
    nodes: tuple[str, ...]
    cycles: int


@dataclass(frozen=True, slots=True)
class Compared:
    """Regions (by name) and the operations that run them: cycles as predicted and as estimated."""

    regions: tuple[str, ...]
    scope: str
    operations: tuple[str, ...]
    predicted: float
    estimated: float

    @property
    def ratio(self) -> float | None:
        """Predicted by estimated; None if the compiler gives no cycles for it."""
        return self.predicted / self.estimated if self.estimated else None

    @property
    def difference(self) -> float:
        return abs(self.predicted - self.estimated)


def compare(found: Prediction, estimates: Iterable[Estimate]) -> tuple[Compared, ...]:
    """Predicted and estimated cycles of what both sides agree is one thing, the largest difference first."""
    clock = found.plan.machine.clock
    owner = {node: i for i, region in enumerate(found.regions) for node in region.nodes}
    anchors = {region.name for region in found.plan.regions if region.kind != "elementwise"}
    union = _Union(len(found.regions))
    homes: dict[int, list[Estimate]] = {}
    rest: dict[str, list[Estimate]] = {}
    for estimate in estimates:
        held = [owner[node] for node in estimate.nodes if node in anchors and node in owner]
        held = held or [owner[node] for node in (estimate.node, *estimate.nodes) if node in owner][:1]
        if not held:
            rest.setdefault(node_scope(estimate.node), []).append(estimate)
            continue
        for other in held[1:]:
            union.join(held[0], other)
        homes.setdefault(held[0], []).append(estimate)
    groups: dict[int, list[int]] = {}
    for i in range(len(found.regions)):
        groups.setdefault(union.find(i), []).append(i)
    compared = [
        Compared(
            regions=tuple(found.regions[i].name for i in group),
            scope=found.regions[group[0]].scope or POSITIONS,
            operations=tuple(e.name for i in group for e in homes.get(i, ())),
            predicted=sum(found.costs[i].seconds for i in group) * clock,
            estimated=float(sum(e.cycles for i in group for e in homes.get(i, ()))),
        )
        for group in groups.values()
    ]
    compared += [
        Compared((), scope, tuple(e.name for e in group), 0.0, float(sum(e.cycles for e in group)))
        for scope, group in rest.items()
    ]
    return tuple(sorted(compared, key=lambda both: -both.difference))


def node_scope(node: str) -> str:
    """The scope in the name of a node: what stands before its last word; UNNAMED without a name."""
    stem = _NUMBERED.sub(r"\1", node)
    return stem.rpartition(".")[0] or node or UNNAMED


class _Union:
    """Disjoint sets of numbers."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        self._parent[self.find(j)] = self.find(i)
