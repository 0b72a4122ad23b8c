"""A graph from afar: one box for each scope, repeated scopes in one box, and what flows between them.

The table on top of folded text and the drawing at the level of layers are made from this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from ..graph import Graph, Node
from ..time import NOW, Access, delay_access
from ..types import show_type
from .fold import fold
from .layers import NUMBERED, Block, Repeat, show_numbers

LISTED = 3  # names in one cell of the table


@dataclass(frozen=True, eq=False)
class Box:
    """The nodes of one scope, or of the same scope in each unit of a repeat.

    ``nodes`` are written out, those of the first unit; ``every_node`` are all. ``path`` is the scope,
    with ``0-31`` in the place of a number that is repeated. ``repeat`` is what it is a part of.
    """

    path: str
    nodes: tuple[Node, ...]
    every_node: tuple[Node, ...]
    repeat: Repeat | None = None

    @property
    def times(self) -> int:
        return self.repeat.count if self.repeat else 1


@dataclass(frozen=True)
class Flow:
    """What one box reads of another, or of itself at other positions: ``names`` are of the sources.

    ``onward`` is what one unit of a repeat hands to another.
    """

    source: Box
    user: Box
    access: Access
    names: tuple[str, ...]
    onward: bool = False


def boxes(graph: Graph, expand: Collection[str] = ()) -> tuple[Box, ...]:
    """The boxes in the order in which they are computed. Unscoped nodes go by how their names begin."""
    found: dict[str, list[Box]] = {}
    for block in fold(graph, expand):
        for box in _boxes_of(block, graph):
            found.setdefault(box.path, []).append(box)
    return tuple(_joined(parts) for parts in found.values())


def _boxes_of(block: Block, graph: Graph) -> Iterable[Box]:
    places: dict[str, list[int]] = {}
    for position, node in enumerate(block.nodes):
        places.setdefault(_place(node, graph), []).append(position)
    for scope, positions in places.items():
        path, units = scope, block.units or (block.nodes,)
        if block.repeat:
            family, _, index = block.of(block.nodes[positions[0]])
            path = f"{family.prefix}.{_numbers(block, index)}{scope[len(f'{family.prefix}.{index}') :]}"
        every = tuple(unit[position] for unit in units for position in positions)
        yield Box(path, tuple(block.nodes[p] for p in positions), every, block.repeat)


def _place(node: Node, graph: Graph) -> str:
    """The scope of a node; of an unscoped constant, that of what reads it."""
    users = graph.users[node] if node.op.name == "constant" else ()
    return node.scope or next((user.scope for user in users if user.scope), node.name.partition(".")[0])


def _numbers(block: Block, index: int) -> str:
    """``0-31``; ``1,3…31`` for the second of two layers that make a unit."""
    assert block.repeat
    numbers = block.repeat.numbers[index - block.repeat.first :: block.repeat.period]
    if block.repeat.period == 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return f"{numbers[0]},{numbers[1]}" + (f"…{numbers[-1]}" if len(numbers) > 2 else "")


def _joined(parts: list[Box]) -> Box:
    """Parts of one scope that other scopes lie between."""
    if len(parts) == 1:
        return parts[0]
    nodes = tuple(node for box in parts for node in box.nodes)
    return Box(parts[0].path, nodes, tuple(node for box in parts for node in box.every_node), parts[0].repeat)


def input_boxes(graph: Graph, of: Iterable[Box]) -> tuple[Box, ...]:
    """A box for each input that is read; inputs that differ in their number and go to one box are one."""
    box_of = {node: box for box in of for node in box.every_node}
    alike: dict[tuple[object, ...], list[Node]] = {}
    for node in graph.inputs:
        readers = tuple(dict.fromkeys(box_of[user] for user in graph.users[node] if user in box_of))
        match = NUMBERED.fullmatch(node.name)
        repeated = match is not None and len(readers) == 1 and readers[0].times > 1
        pattern = (match[1], match[3]) if match and repeated else (node.name,)
        if readers:
            alike.setdefault((pattern, readers), []).append(node)
    return tuple(Box(_path_of(nodes), (nodes[0],), tuple(nodes)) for nodes in alike.values())


def _path_of(inputs: list[Node]) -> str:
    numbered = [match for node in inputs if (match := NUMBERED.fullmatch(node.name))]
    if len(inputs) == 1 or not numbered:
        return inputs[0].name
    numbers = show_numbers(int(match[2]) for match in numbered)
    return f"{numbered[0][1]}{numbers}{numbered[0][3] or ''}"


def flows(graph: Graph, of: Iterable[Box]) -> tuple[Flow, ...]:
    """What boxes, also those of inputs, are read by others, and by themselves at other positions."""
    box_of = {node: box for box in of for node in box.every_node}
    unit_of = {
        node: i // len(box.nodes)
        for box in dict.fromkeys(box_of.values())
        for i, node in enumerate(box.every_node)
    }
    edges = [(edge.source, user, edge.access) for user in box_of for edge in user.inputs]
    edges += [(value, previous, delay_access(1)) for previous, value in graph.feedback]
    names: dict[tuple[Box, Box, Access, bool], dict[str, None]] = {}
    for source, user, access in edges:
        if source in box_of and user in box_of:
            origin, box = box_of[source], box_of[user]
            within = origin.repeat is not None and origin.repeat is box.repeat
            onward = within and unit_of[source] != unit_of[user]
            if origin is not box or onward or access != NOW:
                names.setdefault((origin, box, access, onward), {})[_short(source)] = None
    return tuple(Flow(s, u, access, tuple(named), onward) for (s, u, access, onward), named in names.items())


def _short(node: Node) -> str:
    return node.name.removeprefix(f"{node.scope}.") if node.scope else node.name


# ---- the table ----


def outline_rows(
    graph: Graph, expand: Collection[str] = (), measures: Mapping[str, Callable[[Node], int]] | None = None
) -> list[tuple[str, ...]]:
    """The cells of a table: a head, then a row for each box; ``measures`` are summed over its nodes."""
    measures = measures or {}
    outputs = set(graph.outputs.values())
    rows = [("scope", "nodes", "weights", *measures, "reads", "remembers", "yields")]
    shown = boxes(graph, expand)
    box_of = {node: box for box in (*shown, *input_boxes(graph, shown)) for node in box.every_node}
    for box in shown:
        nodes = f"{len(box.nodes)}" if box.times == 1 else f"{len(box.nodes)} × {box.times}"
        sums = [f"{sum(map(measure, box.every_node)):,}" for measure in measures.values()]
        rows.append(
            (
                box.path,
                nodes,
                f"{weight_bytes(box):,}",
                *sums,
                _listed(_read_by(box, box_of)),
                _listed(_remembered(graph, box)),
                _listed(_yielded(graph, box, box_of, outputs)),
            )
        )
    return rows


def weight_bytes(box: Box) -> int:
    """Bytes of the weights that the nodes of a box read."""
    weights = dict.fromkeys(s for n in box.every_node for s in n.sources if s.op.name == "parameter")
    return sum(weight.tensor.bytes for weight in weights if weight.tensor.is_static)


def _read_by(box: Box, box_of: Mapping[Node, Box]) -> Iterable[str]:
    """What a box reads of others; a repeated one may read something else the first time."""
    for position, node in enumerate(box.nodes):
        second = box.every_node[position + len(box.nodes)] if box.times > 1 else node
        for first, then in zip(node.sources, second.sources, strict=True):
            names = dict.fromkeys(_outside_name(source, box, box_of) for source in (first, then))
            yield " then ".join(filter(None, names))


def _outside_name(source: Node, box: Box, box_of: Mapping[Node, Box]) -> str:
    origin = box_of.get(source, box)
    if origin is box:
        return ""
    if source.op.name == "input":
        return origin.path
    return f"{origin.path}.{_short(source)}" if source.scope else source.name


def _remembered(graph: Graph, box: Box) -> Iterable[str]:
    for node in box.nodes:
        yield from (f"{_short(e.source)}[{e.access}]" for e in node.inputs if e.access != NOW)
    yield from (f"{_short(value)}[t-1]" for previous, value in graph.feedback if previous in box.nodes)


def _yielded(graph: Graph, box: Box, box_of: Mapping[Node, Box], outputs: Collection[Node]) -> Iterable[str]:
    unit_of = {node: i // len(box.nodes) for i, node in enumerate(box.every_node)}
    for position, node in enumerate(box.nodes):
        alike = box.every_node[position :: len(box.nodes)] if box.times > 1 else (node,)
        if any(
            n in outputs or any(unit_of.get(user) != unit_of[n] for user in graph.users[n]) for n in alike
        ):
            yield f"{_short(node)}: {show_type(node.type)}"


def _listed(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(filter(None, names)))
    more = f" … {len(unique) - LISTED} more" if len(unique) > LISTED else ""
    return ", ".join(unique[:LISTED]) + more
