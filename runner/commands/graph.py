"""systolic graph: a model at any stage on its way, as text, JSON or DOT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...ir.errors import SystolicError
from ..files import write_file
from .arguments import DEFAULT_MODEL, Batch, Capacity, ModelArgument, State
from .table import aligned

if TYPE_CHECKING:
    from ...compiler.program import State as ProgramState
    from ...ir.graph import Graph
    from ...models.load import Model
    from ..options import Options
    from ..programs import DerivedPrograms

FORMATS = ("text", "json", "dot")


def graph(
    model: ModelArgument = DEFAULT_MODEL,
    stage: Annotated[
        str,
        typer.Option(help="traced, the name of a pass, states, prefill, decode, score, stablehlo or numpy."),
    ] = "traced",
    format: Annotated[str, typer.Option(help="text, json or dot.")] = "text",
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    batch: Batch = None,
    capacity: Capacity = None,
    chunk: Annotated[int | None, typer.Option(help="Positions that prefill or emitted code reads.")] = None,
    state: State = None,
) -> None:
    """Prints a model at one stage: a graph, its states, a program, or emitted code."""
    from ..locate import open_model
    from ..options import options_for

    if format not in FORMATS:
        raise SystolicError(f"--format must be one of {', '.join(FORMATS)}, not {format!r}")
    subject = open_model(model, capacity)
    options = options_for(subject, batch=batch or 1, capacity=capacity, chunk=chunk, state=state or "auto")
    text = Stages(subject, options, chunk).render(stage, format)
    if out is None:
        print(text)
    else:
        write_file(out, f"{text}\n", force=force)


class Stages:
    """What can be shown of a model; ``chunk`` is the length that the user asked for, if any."""

    def __init__(self, model: Model, options: Options, chunk: int | None) -> None:
        from ...compiler.pipeline import run_passes

        self._passes = {stage.name: stage.graph for stage in run_passes(model.graph)}
        self._options = options
        self._chunk = chunk

    @property
    def _programs(self) -> DerivedPrograms:
        from ..programs import DerivedPrograms

        return DerivedPrograms(list(self._passes.values())[-1], self._options)

    def render(self, stage: str, format: str) -> str:
        """The stage in that format; ``SystolicError`` for one that does not exist."""
        programs = {
            "prefill": lambda: self._programs.chunk(self._options.chunk),
            "decode": lambda: self._programs.chunk(1),
            "score": lambda: self._programs.score(self._options.chunk),
        }
        if stage in self._passes:
            return show_graph(self._passes[stage], format)
        if stage in programs:
            return show_graph(programs[stage]().graph, format)
        if stage == "states":
            return show_states(self._programs.states, format)
        if stage in ("stablehlo", "numpy"):
            return self._emitted(stage, format)
        known = (*self._passes, "states", *programs, "stablehlo", "numpy")
        raise SystolicError(f"--stage must be one of {', '.join(known)}, not {stage!r}")

    def _emitted(self, stage: str, format: str) -> str:
        from ...backends.numpy_source import emit_numpy
        from ...backends.stablehlo import emit_stablehlo

        if format != "text":
            raise SystolicError(f"--stage {stage} is code: its only --format is text, not {format}")
        program = self._programs.chunk(self._chunk or 1)
        return (emit_numpy(program) if stage == "numpy" else emit_stablehlo(program)).rstrip("\n")


def show_graph(graph: Graph, format: str) -> str:
    """A graph as text, JSON or DOT."""
    from ...ir.dot import to_dot
    from ...ir.json_form import to_json

    if format == "json":
        return json.dumps(to_json(graph), indent=1)
    return to_dot(graph) if format == "dot" else str(graph).rstrip("\n")


def show_states(states: tuple[ProgramState, ...], format: str) -> str:
    """What is kept from step to step, and why: a table, or JSON."""
    if format == "dot":
        raise SystolicError("--stage states is a table: its --format is text or json, not dot")
    if format == "json":
        return json.dumps([state_record(state) for state in states], indent=1)
    rows = [("name", "kind", "type", "bytes/token", "bytes", "reason")]
    rows += [
        (s.name, s.kind, str(s.type), f"{s.bytes_per_token:,}", f"{s.bytes:,}", s.reason) for s in states
    ]
    each, whole = sum(s.bytes_per_token for s in states), sum(s.bytes for s in states)
    return aligned([*rows, ("total", "", "", f"{each:,}", f"{whole:,}", "")], right=(3, 4))


def state_record(state: ProgramState) -> dict[str, Any]:
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
