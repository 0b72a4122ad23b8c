"""Chains as graphs: the structure is compiled, the numbers in it are inputs.

A batch whose rows have different chains runs one chain that contains them all, in their order; where a row
lacks a step, the step gets the values that change nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...compiler.language import absolute, argmax, take, top_k, where
from ...compiler.language import max as largest
from ...compiler.stream import Stream
from ...compiler.trace import trace
from ...ir.graph import Graph
from ...ir.types import TensorType, dtype_name
from . import filters, penalties
from .random import gumbel
from .step import NONE, TOKEN_PURPOSE, Moment, Step, log_softmax

DAMAGED, NOTHING_LEFT = -1, -2  # in place of a token: the logits are no numbers; every token was removed
SMALLEST_LIST = 4  # lists are filled up to 4, 8, 16 …, so that few lengths have a program

Chain = tuple[Step, ...]

# The default order: what the text so far says, then the distribution. A chain may have any other.
ORDER: tuple[type[Step], ...] = (
    penalties.LogitBias,
    penalties.Repetition,
    penalties.Presence,
    penalties.Frequency,
    penalties.Dry,
    penalties.NoRepeatNgram,
    penalties.BadWords,
    penalties.Banned,
    penalties.LengthDecay,
    penalties.Forced,
    filters.Greedy,
    filters.Temperature,
    filters.DynamicTemperature,
    filters.TopK,
    filters.TopP,
    filters.MinP,
    filters.Typical,
    filters.Epsilon,
    filters.Eta,
    filters.TopNSigma,
    filters.Xtc,
    filters.LogSoftmax,
    filters.Mirostat,
)
_RANK = {step.__name__: rank for rank, step in enumerate(ORDER)}
_STEPS = {step.__name__: step for step in ORDER}


@dataclass(frozen=True)
class Slot:
    """One step of a structure: its class, the fields that are part of it, the shapes of the others."""

    step: str
    fixed: tuple[tuple[str, int], ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @staticmethod
    def of(step: Step) -> Slot:
        shapes = ((name, tuple(map(_bucket, array.shape))) for name, array in step.values.items())
        return Slot(type(step).__name__, tuple(step.fixed.items()), tuple(shapes))

    def fits(self, other: Slot) -> bool:
        """Whether one step can stand for both."""
        return (self.step, self.fixed) == (other.step, other.fixed)

    def widened(self, other: Slot) -> Slot:
        """With room for the lists of both."""
        pairs = zip(self.shapes, other.shapes, strict=True)
        shapes = ((name, tuple(map(max, shape, wide))) for (name, shape), (_, wide) in pairs)
        return Slot(self.step, self.fixed, tuple(shapes))


def _bucket(size: int) -> int:
    return max(SMALLEST_LIST, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class Structure:
    """What a sampling program is compiled for.

    ``draws``: a token is drawn from what is left, instead of the best one being taken. ``logprobs``: how
    many of the likeliest tokens are listed with their log-probabilities (0: only the chosen one; None:
    nothing). ``yields_scores``: the scores that are left are results too.
    """

    slots: tuple[Slot, ...] = ()
    draws: bool = False
    logprobs: int | None = None
    yields_scores: bool = False

    @property
    def name(self) -> str:
        """Words for it: ``greedy``, ``temperature.top_k.top_p``."""
        words = [snake_case(slot.step) for slot in self.slots]
        words += [] if self.draws else ["greedy"]
        words += [] if self.logprobs is None else [f"logprobs{self.logprobs}"]
        return ".".join(words) or "plain"

    @property
    def remembers(self) -> bool:
        """Whether the chain looks at the text so far."""
        return any(_STEPS[slot.step].remembers for slot in self.slots)

    @property
    def fields(self) -> list[tuple[str, int, str]]:
        """(input name, slot, field) of every number that a row gives."""
        seen: dict[str, int] = {}
        listed = []
        for at, slot in enumerate(self.slots):
            word = snake_case(slot.step)
            seen[word] = seen.get(word, 0) + 1
            count = f"_{seen[word]}" if seen[word] > 1 else ""
            listed += [(f"{word}{count}_{field}", at, field) for field, _ in slot.shapes]
        return listed


def snake_case(name: str) -> str:
    """``TopNSigma`` as ``top_n_sigma``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@dataclass(frozen=True)
class Row:
    """What one row of a batch is sampled with. ``stream`` numbers rows that share a seed; ``prompt`` is the
    length of what it was given."""

    chain: Chain = ()
    draws: bool = False
    seed: int = 0
    stream: int = 0
    prompt: int = 0

    @property
    def drawn_chain(self) -> Chain:
        """The chain in a batch in which others draw: a greedy row leaves only its best token."""
        if self.draws:
            return self.chain
        return tuple(sorted((*self.chain, filters.Greedy(1)), key=lambda step: _RANK[type(step).__name__]))


def structure_of(rows: Sequence[Row], logprobs: int | None = None) -> Structure:
    """The structure that holds the chains of all rows."""
    draws = any(row.draws for row in rows)
    slots: list[Slot] = []
    for row in rows:
        slots = _joined(slots, [Slot.of(step) for step in (row.drawn_chain if draws else row.chain)])
    return Structure(tuple(slots), draws, logprobs)


