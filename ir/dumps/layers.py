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
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..graph import Graph, Node, postorder
from ..types import show_type
from .grouping import together
from .text import Note, inline_literals, print_graph, show_name, show_params

LONGEST_PERIOD = 8
MOST_CARRIED = 4  # names at the head of a repeat; more would be harder to read than the layers
_INDEX = re.compile(r"\{i(?:[+-]\d+)?\}")
NUMBERED = re.compile(r"((?:[^.]+\.)*?)(0|[1-9]\d*)(\..*)?")  # a name, cut at its first number


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


def names_scope(expand: Collection[str], scope: str) -> bool:
    """Whether ``expand`` names the scope, one around it, or one inside it."""
    return any(f"{scope}.".startswith(f"{e}.") or f"{e}.".startswith(f"{scope}.") for e in expand)


def show_index(offset: int) -> str:
    """A number relative to that of the unit: ``{i}``, ``{i-1}``."""
    return f"{{i{offset:+}}}" if offset else "{i}"


def show_pattern(pattern: str) -> str:
    """A pattern of names as it is written: quoted where the names must be."""
    return pattern if show_name(_INDEX.sub("0", pattern))[0] != '"' else json.dumps(pattern)


def show_numbers(numbers: Iterable[int]) -> str:
    """``0-3,7``."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ranges)


# ---- layers that are alike ----


@dataclass(frozen=True)
class _Run:
    """A repeat with what each node of a unit reads, as patterns; no reads where nothing repeats."""

    repeat: Repeat
    reads: tuple[tuple[str, ...], ...] = ()


class Family:
    """The scopes ``prefix.0``, ``prefix.1`` … of one graph."""

    def __init__(self, graph: Graph, prefix: str, nodes: Iterable[Node], expand: Collection[str]) -> None:
        self.prefix = prefix
        self._literals = inline_literals(graph)
        self._owner = {node: index for node in nodes if (index := self._index(node.scope)) is not None}
        self._rank = {node: i for i, node in enumerate(self._owner)}
        self._members = self._by_index()
        for node in self._made_for_all(graph):
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
        match = NUMBERED.fullmatch(scope)
        return int(match[2]) if match and match[1] == f"{self.prefix}." else None

    def _by_index(self) -> dict[int, dict[str, Node]]:
        """For each scope, its nodes by what their names have behind the number."""
        members: dict[int, dict[str, Node]] = {}
        for node, index in self._owner.items():
            members.setdefault(index, {})[self._rest(node)] = node
        return members

    def _rest(self, node: Node) -> str:
        return node.name.removeprefix(f"{self.prefix}.{self._owner[node]}.")

    def _made_for_all(self, graph: Graph) -> list[Node]:
        """What one layer makes for others that have no such node of their own, with what that needs."""
        several = min(2, len(self._members) - 1)  # what only the next layer reads is carried
        made = []
        for node, index in self._owner.items():
            others = {self._owner.get(user, index) for user in graph.users[node]} - {index}
            lack_it = all(self._rest(node) not in self._members[other] for other in others)
            if others and len(others) >= several and lack_it:
                made.append(node)
        return postorder(made, lambda node: [source for source in node.sources if source in self._owner])

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
        match = NUMBERED.fullmatch(name)
        if match is None or match[2] != str(index):
            return name
        return f"{match[1]}{show_index(index - base)}{match[3] or ''}"

    def body_text(self, body: Graph, base: int, comment: Note | None = None) -> str:
        """The printed body of a loop, with the numbers of layers relative to ``base``."""
        layer = re.compile(rf"(?<![\w-])({re.escape(self.prefix)}\.)(0|[1-9]\d*)(?![\w-])")
        text = print_graph(body, locations=False, note=comment)
        return layer.sub(lambda match: match[1] + show_index(int(match[2]) - base), text)

    # -- runs --

    def repeats(self) -> Iterator[Block]:
        """The repeats, from the first layer on; of several that begin there, the longest."""
        end = -1
        for index in sorted(self._members):
            best = self._longest_run(index) if index > end else None
            if best is not None:
                end = best.repeat.numbers[-1]
                yield self._block(best)

    def _longest_run(self, first: int) -> _Run | None:
        """That of the shortest period if several are as long; None if nothing repeats."""
        best, last = None, max(self._members)
        for period in range(1, LONGEST_PERIOD + 1):
            run = self._run(first, period)
            if run.reads and (best is None or len(run.repeat.numbers) > len(best.repeat.numbers)):
                best = run
                if run.repeat.numbers[-1] == last:  # none is longer
                    break
        return best

    def _run(self, first: int, period: int) -> _Run:
        """How often the unit at ``first`` repeats, and what the nodes of a unit read."""
        count, base = 1, first + period
        ways: list[list[tuple[str, ...]]] = []
        while self._alike(first, base, period):
            unit = self._unit(base, period)
            new = [[self._ways(s, base, period, first) for s in node.sources] for node in unit]
            if ways:
                new = [
                    [tuple(way for way in old if way in now) for old, now in zip(*slots, strict=True)]
                    for slots in zip(ways, new, strict=True)
                ]
            if not all(slot for slots in new for slot in slots):
                break
            ways, count, base = new, count + 1, base + period
        reads = tuple(tuple(slot[0] for slot in slots) for slots in ways)
        run = _Run(Repeat(self.prefix, first, period, count), reads)
        return run if reads and self._carries(run) is not None else replace(run, reads=())

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
                text = self.body_text(body, index)
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

    def _ways(self, source: Node, base: int, period: int, first: int) -> tuple[str, ...]:
        """How a unit that begins at ``base`` can write an operand: relative to it, or by its name.

        ``first`` is where the repeat begins. What is built too late to be read cannot be written.
        """
        if source in self._literals:
            return (self._literals[source],)
        is_declared = source.op.name in ("input", "parameter")
        owner = self._owner.get(source, first)
        relative = show_pattern(self.relative(source, base))
        ways = [relative] if is_declared or owner < base + period else []
        ways += [show_name(source.name)] if is_declared or owner < first + period else []
        return tuple(dict.fromkeys(ways))

    def _carries(self, run: _Run) -> dict[tuple[str, str], None] | None:
        """What the first unit reads, by name, in the place of what the others read.

        None where no repeat can say it: too much differs, or it would be read before it is built.
        """
        first, period = run.repeat.first, run.repeat.period
        late = {  # what the second unit reads of itself, the first cannot read elsewhere
            show_pattern(self.relative(source, first + period))
            for node in self._unit(first + period, period)
            for source in node.sources
            if source.op.kind != "source" and self._owner.get(source, first) >= first + period
        }
        pairs: dict[tuple[str, str], None] = {}
        for node, patterns in zip(self._unit(first, period), run.reads, strict=True):
            for source, pattern in zip(node.sources, patterns, strict=True):
                if pattern not in self._ways(source, first, period, first):
                    if pattern in late:
                        return None
                    pairs[self._plain(source), pattern] = None
        return pairs if len(pairs) <= MOST_CARRIED else None

    def _plain(self, source: Node) -> str:
        return self._literals.get(source) or show_name(source.name)

    def _block(self, run: _Run) -> Block:
        """The block of a repeat, in an order in which every unit can be written."""
        first, period = run.repeat.first, run.repeat.period
        unit = self._unit(first, period)
        ordered = sorted(unit, key=self._rank.__getitem__)
        nodes = [n for group in together(ordered, {n: n.scope for n in ordered}) for n in group]
        place = {node: i for i, node in enumerate(unit)}
        units = [self._unit(base, period) for base in run.repeat.bases]
        pairs = list(self._carries(run) or ())
        names = names_for([then for _, then in pairs])
        carried = tuple(Carried(name, *pair) for name, pair in zip(names, pairs, strict=True))
        return Block(
            tuple(nodes),
            run.repeat,
            self,
            tuple(tuple(unit[place[node]] for node in nodes) for unit in units),
            {node: self._patterns(node, run.reads[place[node]], first, period, carried) for node in nodes},
            carried,
        )

    def _patterns(
        self, node: Node, reads: tuple[str, ...], first: int, period: int, carried: tuple[Carried, ...]
    ) -> tuple[str, ...]:
        """What a node of the first unit reads, with the names of what is carried."""
        names = {(c.first, c.then): f"{{{c.name}}}" for c in carried}
        return tuple(
            pattern
            if pattern in self._ways(source, first, period, first)
            else names[self._plain(source), pattern]
            for source, pattern in zip(node.sources, reads, strict=True)
        )


def _bodies(node: Node) -> list[Graph]:
    return [value for value in node.params.values() if isinstance(value, Graph)]


def names_for(patterns: list[str]) -> list[str]:
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
