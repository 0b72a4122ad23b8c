"""What a pass did to a graph: what it added, removed and changed, by the names of the nodes.

    scope layers.0-31.attn
      - .sqrt: f32[] = sqrt(64.0)
      - .scores: f32[2,past] = multiply(.contraction, .sqrt)
      + .scores: f32[2,past] = multiply(.contraction, 8.0)

What happens in the same way in several layers is shown once, under their numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..ir.dumps.layers import NUMBERED, show_numbers
from ..ir.dumps.text import inline_literals, show_definition, show_name, show_params
from ..ir.graph import Graph, Node

_Pattern = tuple[str, tuple[str, ...]]  # a scope, and the lines of a change


@dataclass(frozen=True)
class Change:
    """One node: its line before and after; one of them is None if it was added or removed.

    ``instead`` names what is read in the place of a node that was removed.
    """

    name: str
    scope: str
    before: str | None
    after: str | None
    instead: str | None = None

    @property
    def kind(self) -> str:
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"


@dataclass(frozen=True)
class Difference:
    """All changes from one graph to another, in the order of the graphs.

    Literals are counted apart from the other nodes.
    """

    nodes_before: int
    nodes_after: int
    literals_before: int
    literals_after: int
    changes: tuple[Change, ...]

    def count(self, kind: str) -> int:
        return sum(change.kind == kind for change in self.changes)


def difference(before: Graph, after: Graph) -> Difference:
    """What ``after`` has that ``before`` has not, and the other way round, by name.

    A node has changed when its op, type, parameters or what it reads has. Literals count as part of
    what reads them.
    """
    old, new = _lines(before), _lines(after)
    instead = _replacements(before, after)
    changes = [
        Change(name, node.scope, line, new.get(name, (None, None))[1], instead.get(node))
        for name, (node, line) in old.items()
        if name not in new or new[name][1] != line
    ]
    changes += [Change(name, node.scope, None, line) for name, (node, line) in new.items() if name not in old]
    literals = (len(before) - len(old), len(after) - len(new))
    return Difference(len(old), len(new), *literals, tuple(changes))


def _lines(graph: Graph) -> dict[str, tuple[Node, str]]:
    """The line of each node by its name, without literals."""
    literals = inline_literals(graph)
    lines = {}
    for node in graph.nodes:
        if node not in literals:
            sources = [literals.get(s) or show_name(s.name, node.scope) for s in node.sources]
            params = show_params(node, lambda body: show_name(body.name))
            lines[node.name] = (
                node,
                show_definition(node, show_name(node.name, node.scope), sources, params),
            )
    return lines


def _replacements(before: Graph, after: Graph) -> dict[Node, str]:
    """For nodes that were removed, what their users read now in their place, as far as that is clear."""
    instead: dict[Node, str] = {}
    leaving = {
        source: after.outputs[name] for name, source in before.outputs.items() if name in after.outputs
    }
    for node in reversed(before.nodes):
        if node.name not in after.by_name:
            ways = (
                _read_instead(node, after.by_name.get(instead.get(u, u.name)), u) for u in before.users[node]
            )
            found = next(filter(None, ways), None) or leaving.get(node)
            if found is not None:
                instead[node] = found.name
    return instead


def _read_instead(node: Node, left: Node | None, user: Node) -> Node | None:
    """What ``left``, which stands where ``user`` stood, reads in the place of ``node``."""
    if left is None or left.op is not user.op or len(left.sources) != len(user.sources):
        return None
    return left.sources[user.sources.index(node)]


# ---- as text ----


def show_difference(found: Difference) -> str:
    """The changes by scope; the same change in several layers is one, under their numbers."""
    seen_from = [[_pattern(change, offsets) for change in found.changes] for offsets in ((0, -1), (0,))]
    sizes = [Counter(patterns) for patterns in seen_from]
    alike: dict[_Pattern, list[int]] = {}
    for change, near, far in zip(found.changes, *seen_from, strict=True):
        # What layers read of each other is alike as seen from them, or by the full name.
        pattern = near if sizes[0][near] > sizes[1][far] else far
        alike.setdefault(pattern, []).append(int(layer[2]) if (layer := _layer(change)) else -1)
    by_scope: dict[str, list[str]] = {}
    for (scope, lines), numbers in alike.items():
        shown = show_numbers(numbers)
        named = [line if scope else line.replace("{i}", shown) for line in lines]
        by_scope.setdefault(scope.replace("{i}", shown), []).extend(named)
    return "\n\n".join("\n".join(_section(scope, lines)) for scope, lines in by_scope.items())


def _layer(change: Change) -> re.Match[str] | None:
    """The layer that a change belongs to, by its scope; that of a state or weight, by its name."""
    match = NUMBERED.fullmatch(change.scope or change.name)
    return match if match and (change.scope or match[3]) else None


def _pattern(change: Change, offsets: Iterable[int]) -> _Pattern:
    """The scope and the lines of a change, with ``{i}`` for the number of its layer."""
    match = _layer(change)
    if match is None:
        return change.scope, tuple(_show_change(change))
    lines = []
    for line in _show_change(change):
        for offset in offsets:
            number, shown = int(match[2]) + offset, f"{{i{offset:+}}}" if offset else "{i}"
            line = re.sub(rf"(?<![\w-]){re.escape(match[1])}{number}(?![\w-])", match[1] + shown, line)
        lines.append(re.sub(rf"(?<=\w\.){match[2]}(?=\.[A-Za-z_])", "{i}", line))  # in names of weights
    return f"{match[1]}{{i}}{match[3] or ''}" if change.scope else "", tuple(lines)


def _section(scope: str, lines: Iterable[str]) -> Iterator[str]:
    if scope:
        yield f"scope {scope}"
    yield from (f"{'  ' if scope else ''}{line}" for line in lines)


def _show_change(change: Change) -> Iterator[str]:
    match change.before, change.after:
        case None, str(after):
            yield f"+ {after}"
        case str(before), None:
            yield f"- {before}" + (f"    # now {change.instead}" if change.instead else "")
        case str(before), str(after):
            yield f"- {before}"
            yield f"+ {after}"
