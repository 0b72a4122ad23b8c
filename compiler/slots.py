"""Which states a value is made from: what a step must have kept to compute it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..ir.graph import Graph, Node
from ..ir.time import NOW, Access, delay_access
from ..ir.types import Past
from .derive.states import StatePlan, stored_behind
from .program import State

_KINDS = {"state": ("append", "ring"), "tail": ("tail",), "carry": ("carry",), "constant": ("constant",)}
Kept = tuple[Node, str]  # a stream, and how it is kept: state, tail, carry or constant


def states_read(graph: Graph, node: Node, plan: StatePlan) -> Mapping[Kept, Access]:
    """What the value of a node at t reads of the states, with the positions that it reads of them."""
    read: dict[Kept, Access] = {}
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        sources = list(current.sources)
        if current in plan.constants:
            read[current, "constant"] = NOW
            continue
        if current in plan.carries:
            read[current, "carry"] = delay_access(1)
            continue
        if current.op.name == "delay" and current.clock == plan.clock:
            stream, steps = current.sources[0], current.params["steps"]
            kept = (stream, "tail")
            oldest = min(-steps, read[kept].oldest or 0) if kept in read else -steps
            newest = max(-steps, read[kept].newest or 0) if kept in read else -steps
            read[kept] = Access(oldest, newest)
            sources = sources[1:]  # only its past is needed
        elif current.op.name == "history" and current.clock == plan.clock:
            for stream in stored_behind(current.sources[0], plan.histories.__contains__):
                read[stream, "state"] = _wider(read.get((stream, "state"), NOW), current)
        for source in sources:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    rank = {n: i for i, n in enumerate(graph.nodes)}
    return dict(sorted(read.items(), key=lambda item: rank[item[0][0]]))


def state_of(kept: Kept, graph: Graph, states: Iterable[State]) -> State | None:
    """The state that keeps a stream in that way, if there is one."""
    stream, place = kept
    if place == "carry":
        stream = dict(graph.feedback).get(stream, stream)
    names = (stream.name, f"{stream.name}.{place}")
    return next((s for s in states if s.name in names and s.kind in _KINDS[place]), None)


def _wider(access: Access, history: Node) -> Access:
    dim = history.tensor.shape[0]
    assert isinstance(dim, Past)
    if dim.window is None or access.oldest is None:
        return Access(None, 0)
    return Access(min(access.oldest, 1 - dim.window), 0)
