"""The plan of states in numbers: how large each buffer is for given rows, capacity and chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...ir.graph import Graph, Node
from ...ir.time import NOW, Access, delay_access
from ...ir.types import Dim, Whole
from ..program import State
from .derivation import Key
from .placed import is_sequence, settle, with_slots
from .states import StatePlan


@dataclass(frozen=True)
class Sizes:
    """The numbers that make one program out of many: rows, slots, and positions of other clocks."""

    rows: int
    capacity: int
    reserve: int
    sources: Mapping[str, int]

    def slots(self, window: int | None) -> int:
        """A ring must survive the largest chunk: its first position still reads a whole window."""
        return self.capacity if window is None else min(self.capacity, window + self.reserve - 1)

    def extent(self, dim: Dim) -> int:
        """How many positions of a finished clock there is room for."""
        assert isinstance(dim, Whole)
        return self.sources[dim.clock]

    def is_ring(self, window: int | None) -> bool:
        return window is not None and window + self.reserve - 1 < self.capacity


def plan_states(graph: Graph, plan: StatePlan, sizes: Sizes) -> dict[Key, State]:
    """A state for each key (stream, place) of the plan, in the order of the graph."""
    states: dict[Key, State] = {}
    rank = {node: i for i, node in enumerate(graph.nodes)}

    carried = dict(graph.feedback)  # a carry is known by the stream whose newest value it is
    names: set[str] = set()

    def keep(node: Node, place: str, kind: str, shape: tuple[int, ...], access: Access, reason: str) -> None:
        name = carried.get(node, node).name if place == "carry" else node.name
        # A stream can have two buffers, say a history and the tail of a delay.
        name = f"{name}.{place}" if name in names else name
        names.add(name)
        per_token = node.tensor.bytes if place == "state" else 0
        states[node, place] = State(
            name=name,
            kind=kind,
            type=node.tensor.with_shape((sizes.rows, *shape)),
            value=node.tensor,
            bytes_per_token=per_token,
            access=access,
            reason=reason,
        )

    for node, window in sorted(plan.histories.items(), key=lambda item: rank[item[0]]):
        kind = "ring" if sizes.is_ring(window) else "append"
        shape = with_slots(node.tensor.static_shape, sizes.slots(window))
        keep(node, "state", kind, shape, plan.access(node), plan.reasons[node])
    for node, steps in plan.tails.items():
        reason = f"read {steps} position{'s' * (steps > 1)} later"
        keep(node, "tail", "tail", (steps, *node.tensor.static_shape), delay_access(steps), reason)
    for node in plan.carries:
        reason = "read one position later, by what it is made from"
        keep(node, "carry", "carry", node.tensor.static_shape, delay_access(1), reason)
    for node in plan.constants:
        shape = settle(node.tensor.shape, sizes.extent)
        if is_sequence(node.tensor.shape):
            shape = with_slots(shape[1:], shape[0])
        reason = "the same at every position, once the source clock has ended"
        keep(node, "constant", "constant", shape, NOW, reason)
    return states
