"""What repeats in a graph: scopes ``layers.0``, ``layers.1`` … that are built alike.

Layers are alike when their nodes have the same names behind the number, the same ops, parameters and
types, and read the same things as seen from the layer: itself, an earlier layer, or what is outside.
Only the first may read something else in the place of the layer before it: that is *carried*. A
period of several layers (a window, the whole past, a window, …) is a unit. What the first layer makes
and all others read, like a mask, stands before the repeat.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx

from .graph import Graph, Node, postorder
from .text import Note, inline_literals, print_graph, show_name, show_params
from .types import show_type

LONGEST_PERIOD = 8
MOST_CARRIED = 4  # names at the head of a repeat; more would be harder to read than the layers
_INDEX = re.compile(r"\{i(?:[+-]\d+)?\}")
_NUMBERED = re.compile(r"((?:[^.]+\.)*?)(0|[1-9]\d*)(\..*)?")


@dataclass(frozen=True)
class Repeat:
    """Scopes from ``prefix.first`` on that repeat after ``period`` of them, ``count`` times."""

    prefix: str
    first: int
    period: int
    count: int

    @property
    def bases(self) -> range:
        """The number of the first scope of each unit."""
        return self.numbers[:: self.period]

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.period * self.count)

    @property
    def span(self) -> str:
        """``0-31``, with ``by 2`` where two scopes make a unit."""
        by = f" by {self.period}" if self.period > 1 else ""
        return f"{self.first}-{self.numbers[-1]}{by}"

    def __str__(self) -> str:
        return f"{self.prefix}.{self.span}"


@dataclass(frozen=True)
class Carried:
    """An operand ``{name}`` that the first unit reads from ``first``, and every later one from ``then``."""

    name: str
    first: str
    then: str


@dataclass(frozen=True, eq=False)
class Block:
    """Nodes that are written together, in order; of a repeat, those of its first unit.

    A repeat also has its ``family``, all ``units`` (the same nodes in the same order), and the
    ``operands`` of each node as patterns: ``layers.{i-1}.x``, or ``{x}`` for what is carried.
    """

    nodes: tuple[Node, ...]
    repeat: Repeat | None = None
    family: Family | None = None
    units: tuple[tuple[Node, ...], ...] = ()
    operands: Mapping[Node, tuple[str, ...]] = field(default_factory=dict)
    carried: tuple[Carried, ...] = ()

    def of(self, node: Node) -> tuple[Family, int, int]:
        """Of a node in a repeat: its family, where the repeat begins, and its own number."""
        assert self.family is not None
        assert self.repeat is not None
        index = self.family.owner(node)
        assert index is not None
        return self.family, self.repeat.first, index

    @property
    def bases(self) -> range:
        """The numbers at which the units begin; none of what is no repeat."""
        return self.repeat.bases if self.repeat else range(0)

    @cached_property
    def every_node(self) -> tuple[Node, ...]:
        return tuple(node for unit in self.units for node in unit) or self.nodes


def fold(graph: Graph, expand: Collection[str] = ()) -> tuple[Block, ...]:
    """The nodes of a graph in blocks, each after what it reads; inputs and literals are in none.

    Scopes that ``expand`` names, and those around and inside them, are not repeated.
    """
    hidden = {*graph.inputs, *graph.parameters, *inline_literals(graph)}
    nodes = [node for node in graph.nodes if node not in hidden]
    if any("{" in node.name for node in graph.nodes):  # would be mistaken for a pattern
        return _arrange(nodes, [])
    prefixes = dict.fromkeys(prefix for node in nodes if (prefix := _prefix(node.scope)) is not None)
    repeats = [block for prefix in prefixes for block in Family(graph, prefix, nodes, expand).repeats()]
    return _arrange(nodes, repeats)


def _prefix(scope: str) -> str | None:
    """What stands before the first number of a scope."""
    match = _NUMBERED.fullmatch(scope)
    return match[1][:-1] if match and match[1] else None


def names_scope(expand: Collection[str], scope: str) -> bool:
    """Whether ``expand`` names the scope, one around it, or one inside it."""
    return any(f"{scope}.".startswith(f"{e}.") or f"{e}.".startswith(f"{scope}.") for e in expand)


def show_index(offset: int) -> str:
    """A number relative to that of the unit: ``{i}``, ``{i-1}``."""
    return f"{{i{offset:+}}}" if offset else "{i}"


def show_pattern(pattern: str) -> str:
    """A pattern of names as it is written: quoted where the names must be."""
    return pattern if show_name(_INDEX.sub("0", pattern))[0] != '"' else json.dumps(pattern)


# ---- layers that are alike ----


class Family:
    """The scopes ``prefix.0``, ``prefix.1`` … of one graph."""

    def __init__(self, graph: Graph, prefix: str, nodes: Iterable[Node], expand: Collection[str]) -> None:
        self.prefix = prefix
        self._literals = inline_literals(graph)
        self._owner = {node: index for node in nodes if (index := self._index(node.scope)) is not None}
        self._members = self._by_index()
        self._read_by_many, made_for_all = self._read_elsewhere(graph)
        for node in made_for_all:
            del self._owner[node]
        self._members = {
            i: rest for i, rest in self._by_index().items() if not names_scope(expand, f"{prefix}.{i}")
        }
        for node in (*graph.inputs, *graph.parameters):
            owners = {self._owner.get(user) for user in graph.users[node]}
            if len(owners) == 1 and (index := owners.pop()) is not None:
                self._owner[node] = index
        self._body_names = Counter(body.name for node in nodes for body in _bodies(node))
        self._signatures: dict[Node, tuple[object, ...]] = {}

    def _index(self, scope: str) -> int | None:
        match = _NUMBERED.fullmatch(scope)
        return int(match[2]) if match and match[1] == f"{self.prefix}." else None

    def _by_index(self) -> dict[int, dict[str, Node]]:
        """For each scope, its nodes by what their names have behind the number."""
        members: dict[int, dict[str, Node]] = {}
        for node, index in self._owner.items():
            members.setdefault(index, {})[self._rest(node)] = node
        return members

    def _rest(self, node: Node) -> str:
        return node.name.removeprefix(f"{self.prefix}.{self._owner[node]}.")

    def _read_elsewhere(self, graph: Graph) -> tuple[set[Node], list[Node]]:
        """What several other layers read, and of that what these have no such node for themselves.

        The latter comes with what it needs. What only the next layer reads may be carried.
        """
        several = min(2, len(self._members) - 1)
        read: set[Node] = set()
        made: list[Node] = []
        for node, index in self._owner.items():
            others = {self._owner.get(user, index) for user in graph.users[node]} - {index}
            if others and len(others) >= several:
                read.add(node)
                if all(self._rest(node) not in self._members[other] for other in others):
                    made.append(node)
        needs = postorder(made, lambda node: [source for source in node.sources if source in self._owner])
        return (read if several > 1 else set()), needs

    # -- names --

    def owner(self, node: Node) -> int | None:
        """The number of the scope that a node is in, or that alone uses an input or a weight."""
        return self._owner.get(node)

    def relative(self, node: Node, base: int) -> str:
        """The name of a node as a pattern, seen from the unit that begins at ``base``."""
        return self.pattern(node.name, self._owner.get(node), base)

    def pattern(self, name: str, index: int | None, base: int) -> str:
        """A name in which the number ``index`` is written relative to ``base``."""
        if index is None:
            return name
        own = f"{self.prefix}.{index}"
        if f"{name}.".startswith(f"{own}."):
            return f"{self.prefix}.{show_index(index - base)}{name[len(own) :]}"
        match = _NUMBERED.fullmatch(name)
        if match is None or match[2] != str(index):
            return name
        return f"{match[1]}{show_index(index - base)}{match[3] or ''}"

    def body_text(self, body: Graph, index: int, base: int, comment: Note | None = None) -> str:
        """The printed body of a loop in layer ``index``, with that number relative to ``base``."""
        own = re.compile(rf"(?<![\w-]){re.escape(self.prefix)}\.{index}(?![\w-])")
        text = print_graph(body, locations=False, note=comment)
        return own.sub(f"{self.prefix}.{show_index(index - base)}", text)

    # -- runs --

    def repeats(self) -> Iterator[Block]:
        """The repeats, from the first layer on; of several that begin there, the longest."""
        indices = sorted(self._members)
        end = -1
        for index in indices:
            if index <= end:
                continue
            runs = [self._run(index, period) for period in range(1, LONGEST_PERIOD + 1)]
            best = max(runs, key=lambda run: run.count * run.period if run.count > 1 else 1)
            if best.count > 1:
                end = best.bases[-1] + best.period - 1
                yield self._block(best)

    def _run(self, first: int, period: int) -> Repeat:
        """How often the unit at ``first`` repeats."""
        count, second = 1, first + period
        if self._alike(first, second, period) and self._carries(first, period) is not None:
            pattern, count = self._reads(second, period), 2
            while (
                self._alike(first, base := first + count * period, period)
                and self._reads(base, period) == pattern
            ):
                count += 1
        return Repeat(self.prefix, first, period, count)

    def _alike(self, first: int, base: int, period: int) -> bool:
        """Whether two units have the same nodes, apart from what these read."""
        for offset in range(period):
            one, other = self._members.get(first + offset), self._members.get(base + offset)
            if one is None or other is None or one.keys() != other.keys():
                return False
            if any(self._signature(node) != self._signature(other[rest]) for rest, node in one.items()):
                return False
        return True

    def _signature(self, node: Node) -> tuple[object, ...]:
        if node not in self._signatures:
            index = self._owner[node]
            bodies = []
            for body in _bodies(node):
                text = self.body_text(body, index, index)
                # The label of a section is its name only if no other has it, and holds no further one.
                plain = self._body_names[body.name] == 1 and "\ngraph " not in text
                bodies.append(text if plain else str(id(body)))
            params = show_params(node, lambda body: self.pattern(body.name, index, index))
            scope = self.pattern(node.scope, index, index)
            self._signatures[node] = (scope, node.op.name, *params, show_type(node.type), node.clock, *bodies)
        return self._signatures[node]

    def _unit(self, base: int, period: int) -> list[Node]:
        """The nodes of a unit, in an order that is the same for all units."""
        scopes = (self._members[base + offset] for offset in range(period))
        return [scope[rest] for scope in scopes for rest in sorted(scope)]

    def _reads(self, base: int, period: int) -> list[tuple[str, ...]]:
        return [self._operands(node, base) for node in self._unit(base, period)]

    def _operands(self, node: Node, base: int) -> tuple[str, ...]:
        return tuple(self._operand(source, base) for source in node.sources)

    def _operand(self, source: Node, base: int) -> str:
        fixed = source in self._literals or source in self._read_by_many
        return self._plain(source) if fixed else show_pattern(self.relative(source, base))

    def _plain(self, source: Node) -> str:
        return self._literals.get(source) or show_name(source.name)

    def _carries(self, first: int, period: int) -> list[tuple[str, str]] | None:
        """What the first unit reads and what the second reads instead, by name and as a pattern.

        None where no repeat can say it: too much differs, or a unit reads one that is built later.
        """
        pairs: dict[tuple[str, str], None] = {}
        units = zip(self._unit(first, period), self._unit(first + period, period), strict=True)
        for one, other in units:
            for source, then in zip(one.sources, other.sources, strict=True):
                is_scope = then.op.name not in ("input", "parameter")
                ahead = self._owner.get(then, -1) - first - period if is_scope else -1
                if ahead >= period or self._operand(source, first) != self._operand(then, first + period):
                    if ahead >= 0:
                        return None
                    pairs[self._plain(source), self._operand(then, first + period)] = None
        return list(pairs) if len(pairs) <= MOST_CARRIED else None

    def _block(self, repeat: Repeat) -> Block:
        """The block of a repeat, in an order in which every unit can be written."""
        first, period = repeat.first, repeat.period
        unit = self._unit(first, period)
        rank = {node: i for i, node in enumerate(self._owner)}
        ordered = sorted(unit, key=rank.__getitem__)
        nodes = [n for group in _together(ordered, {n: n.scope for n in ordered}) for n in group]
        place = {node: i for i, node in enumerate(unit)}
        order = [place[node] for node in nodes]
        units = [self._unit(base, period) for base in repeat.bases]
        pairs = self._carries(first, period) or []
        names = _names_for([then for _, then in pairs])
        carried = tuple(Carried(name, *pair) for name, pair in zip(names, pairs, strict=True))
        return Block(
            tuple(nodes),
            repeat,
            self,
            tuple(tuple(unit[i] for i in order) for unit in units),
            {node: self._patterns(node, units[1][place[node]], repeat, carried) for node in nodes},
            carried,
        )

    def _patterns(
        self, node: Node, second: Node, repeat: Repeat, carried: tuple[Carried, ...]
    ) -> tuple[str, ...]:
        names = {(c.first, c.then): f"{{{c.name}}}" for c in carried}
        own, then = self._operands(node, repeat.bases[0]), self._operands(second, repeat.bases[1])
        plain = [self._plain(source) for source in node.sources]
        return tuple(a if a == b else names[first, b] for a, b, first in zip(own, then, plain, strict=True))


def _bodies(node: Node) -> list[Graph]:
    return [value for value in node.params.values() if isinstance(value, Graph)]


def _names_for(patterns: list[str]) -> list[str]:
    """A short name for each pattern: the end of it, if that is a word; ``i`` is the unit's number."""
    taken = {"i", "true", "false", "inf", "nan"}
    names = []
    for pattern in patterns:
        base = re.sub(r"\W", "_", pattern.rpartition(".")[2]) or "x"
        base = base if base[0].isalpha() else f"x{base}"
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}{number}"
        taken.add(name)
        names.append(name)
    return names


