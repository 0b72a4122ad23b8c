"""What is reported about stages: their differences, the states, and why a value is what it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from ...compiler.derive import choose_states
from ...compiler.difference import Difference, difference, show_difference
from ...compiler.measures import operations
from ...compiler.program import State
from ...compiler.slots import state_of, states_read
from ...ir.causality import Step
from ...ir.dumps.extract import find_node
from ...ir.dumps.layers import NUMBERED, show_numbers
from ...ir.dumps.why import Path, explain, show_path
from ...ir.graph import Graph, Node
from ...ir.time import Access
from ...ir.types import show_type
from ..stages import Stages
from .stage_costs import StageCosts
from .table import aligned

# ---- states ----


def show_states(states: tuple[State, ...], as_json: bool) -> str:
    """What is kept from step to step, and why: a table, or JSON."""
    if as_json:
        return json.dumps([state_record(state) for state in states], indent=1)
    rows = [("name", "kind", "type", "bytes/token", "bytes", "reason")]
    rows += [
        (s.name, s.kind, str(s.type), f"{s.bytes_per_token:,}", f"{s.bytes:,}", s.reason) for s in states
    ]
    each, whole = sum(s.bytes_per_token for s in states), sum(s.bytes for s in states)
    return aligned([*rows, ("total", "", "", f"{each:,}", f"{whole:,}", "")], right=(3, 4))


def state_record(state: State) -> dict[str, Any]:
    """A state as JSON values."""
    return {
        "name": state.name,
        "kind": state.kind,
        "type": str(state.type),
        "value": str(state.value),
        "bytes_per_token": state.bytes_per_token,
        "bytes": state.bytes,
        "access": str(state.access),
        "reason": state.reason,
    }


# ---- differences ----


@dataclass(frozen=True)
class Consequence:
    """What a stage costs; None where it is not known. ``work`` counts operations for the last position;
    the last three are predicted for a step of decoding on a target."""

    work: int | None = None
    state_bytes_per_token: int | None = None
    state_bytes: int | None = None
    cycles: int | None = None
    nanoseconds: int | None = None
    main_memory_bytes: int | None = None


def show_differences(
    stages: Stages, start: str | None, end: str | None, as_json: bool, costs: StageCosts | None = None
) -> str:
    """From one stage to another, or from each pass to the next where neither is named; with ``costs``,
    what that changes on a target."""
    names = list(stages.passes)
    neighbours = list(pairwise(names))
    pairs = [(start or names[0], end or names[-1])] if start or end else neighbours
    records, texts = [], []
    cost_of = {stage: consequence(stages, stage, costs) for stage in dict.fromkeys(chain(*pairs))}
    for before, after in pairs:
        found = difference(stages.graph(before), stages.graph(after))
        both = cost_of[before], cost_of[after]
        seconds = stages.passes[after].seconds if (before, after) in neighbours else None
        records.append(_difference_record(before, after, found, both, seconds))
        body = show_difference(found) or "nothing changed"
        title = costs.title if costs else None
        texts.append(f"{_difference_head(before, after, found, both, seconds, title)}\n\n{body}")
    return json.dumps(records, indent=1) if as_json else "\n\n\n".join(texts)


def consequence(stages: Stages, stage: str, costs: StageCosts | None = None) -> Consequence:
    """What a stage of the per-token graph costs."""
    if stage not in stages.passes:
        return Consequence()
    work = sum(operations(node, stages.options.capacity) for node in stages.graph(stage))
    states = stages.states_of(stage)
    found = costs.predict(stages.graph(stage)) if costs else None
    return Consequence(
        work,
        sum(s.bytes_per_token for s in states) if states else None,
        sum(s.bytes for s in states) if states else None,
        round(found.cycles) if found and found.cycles is not None else None,
        round(1e9 * found.seconds) if found else None,
        round(found.total("bytes")) if found else None,
    )


def _difference_head(
    before: str,
    after: str,
    found: Difference,
    costs: tuple[Consequence, Consequence],
    seconds: float | None,
    target: str | None = None,
) -> str:
    """The heading of a difference; ``target`` names what was predicted."""
    old, new = costs
    lines = [
        f"{before} → {after}" + (f", {1000 * seconds:.1f} ms" if seconds is not None else ""),
        f"# nodes {found.nodes_before:,} → {found.nodes_after:,}: {found.count('added'):,} added, "
        f"{found.count('removed'):,} removed, {found.count('changed'):,} changed; "
        f"literals {found.literals_before:,} → {found.literals_after:,}",
        _change("operations for the last position", old.work, new.work),
        _change("state bytes per position", old.state_bytes_per_token, new.state_bytes_per_token),
        _change("state bytes in all", old.state_bytes, new.state_bytes),
        f"# {target}:" if target else "",
        _change("  cycles", old.cycles, new.cycles),
        _change("  nanoseconds", old.nanoseconds, new.nanoseconds),
        _change("  bytes of main memory", old.main_memory_bytes, new.main_memory_bytes),
    ]
    return "\n".join(filter(None, lines))


def _change(what: str, old: int | None, new: int | None) -> str:
    if old is None or new is None:
        return ""
    return f"# {what} {old:,} → {new:,}" + (f" ({new - old:+,})" if new != old else "")


def _difference_record(
    before: str,
    after: str,
    found: Difference,
    costs: tuple[Consequence, Consequence],
    seconds: float | None,
) -> dict[str, Any]:
    return {
        "from": before,
        "to": after,
        "seconds": seconds,
        "nodes": [found.nodes_before, found.nodes_after],
        "literals": [found.literals_before, found.literals_after],
        "work": [cost.work for cost in costs],
        "state_bytes_per_token": [cost.state_bytes_per_token for cost in costs],
        "state_bytes": [cost.state_bytes for cost in costs],
        "cycles": [cost.cycles for cost in costs],
        "nanoseconds": [cost.nanoseconds for cost in costs],
        "main_memory_bytes": [cost.main_memory_bytes for cost in costs],
        "changes": [
            {
                "kind": change.kind,
                "name": change.name,
                "scope": change.scope,
                "before": change.before,
                "after": change.after,
                "instead": change.instead,
            }
            for change in found.changes
        ],
    }


# ---- why ----


def show_why(stages: Stages, stage: str, name: str, as_json: bool) -> str:
    """Which positions of which inputs reach a node, by which paths, and which states it reads."""
    graph = stages.graph(stage)
    node = find_node(graph, name)
    explanation = explain(graph, node)
    kept = _kept(stages, stage, graph, node)
    if as_json:
        inputs = [
            {
                "input": entry.input,
                "positions": entry.describe(),
                "access": [str(part) for part in entry.reach.parts],
            }
            for entry in explanation.entries
        ]
        record = {
            **_step_record(Step(node.name, node.op.name, show_type(node.type), None, node.location)),
            "inputs": inputs,
            "paths": [_path_record(path) for path in explanation.paths],
            "states": [{**state_record(state), "read": str(access)} for state, access in kept],
        }
        return json.dumps(record, indent=1)
    location = f"  # {node.location}" if node.location else ""
    parts = [f"{node.name}: {show_type(node.type)} = {node.op.name}{location}"]
    rows = [(f"  {e.input}", e.describe(), ", ".join(map(str, e.reach.parts))) for e in explanation.entries]
    parts.append("depends on\n" + (aligned(rows) if rows else "  no input: it is the same for every text"))
    if kept:
        table = [(f"  {state.name}", state.kind, str(state.type), f"[{access}]") for state, access in kept]
        parts.append("reads from state\n" + aligned(_elided(table)))
    return "\n\n".join([*parts, *map(show_path, explanation.paths)])


def _kept(stages: Stages, stage: str, graph: Graph, node: Node) -> list[tuple[State, Access]]:
    """The states that a node reads, if programs were derived from this stage."""
    states = stages.states_of(stage)
    if not states:
        return []
    read = states_read(graph, node, choose_states(graph, stages.options.state))
    found = ((state_of(kept, graph, states), access) for kept, access in read.items())
    return [(state, access) for state, access in found if state is not None]


def _elided(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows in which only the number of the layer differs as one, under their numbers."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for name, *rest in rows:
        match = NUMBERED.fullmatch(name)
        pattern = f"{match[1]}{{i}}{match[3] or ''}" if match else name
        alike.setdefault((pattern, *rest), []).append(int(match[2]) if match else -1)
    return [
        (pattern.replace("{i}", show_numbers(numbers)), *rest) for (pattern, *rest), numbers in alike.items()
    ]


def _path_record(path: Path) -> dict[str, Any]:
    return {
        "input": path.steps[-1].name,
        "access": str(path.access),
        "steps": [_step_record(step) for step in path.steps],
    }


def _step_record(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "op": step.op,
        "type": step.type,
        "access": None if step.access is None else str(step.access),
        "location": [step.location.file, step.location.line] if step.location else None,
    }
