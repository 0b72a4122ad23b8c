"""The programs of a chain: one that chooses a token, and one that reads what was said before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ...compiler.derive import StatePlan, choose_states, derive_chunk
from ...compiler.derive.beams import derive_beam_step
from ...compiler.derive.generation import derive_generation
from ...compiler.pipeline import run_passes
from ...compiler.program import Program
from ...ir.graph import Graph, Node, postorder
from .chain import trace_chain
from .structure import LONGEST_CALL, Structure


@dataclass(frozen=True)
class SamplingPrograms:
    """A structure over ``vocabulary`` logits, for ``rows`` rows of up to ``capacity`` positions."""

    structure: Structure
    vocabulary: int
    rows: int
    capacity: int

    @cached_property
    def graph(self) -> Graph:
        """The chain, one position at a time."""
        return run_passes(trace_chain(self.structure, self.vocabulary))[-1].graph

    @cached_property
    def plan(self) -> StatePlan:
        """What the chain remembers."""
        return choose_states(self.graph)

    @cached_property
    def choose(self) -> Program:
        """(``logits`` [B, 1, V], newest ``token`` i32[B, 1], numbers of the rows, states) → what
        ``trace_chain`` yields, each [B, 1, …]."""
        program = derive_chunk(
            self.graph, self.plan, rows=self.rows, chunk=1, capacity=self.capacity, reserve=self.capacity
        )
        return replace(program, name=f"sample.{self.structure.name}")

    @cached_property
    def read(self) -> Program | None:
        """The program that takes up to ``capacity`` tokens into the states without choosing any, or None
        where tokens are not remembered. What is made from logits is left alone."""
        kept = _made_from_tokens(self.plan, self.graph)
        streams = {node.name: node for node in (*kept.histories, *kept.tails)}
        if not streams:
            return None
        token = tuple(node for node in self.graph.inputs if node.name == "token")
        graph = Graph(self.graph.name, token, (), streams)
        program = derive_chunk(graph, kept, rows=self.rows, chunk=self.capacity, capacity=self.capacity)
        return replace(program, name=f"recall.{self.structure.name}")


def _made_from_tokens(plan: StatePlan, graph: Graph) -> StatePlan:
    """The part of a plan that needs nothing but the tokens."""
    inputs = {node for node in graph.inputs if node.name != "token"}

    def is_free(node: Node) -> bool:
        behind = postorder([node], lambda n: n.sources)
        return not any(n in inputs or n.op.name == "feedback" for n in behind)

    def chosen(streams: Mapping[Node, int | None]) -> dict[Node, int | None]:
        return {node: value for node, value in streams.items() if is_free(node)}

    tails = {node: steps for node, steps in plan.tails.items() if is_free(node)}
    return replace(plan, histories=chosen(plan.histories), tails=tails, carries=(), constants=())


def sampling_programs(decode: Program, structure: Structure, logits: str) -> SamplingPrograms:
    """The programs of a structure over the logits of a decode step."""
    vocabulary = decode.graph.outputs[logits].tensor.static_shape[-1]
    return SamplingPrograms(structure, vocabulary, decode.rows, decode.capacity)


def loop_program(
    decode: Program, structure: Structure, stops: int, names: tuple[str, str], states: int = 0
) -> Program:
    """The decode loop; ``names`` are those of the decode step's token input and of its logits."""
    choose = sampling_programs(decode, structure, names[1]).choose
    token, logits = names
    loop = derive_generation(
        decode, choose, token=token, logits=logits, steps=LONGEST_CALL, stops=stops, states=states
    )
    return replace(loop, name=f"generate.{structure.name}")


def beam_program(
    decode: Program, structure: Structure, candidates: int, names: tuple[str, str], beside: Sequence[str]
) -> Program:
    """One step of a search over the scores of a structure, with the results ``beside`` of the decode step."""
    choose = sampling_programs(decode, structure, names[1]).choose
    token, logits = names
    return derive_beam_step(decode, choose, token=token, logits=logits, candidates=candidates, beside=beside)


def recall_program(decode: Program, structure: Structure, logits: str) -> Program:
    """The program that takes what was said before into the memory of the loop."""
    program = sampling_programs(decode, structure, logits).read
    assert program is not None, f"{structure.name} remembers no tokens"
    return program
