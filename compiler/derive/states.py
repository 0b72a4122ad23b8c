"""Choosing the state: which streams to keep so that every history can be had again.

A history needs the past values of its source x. They can be stored, or recomputed from stored
values further up. Per past position and step, storing v costs its bytes (memory held, and read
again); recomputing v costs its work, turned into bytes by the machine balance. The cheapest choice
is a minimum cut between "nothing is known of the past" and the demanded streams:

    SOURCE ──recompute v──▶ v.computed ──bytes of v──▶ v.known ──∞──▶ (users of v).computed
                                                       x.known ──∞──▶ DEMANDED

Cutting the middle edge stores v, cutting the first recomputes it from its operands. Positions can be
counted, so they are known for free; inputs cannot be recomputed; what has time inside (a history, a
delay, a feedback) is not recomputed, because that would take its own past along.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...ir.errors import SystolicError
from ...ir.graph import Graph, Node
from ...ir.time import Access, window_access
from ...ir.types import Past
from ..collection import paused_collection
from ..measures import OPERATIONS_PER_BYTE
from ..passes.narrow_states import rounded_from
from ..program import STRATEGIES
from .sources import constants_read

if TYPE_CHECKING:
    import networkx as nx

_UNITS = 16  # cut capacities are whole numbers of 1/16 byte, so that the cut is exact


@dataclass(frozen=True)
class StatePlan:
    """What a graph keeps from step to step.

    ``histories`` maps each stored stream to the widest window that it is read through (None: the
    whole prefix). ``layouts`` maps each ragged dimension to the window class whose slots it uses
    (dimensions that share a stored stream share slots); ``tails`` maps delayed streams to the longest
    delay; ``carries`` are feedback nodes; ``constants`` what a finished clock leaves.
    """

    strategy: str
    clock: str
    histories: Mapping[Node, int | None]
    layouts: Mapping[Past, int | None]
    tails: Mapping[Node, int]
    carries: tuple[Node, ...]
    constants: tuple[Node, ...]
    reasons: Mapping[Node, str]

    def access(self, node: Node) -> Access:
        return window_access(self.histories[node])


@paused_collection()
def choose_states(graph: Graph, strategy: str = "auto", *, keep: Collection[str] | None = None) -> StatePlan:
    """The streams to keep, for decoding the clock of the first output.

    ``auto`` finds the minimum cut, ``sources`` stores exactly what each history reads, ``tokens``
    stores only the model's inputs and recomputes everything from them at every step: the program
    without a cache. ``keep`` names the streams to store instead, which another form of the same model
    has chosen. Raises ``SystolicError`` for another strategy.
    """
    if strategy not in STRATEGIES:
        raise SystolicError(f"state must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    clock = next(iter(graph.outputs.values())).clock
    if clock is None:
        raise SystolicError(f"the output of {graph.name} is constant: there is nothing to decode")
    histories = [n for n in graph.nodes if n.op.name == "history" and n.clock == clock]
    constants = constants_read(graph, clock)
    if strategy == "tokens":
        inputs = [n for n in graph.inputs if n.clock == clock]
        return StatePlan(
            strategy,
            clock,
            histories=dict.fromkeys(inputs),  # to None: the whole prefix
            layouts={_dimension(h): None for h in histories},
            tails={},
            carries=(),
            constants=constants,
            reasons=dict.fromkeys(inputs, "an input; everything else is recomputed from it"),
        )
    demanded = dict.fromkeys(h.sources[0] for h in histories)
    is_stored = _storing(graph, strategy, demanded, keep)
    served = {h: stored_behind(h.sources[0], is_stored) for h in histories}
    layouts = _share_layouts(served)
    kept = {n: layouts[_dimension(h)] for h, stored in served.items() for n in stored}
    tails: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op.name == "delay" and node.clock == clock:
            source = node.sources[0]
            tails[source] = max(tails.get(source, 0), node.params["steps"])
    carries = tuple(node for node, _ in graph.feedback if node.clock == clock)
    had = "recomputed from" if keep is None else "read through"
    reasons = {node: _explain(node, served, strategy, had) for node in kept}
    return StatePlan(strategy, clock, kept, layouts, tails, carries, constants, reasons)


def _dimension(history: Node) -> Past:
    dim = history.tensor.shape[0]
    assert isinstance(dim, Past)
    return dim


def _storing(
    graph: Graph, strategy: str, demanded: Collection[Node], keep: Collection[str] | None
) -> Callable[[Node], bool]:
    """Whether a stream's past is kept, and not had from what is kept before it."""
    if keep is not None:
        return lambda node: node.name in keep
    recomputed = _recomputed(graph, demanded) if strategy == "auto" else frozenset()
    return lambda node: node not in recomputed


def stored_behind(source: Node, is_stored: Callable[[Node], bool]) -> tuple[Node, ...]:
    """The stored streams from which the past of ``source`` is had."""
    found, pending, seen = [], [source], {source}
    while pending:
        node = pending.pop()
        if is_stored(node):
            found.append(node)
            continue
        for operand in node.sources:
            if operand.clock is not None and operand not in seen:
                seen.add(operand)
                pending.append(operand)
    return tuple(found)


