"""How a graph is shown: as text (folded or full), an outline, JSON, DOT or SVG."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from ...compiler.measures import Measure
from ...ir.dumps.dot import outline_to_dot, to_dot
from ...ir.dumps.extract import find_node, neighbourhood
from ...ir.dumps.fold import fold
from ...ir.dumps.folded_text import print_folded, search
from ...ir.dumps.json_form import to_json
from ...ir.dumps.layers import names_scope
from ...ir.dumps.outline import outline_rows
from ...ir.dumps.text import Note, print_graph
from ...ir.errors import SystolicError
from ...ir.graph import Graph, Node
from .table import aligned

FILES = ("html", "model-explorer")  # are not printed, and show all stages
FORMATS = ("text", "json", "dot", "svg", "outline", *FILES)


@dataclass(frozen=True)
class View:
    """What a user wants to see of a graph.

    ``full`` writes or draws every node; ``expand`` names scopes that are shown in full on their own.
    ``grep`` shows the nodes in whose lines a text occurs, ``around`` those at most ``depth`` edges
    from one node.
    """

    format: str = "text"
    full: bool = False
    expand: tuple[str, ...] = ()
    grep: str | None = None
    around: str | None = None
    depth: int = 1

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise SystolicError(f"--format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        if self.grep is not None and self.format != "text":
            raise SystolicError(f"--grep shows lines: its only --format is text, not {self.format}")
        if self.format in FILES and (self.full or self.around is not None):
            raise SystolicError(f"--format {self.format} shows whole graphs: leave out --full and --around")
        if self.depth < 0:
            raise SystolicError(f"--depth must be at least 0, not {self.depth}")

    def show(self, graph: Graph, measures: Mapping[str, Measure]) -> str:
        """The graph as it is wanted, with a column for each measure where there are lines."""
        require_scopes(graph, self.expand)
        full = self.full or self.around is not None
        if self.around is not None:
            graph = neighbourhood(graph, find_node(graph, self.around), self.depth)
        match self.format:
            case "json":
                return json.dumps(to_json(graph), indent=1)
            case "outline":
                return _outline(graph, self.expand, measures)
            case "dot" | "svg":
                drawing = to_dot(graph) if full else outline_to_dot(graph, self.expand)
                return drawing if self.format == "dot" else to_svg(drawing)
        note = _note(measures)
        if self.grep is not None:
            return search(graph, self.grep, note)
        if full:
            return print_graph(graph, note=note).rstrip("\n")
        heading = [f"# {line}".rstrip() for line in _heading(graph, self.expand, measures)]
        return print_folded(graph, expand=self.expand, heading=heading, note=note).rstrip("\n")


def require_scopes(graph: Graph, expand: tuple[str, ...]) -> None:
    """``SystolicError`` for a scope that the graph does not have."""
    scopes = dict.fromkeys(node.scope for node in graph.nodes if node.scope)
    for name in expand:
        if not any(names_scope((name,), scope) for scope in scopes):
            known = ", ".join(list(scopes)[:4])
            raise SystolicError(f"--expand: {graph.name} has no scope {name!r}; it has {known}, …")


def _note(measures: Mapping[str, Measure]) -> Note | None:
    if not measures:
        return None

    def note(node: Node) -> str:
        return "  ".join(f"{name} {measure(node):>9,}" for name, measure in measures.items())

    return note


def _outline(graph: Graph, expand: tuple[str, ...], measures: Mapping[str, Measure]) -> str:
    return aligned(outline_rows(graph, expand, measures), right=range(1, 3 + len(measures)))


def _heading(graph: Graph, expand: tuple[str, ...], measures: Mapping[str, Measure]) -> list[str]:
    """The outline, and how to see more."""
    lines = _outline(graph, expand, measures).split("\n")
    repeats = [str(block.repeat) for block in fold(graph, expand) if block.repeat]
    if repeats:
        what = f"{len(graph):,} nodes; {', '.join(repeats)} written once."
        first = repeats[0].partition("-")[0]
        lines += ["", f"{what} --full writes every node, --expand {first} one scope on its own."]
    return lines


def to_svg(drawing: str) -> str:
    """A drawing laid out by Graphviz; ``SystolicError`` where its ``dot`` is not installed."""
    if shutil.which("dot") is None:
        raise SystolicError(
            "--format svg needs Graphviz, and its program dot is not installed; --format dot does not"
        )
    done = subprocess.run(["dot", "-Tsvg"], input=drawing, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystolicError(f"Graphviz cannot lay out the drawing: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")
