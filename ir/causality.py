"""The proof that no output sees the future, from the edges alone.

The positions of an input that a node can depend on are the union, over all paths to it, of the
accesses along the path, added up. They are carried forward once, in topological order. A feedback
is an edge that reads one position back, so it closes cycles. Inside a cycle

- what arrives without passing through its feedback is exact;
- what arrives through its feedback is taken to be everything up to the newest such position. This
  is exact where a carried value depends on its own previous value; a cycle that steps back by more
  than one (a delayed carry) skips positions in truth, which the certificate counts as read.

No access has a bound that depends on values: a gather over a history counts as reading all of it.
``whole`` of another clock is no leak: that clock has ended when this one ticks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import CausalityError, Location
from .time import NOW, WHOLE, Access, Reach, delay_access
from .types import MAIN, TEXT, show_type

if TYPE_CHECKING:
    from .graph import Graph, Node

    Read = tuple[Node, Access]  # an edge, seen from its user
    Reads = Mapping[Node, tuple[Read, ...]]
    Reached = Mapping[Node, Reach]  # by input


@dataclass(frozen=True, slots=True)
class Entry:
    """The positions of ``input``, relative to its own, that ``output`` can depend on."""

    output: str
    input: str
    clock: str | None
    reach: Reach

    def describe(self) -> str:
        """In words: ``window 8``, ``prefix``, ``whole of clock source``."""
        other = f" of clock {self.clock}" if self.clock not in (MAIN, None) else ""
        return self.reach.describe() + (other if self.reach.parts else "")


@dataclass(frozen=True, slots=True)
class Step:
    """One node on a path, with the access by which the node before it reads it (none at the first)."""

    name: str
    op: str
    type: str
    access: Access | None
    location: Location | None


@dataclass(frozen=True)
class Certificate:
    """What each output can depend on; ``leak`` is the shortest path that reads the future, if any."""

    graph: str
    entries: tuple[Entry, ...]
    leak: tuple[Step, ...] | None

    @property
    def causal(self) -> bool:
        return self.leak is None

    def raise_if_leaking(self) -> None:
        """Raises ``CausalityError`` with the path that reads the future."""
        if self.leak is not None:
            raise CausalityError(_show_leak(self.leak), self.leak[0].location)

    def __str__(self) -> str:
        if self.leak is not None:
            return f"{self.graph} is not causal: {_show_leak(self.leak)}"
        rows = [("output", "input", "depends on"), *((e.output, e.input, e.describe()) for e in self.entries)]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
        return "\n".join([f"{self.graph} is causal: no output depends on a later input", *lines])

    def to_json(self) -> dict[str, Any]:
        entries = [
            {
                "output": entry.output,
                "input": entry.input,
                "clock": entry.clock,
                "positions": [str(part) for part in entry.reach.parts],
                "description": entry.describe(),
            }
            for entry in self.entries
        ]
        leak = None
        if self.leak is not None:
            leak = [
                {
                    "name": step.name,
                    "op": step.op,
                    "type": step.type,
                    "access": None if step.access is None else str(step.access),
                    "location": None if step.location is None else str(step.location),
                }
                for step in self.leak
            ]
        return {"graph": self.graph, "causal": self.causal, "entries": entries, "leak": leak}


def certify(graph: Graph) -> Certificate:
    """Which positions of each input each output can depend on, and whether any of them is later."""
    reads = _all_reads(graph)
    reached = _propagate(graph, reads)
    entries = tuple(
        Entry(name, source.name, source.clock, reached[node].get(source, Reach()))
        for name, node in graph.outputs.items()
        for source in _origins(graph)
    )
    return Certificate(graph.name, entries, _shortest_leak(graph, reads))


def _origins(graph: Graph) -> tuple[Node, ...]:
    """What outputs depend on at some positions: the inputs that have any, and the length of the text where it
    is asked for."""
    lengths = (node for node in graph.nodes if node.op.name == "position" and node.clock == TEXT)
    return (*(node for node in graph.inputs if node.clock is not None), *lengths)


def _all_reads(graph: Graph) -> Reads:
    closing = dict(graph.feedback)
    reads = {}
    for node in graph.nodes:
        edges = tuple((edge.source, edge.access) for edge in node.inputs)
        reads[node] = (*edges, (closing[node], delay_access(1))) if node in closing else edges
    return reads


# ---- which positions are reached ----


def _propagate(graph: Graph, reads: Reads) -> dict[Node, Reached]:
    reached: dict[Node, Reached] = {node: {node: Reach((NOW,))} for node in _origins(graph)}
    for members in _components(graph, reads):
        node = members[0]
        if len(members) > 1 or any(source is node for source, _ in reads[node]):
            reached.update(_through_cycle(members, graph, reads, reached))
        elif node not in reached:
            reached[node] = _gather(reads[node], reached)
    return reached


def _components(graph: Graph, reads: Reads) -> Iterator[list[Node]]:
    """Groups of nodes that depend on each other, each after what it reads; mostly single nodes."""
    if not graph.feedback:
        yield from ([node] for node in graph.nodes)
        return
    import networkx as nx  # a tenth of a second to load, and most graphs have no cycles

    position = {node: i for i, node in enumerate(graph.nodes)}
    flow = nx.DiGraph()
    flow.add_nodes_from(range(len(position)))
    flow.add_edges_from((position[source], position[node]) for node in position for source, _ in reads[node])
    condensed = nx.condensation(flow)
    for component in nx.topological_sort(condensed):
        yield [graph.nodes[i] for i in sorted(condensed.nodes[component]["members"])]


def _gather(edges: Iterable[Read], reached: Mapping[Node, Reached]) -> Reached:
    """The union over ``edges`` of what their sources reach, seen from their user."""
    edges = [(source, access) for source, access in edges if reached[source]]
    if len(edges) == 1 and edges[0][1] == NOW:
        return reached[edges[0][0]]
    result: dict[Node, Reach] = {}
    for source, access in edges:
        for origin, reach in reached[source].items():
            seen = reach.then(access)
            result[origin] = result[origin].union(seen) if origin in result else seen
    return result


def _through_cycle(
    members: list[Node], graph: Graph, reads: Reads, reached: Mapping[Node, Reached]
) -> dict[Node, Reached]:
    """What the nodes of one cycle reach; ``members`` are in topological order but for feedback."""
    inside = set(members)
    carried = {f: value for f, value in graph.feedback if f in inside and value in inside}
    straight: dict[Node, Reached] = {}
    for node in members:
        edges = reads[node][:-1] if node in carried else reads[node]
        known = {source: straight.get(source, reached.get(source, {})) for source, _ in edges}
        straight[node] = _gather(edges, known)
    newest = _newest_through_feedback(members, carried, reads, straight)
    result: dict[Node, Reached] = {}
    for node in members:
        older = {
            origin: Reach((WHOLE if at == math.inf else Access(int(at), int(at)),)).repeated()
            for origin, at in newest[node].items()
        }
        result[node] = {
            origin: straight[node].get(origin, Reach()).union(older.get(origin, Reach()))
            for origin in {**straight[node], **older}
        }
    return result


def _newest_through_feedback(
    members: list[Node], carried: Mapping[Node, Node], reads: Reads, straight: Mapping[Node, Reached]
) -> dict[Node, dict[Node, float]]:
    """The newest position of each input that arrives through the feedback of a cycle.

    Each way around steps back, so this settles: after as many rounds as different feedbacks lie on
    one path, mostly two.
    """
    newest: dict[Node, dict[Node, float]] = {node: {} for node in members}
    settled = False
    while not settled:
        settled = True
        for node in members:
            arriving: list[tuple[Node, float]] = []
            for source, access in reads[node]:
                step = math.inf if access.newest is None else access.newest
                arriving += [(origin, at + step) for origin, at in newest.get(source, {}).items()]
            if node in carried:
                arriving += [(o, _newest(reach) - 1) for o, reach in straight[carried[node]].items()]
            for origin, at in arriving:
                if at > newest[node].get(origin, -math.inf):
                    newest[node][origin] = at
                    settled = False
    return newest


def _newest(reach: Reach) -> float:
    last = reach.parts[-1].newest
    return math.inf if last is None else last


# ---- the path that leaks ----


def _shortest_leak(graph: Graph, reads: Reads) -> tuple[Step, ...] | None:
    """The path of fewest edges from an output to a read of later positions of its own clock."""
    leaks = [_leak_of_clock(graph, reads, clock) for clock in graph.clocks]
    return min((leak for leak in leaks if leak is not None), key=len, default=None)


def _leak_of_clock(graph: Graph, reads: Reads, clock: str) -> tuple[Step, ...] | None:
    starts = dict.fromkeys(node for node in graph.outputs.values() if node.clock == clock)
    user_of: dict[Node, tuple[Node, Access] | None] = dict.fromkeys(starts)
    waiting = deque(starts)
    while waiting:
        user = waiting.popleft()
        for source, access in reads[user]:
            if source.clock == clock and not access.is_causal:
                return _path(user, user_of, (source, access))
            if source not in user_of:
                user_of[source] = (user, access)
                waiting.append(source)
    return None


def _path(user: Node, user_of: Mapping[Node, tuple[Node, Access] | None], last: Read) -> tuple[Step, ...]:
    steps = [_step(*last)]
    node: Node | None = user
    while node is not None:
        reader = user_of[node]
        steps.append(_step(node, reader[1] if reader else None))
        node = reader[0] if reader else None
    return tuple(reversed(steps))


def _step(node: Node, access: Access | None) -> Step:
    return Step(node.name, node.op.name, show_type(node.type), access, node.location)


def _show_leak(leak: tuple[Step, ...]) -> str:
    """The path, one node per line; the last line is the first value that comes from the future."""
    lines = []
    for step in leak:
        access = "" if step.access is None else f"[{step.access}]"
        read = f"  {'reads ' if step.access else ''}{step.name}{access}: {step.type} = {step.op}"
        lines.append(f"{read:<72}  {step.location}" if step.location else read)
    return "\n".join([f"{leak[0].name} depends on later positions of {leak[-1].name}", *lines])
