"""Chains as graphs: the structure is compiled, the numbers in it are inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from ...compiler.language import absolute, argmax, take, top_k, where
from ...compiler.language import max as largest
from ...compiler.stream import Stream
from ...compiler.trace import trace
from ...ir.graph import Graph
from ...ir.types import TensorType, dtype_name
from . import filters, penalties
from .random import gumbel
from .step import TOKEN_PURPOSE, Moment, Step, log_softmax
from .structure import DAMAGED, NOTHING_LEFT, Structure

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
STEPS = {step.__name__: step for step in ORDER}


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
        empty = STEPS[structure.slots[at].step]().values[field]
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
        scores = STEPS[slot.step].apply(scores, moment, **values, **dict(slot.fixed))
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