def _share_layouts(served: Mapping[Node, tuple[Node, ...]]) -> dict[Past, int | None]:
    """Ragged dimensions that read one stored stream use the same slots: the widest window of them."""
    from networkx.utils import UnionFind

    groups = UnionFind(_dimension(h) for h in served)
    reader: dict[Node, Past] = {}
    for history, stored in served.items():
        for node in stored:
            groups.union(reader.setdefault(node, _dimension(history)), _dimension(history))
    layouts: dict[Past, int | None] = {}
    for group in groups.to_sets():
        windows = [dim.window for dim in group]
        widest = None if None in windows else max(w for w in windows if w is not None)
        layouts.update(dict.fromkeys(group, widest))
    return layouts


def recompute_cost(node: Node) -> float:
    """Work of one value in byte equivalents; infinite where the past cannot be recomputed."""
    if node.op.kind in ("time", "source") and node.op.name != "position":
        return float("inf")
    types = [source.type for source in node.sources]
    if not all(t.is_static for t in (*types, node.tensor)):  # type: ignore[union-attr]
        return float("inf")
    work = node.op.work(tuple(types), node.type, node.params)  # type: ignore[arg-type]
    operations = 2 * work.multiply_adds + work.elementwise
    return operations / OPERATIONS_PER_BYTE + work.bytes_moved


def _storage_cost(node: Node) -> float:
    if not node.tensor.is_static:
        return float("inf")
    # A bf16 costs a little more than its bits: XLA's CPU backend writes a whole state of them at each step.
    return node.tensor.bytes + (2 / _UNITS if node.tensor.dtype == "bf16" else 0)


def _recomputed(graph: Graph, demanded: Collection[Node]) -> frozenset[Node]:
    """The streams on the demanded side of the minimum cut: their past is recomputed, not stored.

    Solves each connected part alone; a stream whose recomputation costs at least as much as
    storing everything demanded behind it is never recomputed, which keeps the parts small."""
    import networkx as nx  # a tenth of a second to load; programs that are kept need no choice

    behind: dict[Node, frozenset[Node]] = {node: frozenset({node}) for node in demanded}
    operands: dict[Node, tuple[Node, ...]] = {}  # of each stream that may be recomputed, else none
    connected = nx.Graph()
    for node in reversed(graph.nodes):
        reached = behind.get(node)
        if node.clock is None or reached is None:
            continue
        connected.add_node(node)
        operands[node] = ()
        if recompute_cost(node) < sum(_storage_cost(x) for x in reached):
            operands[node] = tuple(source for source in node.sources if source.clock is not None)
            for source in operands[node]:
                behind[source] = behind.get(source, frozenset()) | reached
                connected.add_edge(node, source)
    parts = nx.connected_components(connected)
    return frozenset(node for part in parts for node in _cut_part(part, operands, demanded))


def _cut_part(
    part: Iterable[Node], operands: Mapping[Node, tuple[Node, ...]], demanded: Collection[Node]
) -> Iterator[Node]:
    """What the cheapest cut of one connected part recomputes."""
    import networkx as nx

    network = nx.DiGraph()
    for node in part:
        is_position = node.op.name == "position"
        recompute = recompute_cost(node) if operands[node] or is_position else float("inf")
        _connect(network, "source", (node, "computed"), recompute)
        storage = float("inf") if is_position else _storage_cost(node)
        _connect(network, (node, "computed"), (node, "known"), storage)
        if node in demanded:
            _connect(network, (node, "known"), "demanded", float("inf"))
        for source in operands[node]:
            _connect(network, (source, "known"), (node, "computed"), float("inf"))
    _, (_, known_side) = nx.minimum_cut(network, "source", "demanded")
    return (node for node in part if (node, "computed") in known_side)


def _connect(network: nx.DiGraph, start: object, end: object, cost: float) -> None:
    if cost == float("inf"):
        network.add_edge(start, end)  # networkx: no capacity is an infinite one
    else:
        # One unit for each op breaks ties towards the stream that needs no recomputation.
        network.add_edge(start, end, capacity=int(cost * _UNITS) + (1 if start == "source" else 0))


def _explain(node: Node, served: Mapping[Node, tuple[Node, ...]], strategy: str, had: str) -> str:
    readers = [h for h, stored in served.items() if node in stored]
    sources = list(dict.fromkeys(h.sources[0].name for h in readers))
    window = "prefix" if any(_dimension(h).window is None for h in readers) else "window"
    if strategy == "sources":
        return f"read through a {window}; kept as it is read, as asked"
    kept, rounded = node.tensor.bytes, rounded_from(node)
    if rounded is not None:
        parts = {part for stored in served.values() for part in stored if rounded_from(part) is rounded}
        kept = sum(part.tensor.bytes for part in parts)
        bytes_ = f"{kept:,} bytes per position instead of {rounded.tensor.bytes:,}"
        return f"read through a {window}; {rounded.name} is rounded: {bytes_}"
    if node.name in sources:
        bytes_ = f"{node.tensor.bytes:,} bytes per position"
        return f"read through a {window}; {bytes_}, and no stream before it is cheaper to keep"
    total = sum(h.sources[0].tensor.bytes for h in readers)
    return f"{', '.join(sources)} {had} it: {kept:,} bytes per position instead of {total:,}"