# ---- order ----

Group = Block | str | Node  # a repeat, a scope, or a node on its own


def _arrange(nodes: list[Node], repeats: list[Block]) -> tuple[Block, ...]:
    group_of: dict[Node, Group] = {node: node.scope or node for node in nodes}
    group_of |= {node: block for block in repeats for node in block.every_node}
    blocks: list[Block] = []
    loose: list[Node] = []
    for group in _together(nodes, group_of):
        repeat = group_of[group[0]]
        if isinstance(repeat, Block):
            blocks += [Block(tuple(loose)), repeat] if loose else [repeat]
            loose = []
        else:
            loose += group
    return (*blocks, Block(tuple(loose))) if loose else tuple(blocks)


def _together(nodes: list[Node], group_of: dict[Node, Group]) -> list[list[Node]]:
    """The nodes by group, each group after what it reads.

    Of groups that read each other, scopes fall apart into nodes first (in ``group_of``, too), then
    repeats into scopes.
    """
    while True:
        reads: dict[Group, dict[Group, None]] = {}
        for node in nodes:
            own = reads.setdefault(group_of[node], {})
            own.update(dict.fromkeys(group_of[source] for source in node.sources if source in group_of))
        flow = nx.DiGraph((source, group) for group, sources in reads.items() for source in sources)
        flow.remove_edges_from([(group, group) for group in reads])
        tangled = [
            group for part in nx.strongly_connected_components(flow) if len(part) > 1 for group in part
        ]
        if not tangled:
            break
        scopes = {group for group in tangled if isinstance(group, str)} or set(tangled)
        for node in nodes:
            if group_of[node] in scopes:
                group_of[node] = node if isinstance(group_of[node], str) else node.scope
    members: dict[Group, list[Node]] = {}
    for node in nodes:
        members.setdefault(group_of[node], []).append(node)
    return [members[group] for group in postorder(members, lambda group: reads[group])]
