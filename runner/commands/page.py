"""What the viewer's page shows of a model: its graph after each pass, its programs, and its states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...compiler.difference import Difference, difference, show_difference
from ...compiler.measures import operations, value_bytes, work_of
from ...compiler.program import Program, State
from ...ir.dumps.folded_text import print_folded
from ...ir.dumps.viewer.page import viewer_page
from ...ir.errors import SystolicError
from ...ir.graph import Graph, Node
from ...ir.op import Work
from ..stages import PROGRAMS, Stages
from .reports import state_record

PASSES = "passes"  # the pane that shows the graph per token, after any of the passes


def model_page(stages: Stages, stage: str, expand: Iterable[str] = ()) -> str:
    """The page of a model; it opens with ``stage``, or with several side by side if that is ``traced``.

    ``SystolicError`` for a stage that is no graph.
    """
    programs = derived_programs(stages)
    if stage not in programs:
        stages.graph(stage)  # the error for one that does not exist
    last, capacity = stages.passes[stages.last_pass].graph, stages.options.capacity
    passes, changes = _passes(stages)
    data = {
        "model": last.name,
        "capacity": capacity,
        "passes": passes,
        "changes": changes,
        "pass": list(stages.passes).index(stage) if stage in stages.passes else 0,
        "programs": [_graph_record(name, program.graph, capacity) for name, program in programs.items()],
        "states": [state_record(state) for state in states_of(programs)],
        "certificate": str(last.certificate()),
        "shown": _shown(stages, stage, tuple(programs)),
        "expand": list(expand),
    }
    return viewer_page(last.name, data)


def derived_programs(stages: Stages) -> dict[str, Program]:
    """All programs that can be derived; an encoder alone, say, has no decode step."""
    programs: dict[str, Program] = {}
    for name in PROGRAMS:
        try:
            programs[name] = stages.program(name)
        except SystolicError:
            continue
    return programs


def states_of(programs: Mapping[str, Program]) -> tuple[State, ...]:
    """What the decode step keeps, if there is one."""
    return programs["decode"].states if "decode" in programs else ()


def _shown(stages: Stages, stage: str, programs: tuple[str, ...]) -> list[str]:
    if stage == next(iter(stages.passes)):
        return [PASSES, *(name for name in programs if name != "score" or len(programs) == 1)]
    return [PASSES if stage in stages.passes else stage]


def _graph_record(name: str, graph: Graph, capacity: int) -> dict[str, Any]:
    """A graph in its folded text, with a cost behind every node: see ``cost_note``."""
    return {"name": name, "nodes": len(graph), "text": print_folded(graph, note=cost_note(capacity))}


def cost_note(capacity: int) -> Callable[[Node], str]:
    """Multiply-adds, elementwise operations, bytes moved and bytes of the value, at the last position."""

    def note(node: Node) -> str:
        work = work_of(node, capacity) or Work()
        size = value_bytes(node.type, capacity)
        return f"cost {work.multiply_adds},{work.elementwise},{work.bytes_moved},{size}"

    return note


def _passes(stages: Stages) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The graph after each pass, and what each pass but the first stage changed."""
    capacity = stages.options.capacity
    passes: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    before: Graph | None = None
    for name, stage in stages.passes.items():
        found = difference(before, stage.graph) if before is not None else None
        is_same = found is not None and not found.changes and found.nodes_before == found.nodes_after
        record = {**passes[-1], "name": name} if is_same else _graph_record(name, stage.graph, capacity)
        passes.append({**record, "seconds": stage.seconds, "work": _work(stage.graph, capacity)})
        if found is not None:
            changes.append(_change_record(found, [each["work"] for each in passes[-2:]]))
        before = stage.graph
    return passes, changes


def _work(graph: Graph, capacity: int) -> int:
    return sum(operations(node, capacity) for node in graph)


def _change_record(found: Difference, work: list[int]) -> dict[str, Any]:
    return {
        "nodes": [found.nodes_before, found.nodes_after],
        "literals": [found.literals_before, found.literals_after],
        **{kind: found.count(kind) for kind in ("added", "removed", "changed")},
        "work": work,
        "text": show_difference(found),
    }
