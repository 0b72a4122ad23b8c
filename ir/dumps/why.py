"""Why a value is what it is: which positions of which inputs reach it, and by which path.

For each input there are up to two paths, each of the fewest edges: one that reads *now* all along,
and the one that reaches furthest back: through a whole past or a feedback, or else through a delay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..causality import Entry, Step, certify
from ..graph import Graph, Node
from ..time import NOW, Access, delay_access
from ..types import show_type

_Place = tuple[Node, int]  # a node, and how far back the edges to it have led
_NOT, _SOME, _ALL = range(3)


@dataclass(frozen=True)
class Path:
    """From a node back to an input: each step but the first with the access by which it is read."""

    steps: tuple[Step, ...]

    @property
    def access(self) -> Access:
        """What the whole path reads."""
        total = NOW
        for user, step in pairwise(self.steps):
            access = step.access or NOW
            around = user.op == "feedback" and access != NOW  # any number of times
            total = total.then(Access(None, access.newest) if around else access)
        return total


@dataclass(frozen=True)
class Explanation:
    """What reaches one node; ``entries`` and ``paths`` are by input, in the order of the graph."""

    node: Node
    entries: tuple[Entry, ...]
    paths: tuple[Path, ...]


def explain(graph: Graph, node: Node) -> Explanation:
    """Every input that reaches the node, the positions of it that do, and the shortest paths."""
    needed = Graph(graph.name, graph.inputs, (), {node.name: node}, graph.feedback)
    entries = tuple(entry for entry in certify(needed).entries if entry.reach.parts)
    return Explanation(node, entries, tuple(_paths(graph, node)))


def _paths(graph: Graph, node: Node) -> Iterator[Path]:
    """Breadth first from the node to the inputs, apart for paths that lead back differently far."""
    closing = dict(graph.feedback)
    start: _Place = (node, _NOT)
    user_of: dict[_Place, tuple[_Place, Access] | None] = {start: None}
    waiting = deque([start])
    while waiting:
        place = waiting.popleft()
        current, back = place
        reads = [(edge.source, edge.access, _back(edge.access)) for edge in current.inputs]
        if current in closing:
            reads.append((closing[current], delay_access(1), _ALL))
        for source, access, step in reads:
            further = (source, max(back, step))
            if further not in user_of:
                user_of[further] = (place, access)
                waiting.append(further)
    for origin in graph.inputs:
        found = [back for back in (_NOT, _SOME, _ALL) if (origin, back) in user_of]
        for back in dict.fromkeys([*found[:1], *found[-1:]]):
            yield Path(tuple(reversed(list(_steps((origin, back), user_of)))))


def _back(access: Access) -> int:
    if access == NOW:
        return _NOT
    return _ALL if access.oldest is None else _SOME


def _steps(place: _Place, user_of: dict[_Place, tuple[_Place, Access] | None]) -> Iterator[Step]:
    following: _Place | None = place
    while following is not None:
        node = following[0]
        reader = user_of[following]
        yield Step(
            node.name, node.op.name, show_type(node.type), reader[1] if reader else None, node.location
        )
        following = reader[0] if reader else None


# ---- as text ----


def show_path(path: Path) -> str:
    """One step in a line; layers that a path passes in the same way are left out but for the last."""
    last = path.steps[-1]
    edges = len(path.steps) - 1
    head = f"{last.name}[{path.access}], over {edges} edge{'s' * (edges != 1)}"
    return "\n".join([head, *_show_steps(path.steps)])


def _show_steps(steps: tuple[Step, ...]) -> Iterator[str]:
    at = 0
    while at < len(steps):
        yield _show_step(steps[at])
        at += 1
        cycle = next((n for n in range(1, 9) if _passed(steps, at, n) > 2), 0)
        if cycle:
            times = _passed(steps, at, cycle)
            yield from (_show_step(step) for step in steps[at : at + cycle])
            skipped = (times - 2) * cycle
            yield (
                f"    … {skipped} more like the {cycle} above …"
                if cycle > 1
                else f"    … {skipped} more like it …"
            )
            at += (times - 1) * cycle


def _passed(steps: tuple[Step, ...], at: int, cycle: int) -> int:
    """How often the next ``cycle`` steps are passed, one layer further up each time."""
    times = 1
    while _alike(steps[at + (times - 1) * cycle :][:cycle], steps[at + times * cycle :][:cycle], cycle):
        times += 1
    return times


def _alike(steps: tuple[Step, ...], others: tuple[Step, ...], cycle: int) -> bool:
    if len(steps) < cycle or len(others) < cycle:
        return False
    return all(
        (one.op, one.type, one.access) == (other.op, other.type, other.access)
        and _ending(one.name) == _ending(other.name)
        for one, other in zip(steps, others, strict=True)
    )


def _ending(name: str) -> str:
    """The name without the number of its layer."""
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def _show_step(step: Step) -> str:
    access = "" if step.access in (None, NOW) else f"[{step.access}]"
    line = f"  {'reads ' if step.access else ''}{step.name}{access}: {step.type} = {step.op}"
    return f"{line:<72}  # {step.location}" if step.location else line
