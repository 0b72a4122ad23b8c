"""The forms of one model: its programs may read a projected past in two ways, over the same states.

As written, a chunk projects what is kept of every past position once and reads that: work for the past, and
little for each position of the chunk. Reassociated (``passes.reassociate``), each position reads what is kept
as it is. The first is cheaper for long chunks, the second for a step of decoding; what is kept is chosen
with the second, which needs less, and both keep the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ...ir.graph import Graph
from ..measures import program_operations
from ..passes.reassociate import reassociate
from ..passes.share import share
from ..passes.simplify import simplify
from ..program import Program
from .states import StatePlan, choose_states

Derive = Callable[[Graph, StatePlan], Program]


@dataclass(frozen=True)
class Form:
    """A graph, and the streams to keep when programs are derived from it."""

    graph: Graph
    plan: StatePlan


def latent_form(graph: Graph) -> Graph | None:
    """The graph with projections of the past reassociated; None where that is cheaper nowhere."""
    changed = reassociate(graph)
    unchanged = changed.by_name.keys() == graph.by_name.keys()
    return None if unchanged else share(simplify(changed)).with_unique_names()


def choose_forms(graph: Graph, strategy: str = "auto") -> tuple[Form, ...]:
    """What programs may be derived from; the first form has chosen the states."""
    latent = latent_form(graph) if strategy == "auto" else None
    if latent is None:
        return (Form(graph, choose_states(graph, strategy)),)
    plan = choose_states(latent)
    written = choose_states(graph, keep={node.name for node in plan.histories})
    # The graph as written tells what is read through the streams that are kept.
    reasons = {node.name: reason for node, reason in written.reasons.items()}
    plan = replace(plan, reasons={node: reasons[node.name] for node in plan.histories})
    return Form(latent, plan), Form(graph, written)


def derive_cheapest(forms: tuple[Form, ...], derive: Derive) -> Program:
    """The program of the form that needs the fewest operations."""
    programs = [derive(form.graph, form.plan) for form in forms]
    return min(programs, key=lambda program: program_operations(program.graph))