def _joined(first: list[Slot], second: list[Slot]) -> list[Slot]:
    """A sequence that contains both in their order; in the default order if both are."""
    result: list[Slot] = []
    at = 0
    for slot in second:
        found = next((i for i in range(at, len(first)) if first[i].fits(slot)), None)
        if found is None:
            while at < len(first) and _RANK[first[at].step] < _RANK[slot.step]:
                result.append(first[at])
                at += 1
            result.append(slot)
        else:
            result += [*first[at:found], first[found].widened(slot)]
            at = found + 1
    return result + first[at:]


def row_inputs(structure: Structure, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The numbers of all rows, by input name, each [B, 1, …]."""
    parts = [_row_values(structure, row) for row in rows]
    return {name: np.stack([part[name] for part in parts])[:, None] for name in parts[0]}


def _row_values(structure: Structure, row: Row) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {
        "seed": np.array([row.seed & 0xFFFFFFFF, row.seed >> 32], np.uint32),
        "stream": np.array(row.stream, np.uint32),
        "prompt": np.array(row.prompt, np.int32),
    }
    placed = _placed(structure, row.drawn_chain if structure.draws else row.chain)
    for name, at, field in structure.fields:
        shape = dict(structure.slots[at].shapes)[field]
        values[name] = _filled(placed[at].values[field], shape)
    return values


def _placed(structure: Structure, chain: Chain) -> list[Step]:
    """The step of each slot: the row's own, or one that changes nothing."""
    pending = list(chain)
    placed = []
    for slot in structure.slots:
        if pending and slot.fits(Slot.of(pending[0])):
            placed.append(pending.pop(0))
        else:
            placed.append(_STEPS[slot.step](**dict(slot.fixed)))
    if pending:
        raise ValueError(f"{structure.name} has no room for {pending[0]}")
    return placed


def _filled(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    filled = np.full(shape, NONE if array.dtype == np.int32 else 0, array.dtype)
    filled[tuple(slice(size) for size in array.shape)] = array
    return filled


def trace_chain(structure: Structure, vocabulary: int) -> Graph:
    """The graph of a structure over ``vocabulary`` logits.

    Inputs: ``logits`` f32[V], the newest ``token``, and what ``row_inputs`` names, as far as it is used.
    Outputs: the next ``token``, or ``DAMAGED`` or ``NOTHING_LEFT``; with log-probabilities also
    ``logprob``, ``alternatives``, ``alternative_logprobs``, which are those of the logits as they came.
    """
    types = {"logits": f"f32[{vocabulary}]", "token": "i32[]"}
    types |= {"seed": "u32[2]", "stream": "u32[]", "prompt": "i32[]"}
    for name, at, field in structure.fields:
        shape = dict(structure.slots[at].shapes)[field]
        empty = _STEPS[structure.slots[at].step]().values[field]
        types[name] = str(TensorType(shape, dtype_name(empty.dtype)))

    def sampling(**given: Stream) -> dict[str, Stream]:
        logits, token, *row = (given[name] for name in ("logits", "token", "prompt", "seed", "stream"))
        moment = Moment(logits, token, row[0], row[1], row[2], [])
        return _choose(structure, moment, given)

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in types]
    sampling.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return _used(trace(sampling, **types))


def _choose(structure: Structure, moment: Moment, given: Mapping[str, Stream]) -> dict[str, Stream]:
    """What the traced chain yields."""
    scores = moment.logits
    names = {(at, field): name for name, at, field in structure.fields}
    for at, slot in enumerate(structure.slots):
        values = {field: given[names[at, field]] for field, _ in slot.shapes}
        scores = _STEPS[slot.step].apply(scores, moment, **values, **dict(slot.fixed))
    noise = gumbel(moment.key, moment.vocabulary, TOKEN_PURPOSE) if structure.draws else 0.0
    chosen = argmax(scores + noise).named("chosen")
    for learn in moment.closing:
        learn(chosen)
    token = where(_is_number(largest(scores)), chosen, NOTHING_LEFT)
    results = {"token": where(_is_number(largest(moment.logits)), token, DAMAGED)}
    if structure.yields_scores:
        results["scores"] = scores
    if structure.logprobs is not None:
        chances = log_softmax(moment.logits)
        results["logprob"] = take(chances, chosen)
        if structure.logprobs:
            count = min(structure.logprobs, moment.vocabulary)
            results["alternative_logprobs"], results["alternatives"] = top_k(chances, count)
    return results


def _is_number(x: Stream) -> Stream:
    return absolute(x) < float("inf")  # also false for NaN


def _used(graph: Graph) -> Graph:
    """Without the inputs that nothing reads."""
    read = {source for node in graph.nodes for source in node.sources} | {*graph.outputs.values()}
    inputs = tuple(n for n in graph.inputs if n in read or n.name in ("logits", "token"))
    return Graph(graph.name, inputs, graph.parameters, graph.outputs, graph.feedback)
