"""The printed form with repeated scopes written once, under a table of the scopes.

    graph llama

    # scope            nodes  weights  reads                             keeps  yields
    # embed                8    2,048  token                                    .take: f32[16] …
    # layers.0-31.attn    34    3,136  embed.take, embed.cos, embed.sin  .k[0:t], .v[0:t]  .x: f32[16]

    repeat layers.0-31 as i, x = embed.take then layers.{i-1}.mlp.x
      scope layers.{i}.attn
        .multiply: f32[16] = multiply({x}, {x})

``parse_graph`` reads it back: see ``repeats`` for what a repeat stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..graph import Graph, Node
from ..time import delay_access
from .fold import fold
from .layers import Block, show_pattern
from .repeats import INDENT, show_repeat
from .text import (
    RELATIVE_NAME,
    Note,
    Sections,
    comments,
    inline_literals,
    show_declaration,
    show_definition,
    show_name,
    show_params,
    with_comment,
)


def print_folded(
    graph: Graph,
    *,
    expand: Collection[str] = (),
    heading: Sequence[str] = (),
    note: Note | None = None,
    locations: bool = True,
) -> str:
    """The graph as text with repeats folded, apart from the scopes that ``expand`` names.

    ``heading`` are lines of comment for the top; ``note`` says something of each node, in front of
    its source line.
    """
    if len({node.name for node in graph.nodes} - {""}) < len(graph.nodes):
        graph = graph.with_unique_names()
    writer = _Writer(graph, expand, comments(locations, note))
    return "\n\n".join(["\n".join(writer.lines(heading)), *writer.bodies()])


def search(graph: Graph, text: str, note: Note | None = None) -> str:
    """The lines of the nodes in which ``text`` occurs; what is found in every unit of a repeat, once."""
    writer = _Writer(graph, (), comments(True, note))
    found = [entry.line for entry in writer.declarations() if text in entry.line.text]
    parts = [list(_written(found))]
    for block in writer.blocks:
        hits = {node for node in block.every_node if text in writer.searched(node)}
        units = block.units or (block.nodes,)
        everywhere = [
            column[0] for column in zip(*units, strict=True) if block.repeat and hits.issuperset(column)
        ]
        if block.repeat and everywhere:
            lines = _written((writer.templated(block, node) for node in everywhere), INDENT)
            parts.append([_head(block, block.bases, carried=True), *lines])
            alike = {
                node for column in zip(*units, strict=True) if column[0] in everywhere for node in column
            }
            hits -= alike
        parts.append(list(_written(writer.plain(node) for node in block.every_node if node in hits)))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


@dataclass(frozen=True)
class _Line:
    """One statement, as it is written under ``scope``."""

    scope: str
    text: str
    comment: str = ""


@dataclass(frozen=True)
class _Entry:
    """A declaration, feedback or output: in full, and as a pattern where a unit of a repeat owns it."""

    line: _Line
    block: Block | None = None
    base: int = 0
    pattern: _Line | None = None


class _Writer:
    """Writes one graph and takes note of the bodies that are still to be written."""

    def __init__(self, graph: Graph, expand: Collection[str], comment: Note) -> None:
        self.graph, self.comment = graph, comment
        self.blocks = fold(graph, expand)
        self.literals = inline_literals(graph)
        self.sections = Sections(comment)
        self.label = self.sections.reference(graph)
        self.repeated: list[tuple[Block, Graph]] = []  # bodies that are written once for all units

    def lines(self, heading: Sequence[str]) -> Iterator[str]:
        yield f"graph {self.label}"
        yield from ("", *heading) if heading else ()
        yield ""
        yield from _listed(self.declarations())
        for block in self.blocks:
            yield ""
            if block.repeat:
                yield _head(block, block.bases, carried=True)
                yield from _written((self.templated(block, node) for node in block.nodes), INDENT)
            else:
                yield from _written(self.plain(node) for node in block.nodes)
        yield ""
        yield from _listed(self.feedback())
        yield from _listed(self.outputs())

    def bodies(self) -> Iterator[str]:
        """The bodies of loops as sections of their own, those of a repeat once."""
        yield from self.sections.texts(start=1)
        for block, body in self.repeated:
            family, first, _ = block.of(block.nodes[0])
            text = family.body_text(body, first, self.comment)
            lines = [f"{INDENT}{line}".rstrip() for line in text.split("\n")]
            yield "\n".join([_head(block, block.bases), *lines])

    # -- nodes --

    def plain(self, node: Node) -> _Line:
        sources = [self.literals.get(s) or show_name(s.name, node.scope) for s in node.sources]
        params = show_params(node, self.sections.reference)
        text = show_definition(node, show_name(node.name, node.scope), sources, params)
        return _Line(node.scope, text, self.comment(node))

    def searched(self, node: Node) -> str:
        """All that a search looks at: names in full, op, type, parameters and source line."""
        return f"{node.name} {self.plain(node).text} {self.comment(node)}"

    def templated(self, block: Block, node: Node) -> _Line:
        """A node of the first unit, with numbers relative to it."""
        family, first, index = block.of(node)
        scope = family.pattern(node.scope, index, first)

        def label_of(body: Graph) -> str:
            self.repeated.append((block, body))
            return show_pattern(family.pattern(body.name, index, first))

        sources = [_shortened(text, scope) for text in block.operands[node]]
        name = _shortened(show_pattern(family.relative(node, first)), scope)
        text = show_definition(node, name, sources, show_params(node, label_of))
        return _Line(scope, text, self.comment(node))

    # -- lists --

    def declarations(self) -> Iterator[_Entry]:
        for node in (*self.graph.inputs, *self.graph.parameters):
            yield self.entry(node, (node.name,), lambda name, node=node: show_declaration(node, name))

    def feedback(self) -> Iterator[_Entry]:
        for previous, value in self.graph.feedback:
            names = (previous.name, value.name)
            yield self.entry(previous, names, lambda p, v: f"feedback {p} <- {v}[{delay_access(1)}]")

    def outputs(self) -> Iterator[_Entry]:
        for name, node in self.graph.outputs.items():
            yield self.entry(node, (name, node.name), lambda name, value: f"output {name} = {value}")

    def entry(self, node: Node, names: Sequence[str], show: Callable[..., str]) -> _Entry:
        """``show`` of the names; as a pattern, too, if ``node`` belongs to a unit of a repeat."""
        is_declared = node.op.name in ("input", "parameter") and len(names) == 1
        scope, comment = (node.scope, self.comment(node)) if is_declared else ("", "")
        line = _Line(scope, show(*(show_name(name, scope) for name in names)), comment)
        for block in self.blocks:
            index = block.family.owner(node) if block.family else None
            if block.family and block.repeat and index is not None and index in block.repeat.numbers:
                base = index - (index - block.repeat.first) % block.repeat.period
                patterns = [show_pattern(block.family.pattern(name, index, base)) for name in names]
                text = show(*(_shortened(pattern, scope) for pattern in patterns))
                return _Entry(line, block, base, _Line(scope, text, comment))
        return _Entry(line)


# ---- lines ----


def _listed(entries: Iterable[_Entry]) -> Iterator[str]:
    """Entries in their order; what units of a repeat have alike, one after the other, once."""
    units: list[list[_Entry]] = []
    for entry in entries:
        last = units[-1][-1] if units else None
        if last is not None and last.block is entry.block and last.base == entry.base:
            units[-1].append(entry)
        else:
            units.append([entry])
    at = 0
    while at < len(units):
        count = 1
        block = units[at][0].block
        while block and at + count < len(units) and _continues(units[at + count - 1], units[at + count]):
            count += 1
        if block and block.repeat and count > 1:
            bases = [unit[0].base for unit in units[at : at + count]]
            yield _head(block, range(bases[0], bases[-1] + 1, block.repeat.period))
            yield from _written((entry.pattern for entry in units[at] if entry.pattern), INDENT)
        else:
            yield from _written(entry.line for entry in units[at])
        at += count


def _continues(unit: list[_Entry], following: list[_Entry]) -> bool:
    """Whether the next unit of the same repeat has the same entries."""
    block = unit[0].block
    if block is None or block.repeat is None or following[0].block is not block:
        return False
    is_next = following[0].base == unit[0].base + block.repeat.period
    return is_next and [e.pattern and (e.pattern.scope, e.pattern.text) for e in unit] == [
        e.pattern and (e.pattern.scope, e.pattern.text) for e in following
    ]


def _head(block: Block, bases: range, carried: bool = False) -> str:
    """The head of a repeat over the units that begin at ``bases``."""
    assert block.repeat
    span = str(replace(block.repeat, first=bases[0], count=len(bases)))
    return show_repeat(span, "i", {c.name: (c.first, c.then) for c in block.carried if carried})


def _written(lines: Iterable[_Line], indent: str = "") -> Iterator[str]:
    """Lines with a head wherever the scope changes."""
    scope = ""
    for number, line in enumerate(lines):
        if line.scope != scope:
            yield from ("",) if number else ()
            yield from (f"{indent}scope {show_pattern(line.scope)}",) if line.scope else ()
            scope = line.scope
        text = f"{indent}{INDENT if scope else ''}{line.text}"
        yield with_comment(text, line.comment)


def _shortened(shown: str, scope: str) -> str:
    """A name as it is written inside ``scope``, which may itself be a pattern."""
    inside = scope and shown.startswith(scope) and RELATIVE_NAME.fullmatch(shown, len(scope))
    return shown[len(scope) :] if inside else shown
