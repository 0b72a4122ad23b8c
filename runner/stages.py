"""The graphs that a model goes through: traced, after each pass, and as programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from ..backends.interface import Backend
from ..compiler.cost.targets import Target
from ..compiler.derive import latent_form
from ..compiler.pipeline import Stage, run_passes, stage_between
from ..compiler.program import Program, State
from ..ir.errors import SystolicError
from ..ir.graph import Graph
from ..models.model import Model
from .options import Options
from .program_source import DerivedPrograms

REPORTS = ("states", "diff", "chunks", "forms")
CODE = ("stablehlo", "numpy")
PROGRAMS = ("source", "prefill", "decode", "score")


class Stages:
    """What can be shown of a model; ``chunk`` is the length that the user asked for, if any."""

    def __init__(self, model: Model, options: Options, chunk: int | None) -> None:
        self._model = model
        stages = run_passes(model.for_texts_up_to(options.capacity).graph, options.passes)
        self.last_pass = stages[-1].name  # programs are derived from it
        self.passes: dict[str, Stage] = {stage.name: stage for stage in stages}
        self.passes |= _other_form(stages[-1].graph)
        self.options = options
        self.asked_chunk = chunk

    def on(self, backend: Backend) -> Stages:
        """The same, with matrices kept as this backend reads them the fastest."""
        transposed = backend.faster_transposed(self.passes["traced"].graph, self.options.batch)
        return Stages(self._model, replace(self.options, transposed=transposed), self.asked_chunk)

    @cached_property
    def programs(self) -> DerivedPrograms:
        return self.programs_of(self.passes[self.last_pass].graph)

    def programs_of(self, graph: Graph) -> DerivedPrograms:
        """The programs that would be derived from another stage."""
        return DerivedPrograms(graph, self.options)

    def graph(self, stage: str) -> Graph:
        """The graph at a stage; ``SystolicError`` for one that does not exist or is no graph."""
        return self.passes[stage].graph if stage in self.passes else self.program(stage).graph

    def program(self, stage: str) -> Program:
        """The program of a stage; ``SystolicError`` where it is none."""
        derived: dict[str, Callable[[], Program]] = {
            "prefill": lambda: self.programs.chunk(self.options.chunk),
            "decode": lambda: self.programs.chunk(1),
            "score": lambda: self.programs.score(self.options.chunk),
        }
        if self.programs.source_lengths:
            derived["source"] = lambda: self.programs.source(self.options.capacity)
        if stage in derived:
            return derived[stage]()
        graphs = (*self.passes, *derived)
        if stage in (*REPORTS, *CODE):
            raise SystolicError(f"the stage {stage} is no graph; expected one of {', '.join(graphs)}")
        known = (*graphs, *REPORTS, *CODE)
        raise SystolicError(f"--stage must be one of {', '.join(known)}, not {stage!r}")

    def states_of(self, stage: str) -> tuple[State, ...]:
        """What would be kept if programs were derived from that stage; none where nothing can be decoded."""
        if stage not in self.passes:
            return ()
        try:
            return self.programs_of(self.passes[stage].graph).states
        except SystolicError:
            return ()

    def code(self, stage: str, target: Target | None = None) -> str:
        """The code that a backend emits for one chunk; NumPy for a target is loops over its tiles."""
        from ..backends.numpy_source import emit_numpy
        from ..backends.stablehlo import emit_stablehlo

        program = self.programs.chunk(self.asked_chunk or 1)
        return (emit_numpy(program, target) if stage == "numpy" else emit_stablehlo(program)).rstrip("\n")


def _other_form(graph: Graph) -> dict[str, Stage]:
    """The form that steps of decoding are derived from, where it differs: by the name of its pass."""
    started = time.perf_counter()
    latent = latent_form(graph)
    if latent is None:
        return {}
    seconds = time.perf_counter() - started
    return {"reassociate": stage_between("reassociate", graph, latent, seconds)}
