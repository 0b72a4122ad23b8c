"""Layers that repeat in a program: what could be one loop body instead.

A **unit** is one layer, or several where they alternate (a window, the whole past, a window, …): nodes after
which the program goes on with the same ops, parameters and types. Nothing here knows names. An operand of a
node in a unit is *inside* it, or *carried* from the unit before, or an input or a parameter of which every
unit has its *own*, or the same for all units:

    e = take(table, token)                             unit     h.i = contraction(x, w.i); x.i = add(x, h.i)
    h.0 = contraction(e, w.0)                          x        e, then x.{i-1}: carried
    x.0 = add(e, h.0)                           →      w.i      own
    h.1 = contraction(x.0, w.1)
    x.1 = add(x.0, h.1)
    logits = contraction(x.1, head)                    behind   logits, which reads the last x.i

Units are found where an order of the nodes repeats (``sequence.py``). The first and the last often stand
apart there, among what other nodes need, and are found by what reads what. What a unit yields must be a state
that it was given under the same name, and what stands behind reads only what the last one carries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from ...ir.graph import Graph, Node
from .sequence import Sequence, Stretch

_TRIED = 4  # stretches, from the longest on

Unit = tuple[Node, ...]


@dataclass(frozen=True)
class Inside:
    """The node at a place of the same unit."""

    place: int


@dataclass(frozen=True)
class Carried:
    """The node at a place of the unit before."""

    place: int


Operand = Node | Inside | Carried  # a node is a source, or outside of all units
Rows = tuple[tuple[Operand, ...], ...]  # the operands of each node of a unit


@dataclass(frozen=True, eq=False)
class Repetition:
    """Units of alike nodes in one order, and the nodes ``before`` and ``after`` them that are no sources.

    ``own`` are the sources that every unit has its own of, by that of the second, which stands for all:
    unlike the first it tells what is carried from what all read. ``carried`` are the places in a unit of what
    the next one reads, with what the first reads there. ``kept`` are the places of new states, with the
    states of the second unit that they replace, which are among ``own``.
    """

    before: Unit
    units: tuple[Unit, ...]
    after: Unit
    own: Mapping[Node, Unit]
    carried: Mapping[int, Node]
    kept: Mapping[int, Node]

    @property
    def unit(self) -> Unit:
        """The one that stands for all."""
        return self.units[1]


def find_repetition(graph: Graph) -> Repetition | None:
    """The units that cover most of a program without time; None where nothing repeats as a loop could."""
    sequence = Sequence(graph)
    for stretch in sequence.stretches()[:_TRIED]:
        found = [
            repetition
            for start in sequence.beginnings(stretch)
            if (repetition := _repetition(sequence, start, stretch)) is not None
        ]
        if found:
            return max(found, key=lambda repetition: len(repetition.units))
    return None


def _repetition(sequence: Sequence, start: int, stretch: Stretch) -> Repetition | None:
    """The units of a stretch that begin at ``start``, and those in front of it that fit."""
    end = stretch.start + stretch.length - stretch.period
    starts = range(start, end + 1, stretch.period)
    units = [tuple(sequence.nodes[at : at + stretch.period]) for at in starts]
    rows = operands(units[1], units[0])
    later = (operands(unit, before) for before, unit in pairwise(units[1:]))
    first = _first(sequence, units[0], rows)
    if first is None or not all(_same(sequence, a, b) for more in later for a, b in _pairs(more, rows)):
        return None
    while (unit := _unit_after(sequence, units, rows, first)) is not None:
        units.append(unit)
    while (unit := _unit_before(sequence, units, rows, first)) is not None:
        earlier = _first(sequence, unit, rows)
        if earlier is None:
            break
        units.insert(0, unit)
        first = earlier
    whole = _closed(sequence, units, first)
    if whole is not None or len(units) == 2:
        return whole
    return _closed(sequence, units[:-1], first)  # what follows may read more of the last one


def operands(unit: Unit, before: Unit) -> Rows:
    """The operands of each node of a unit that follows the unit ``before``."""
    places: dict[Node, Operand] = {node: Carried(place) for place, node in enumerate(before)}
    places |= {node: Inside(place) for place, node in enumerate(unit)}
    return tuple(tuple(places.get(source, source) for source in node.sources) for node in unit)


def _pairs(rows: Rows, others: Rows) -> Iterator[tuple[Operand, Operand]]:
    for row, other in zip(rows, others, strict=True):
        yield from zip(row, other, strict=True)


def _same(sequence: Sequence, a: Operand, b: Operand) -> bool:
    """Whether two units read alike: one node, one place, or sources of one kind."""
    if isinstance(a, Node) and isinstance(b, Node) and a.op.kind == b.op.kind == "source":
        return sequence.kind[a] == sequence.kind[b]
    return a == b


def _first(sequence: Sequence, unit: Unit, rows: Rows) -> dict[int, Node] | None:
    """What ``unit`` reads in the place of what is carried, if it is the first and reads ``rows`` else."""
    first: dict[int, Node] = {}
    for operand, other in _pairs(operands(unit, ()), rows):
        if isinstance(other, Carried):
            if not isinstance(operand, Node) or first.setdefault(other.place, operand) is not operand:
                return None
        elif not _same(sequence, operand, other):
            return None
    return first if all(node.type == unit[place].type for place, node in first.items()) else None


# ---- units beside those of the stretch ----


def _unit_before(sequence: Sequence, units: list[Unit], rows: Rows, first: Mapping[int, Node]) -> Unit | None:
    """The unit whose results the first of ``units`` reads, wherever its nodes stand."""
    return _matched(sequence, units[0], rows, list(first.items()))


def _unit_after(sequence: Sequence, units: list[Unit], rows: Rows, first: Mapping[int, Node]) -> Unit | None:
    """The unit that reads the results of the last of ``units``, wherever its nodes stand."""
    last, place = units[-1], max(first, default=0)
    for node in sequence.nodes[sequence.place[last[0]] :]:
        if sequence.kind[node] != sequence.kind[last[place]] or node in last:
            continue
        unit = _matched(sequence, last, rows, [(place, node)])
        if unit is not None and all(_same(sequence, a, b) for a, b in _pairs(operands(unit, last), rows)):
            return unit
    return None


def _matched(sequence: Sequence, unit: Unit, rows: Rows, waiting: list[tuple[int, Node]]) -> Unit | None:
    """Another unit like ``unit``, from the nodes that are ``waiting`` for their places to what they read."""
    found: dict[int, Node] = {}
    while waiting or len(found) < len(unit):
        place, node = waiting.pop() if waiting else _reader(sequence, unit, rows, found)
        if node is None or sequence.kind.get(node) != sequence.kind[unit[place]]:
            return None
        if found.setdefault(place, node) is not node:
            return None
        for operand, source in zip(rows[place], node.sources, strict=True):
            if isinstance(operand, Inside) and operand.place not in found:
                waiting.append((operand.place, source))
    matched = tuple(found[place] for place in range(len(unit)))
    return matched if len({*matched, *unit}) == 2 * len(unit) else None


def _reader(sequence: Sequence, unit: Unit, rows: Rows, found: Mapping[int, Node]) -> tuple[int, Node | None]:
    """A place that nothing found so far reads, like that of a new state, and a node for it."""
    place = next(place for place in range(len(unit)) if place not in found)
    read = (o.place for o in rows[place] if isinstance(o, Inside) and o.place in found)
    users = (user for at in read for user in sequence.graph.users[found[at]] if user not in found.values())
    return place, next((u for u in users if sequence.kind.get(u) == sequence.kind[unit[place]]), None)


# ---- what is around the units ----


def _closed(sequence: Sequence, units: list[Unit], first: Mapping[int, Node]) -> Repetition | None:
    """The units as one loop; None where something outside of them reads what a loop does not yield."""
    graph = sequence.graph
    home = {node: (number, place) for number, unit in enumerate(units) for place, node in enumerate(unit)}
    last = len(units) - 1
    for node, (number, place) in home.items():
        for user in graph.users[node]:
            reader = home.get(user, (last + 1, 0))[0]
            follows = reader == number + 1 and place in first
            if user in sequence.place and reader != number and not follows:
                return None
    own = _own(units)
    kept = None if own is None else _kept(graph, home, own, first)
    if own is None or kept is None:
        return None
    behind: set[Node] = set(home)
    for node in sequence.nodes:
        if not behind.isdisjoint(node.sources):
            behind.add(node)
    rest = [node for node in sequence.nodes if node not in home]
    before = tuple(node for node in rest if node not in behind)
    after = tuple(node for node in rest if node in behind)
    return Repetition(before, tuple(units), after, own, first, kept)


def _own(units: list[Unit]) -> dict[Node, Unit] | None:
    """The sources that differ from unit to unit; None where one of the second has two counterparts."""
    own: dict[Node, Unit] = {}
    for nodes in zip(*units, strict=True):
        for sources in zip(*(node.sources for node in nodes), strict=True):
            second = sources[1]
            if second.op.name in ("input", "parameter") and own.setdefault(second, sources) != sources:
                return None
    return {source: each for source, each in own.items() if len(set(each)) > 1}


def _kept(
    graph: Graph, home: Mapping[Node, tuple[int, int]], own: Mapping[Node, Unit], first: Mapping[int, Node]
) -> dict[int, Node] | None:
    """The states that units replace; None where a unit yields anything else."""
    inputs = {node.name: node for node in graph.inputs}
    count = max(number for number, _ in home.values()) + 1
    replaced: dict[int, dict[int, Node]] = {}
    for name, node in graph.outputs.items():
        if node not in home:
            continue
        number, place = home[node]
        if number == count - 1 and place in first and name not in inputs:
            continue  # what the last one carries
        if name not in inputs or inputs[name].type != node.type or number in replaced.get(place, ()):
            return None
        replaced.setdefault(place, {})[number] = inputs[name]
    kept: dict[int, Node] = {}
    for place, states in replaced.items():
        each = tuple(states.get(number) for number in range(count))
        if each[1] is None or own.get(each[1]) != each:
            return None
        kept[place] = each[1]
    return kept if len(set(kept.values())) == len(kept) else None
