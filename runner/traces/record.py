"""What a trace holds, and how it is read off a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir.graph import Graph, Node
from ...ir.types import Past, Whole
from ..sources import EncoderStates, Source
from ..taps import Reading, Taps, log_softmax
from ..tokens import REPLACEMENT

if TYPE_CHECKING:
    from ..executable import Executable

CANDIDATES = 8  # of each step
TOP_POSITIONS = 5  # of each head, in JSON


@dataclass(frozen=True)
class Token:
    """A token, and its text on its own: an id, where it has none."""

    id: int
    text: str


@dataclass(frozen=True)
class Candidate:
    """A token that could have come, with its probability as the model gave it."""

    token: Token
    probability: float


@dataclass(frozen=True)
class TraceStep:
    """One new token: its index in the text, what the text was before, its ``probability`` as the model gave
    it, before anything was done to sample it, and the ``entropy`` of all tokens in bits."""

    index: int
    text: str
    chosen: Candidate
    entropy: float
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, eq=False)
class Attention:
    """The weights of one stream, ``name``: for each position that was read an array [heads, n] over the n
    positions that it sees, of the text or of its source."""

    name: str
    heads: int
    is_of_source: bool
    weights: tuple[np.ndarray, ...]

    def first(self, row: int) -> int:
        """The oldest position that ``row`` sees."""
        return 0 if self.is_of_source else row + 1 - self.weights[row].shape[1]

    def top(self, weights: np.ndarray, row: int, count: int = TOP_POSITIONS) -> list[tuple[int, float]]:
        """The positions that have the largest of ``weights`` [n] at ``row``, the largest first."""
        best = np.argsort(-weights, kind="stable")[:count]
        return [(self.first(row) + int(at), float(weights[at])) for at in best]


@dataclass(frozen=True, eq=False)
class GenerationTrace:
    """A text that was read and continued: ``tokens`` are all of it, ``prompt`` how many were given."""

    model: str
    tokens: tuple[Token, ...]
    prompt: int
    source: tuple[Token, ...]
    steps: tuple[TraceStep, ...]
    attention: tuple[Attention, ...]


# ---- reading a trace ----


def record_trace(executable: Executable, prompt: Source, new_ids: Sequence[int]) -> GenerationTrace:
    """The trace of a continuation: the whole text is read once more, with taps on all attention weights.

    Of an encoder-decoder, ``prompt`` is the source, and the text begins with the model's start token.
    """
    streams = attention_streams(executable.model.graph, executable.logits_output)
    taps, read = Taps(executable, {node.name: node for node in streams}), new_ids[:-1]
    start, source = 1, _source_tokens(executable, prompt)
    if executable.inputs.source is None:
        start = len(prompt)
        readings = taps.trace([*prompt, *read], max_new_tokens=0)  # type: ignore[misc]  # it is no source
    else:
        readings = taps.trace(prompt, prefix=read, max_new_tokens=0)
    weights: dict[Node, list[np.ndarray]] = {node: [] for node in streams}
    ids: list[int] = []
    steps: list[TraceStep] = []
    for reading in readings:
        ids.append(reading.token)
        for node, rows in weights.items():
            rows.append(_by_head(reading.values[node.name], node))
        if len(ids) >= start and len(steps) < len(new_ids):
            steps.append(_step(executable, reading, ids, new_ids[len(steps)]))
    tokens = tuple(token_of(executable, i) for i in [*ids, *new_ids[-1:]])
    attention = tuple(_attention(node, tuple(rows)) for node, rows in weights.items())
    return GenerationTrace(executable.model.name, tokens, start, source, tuple(steps), attention)


def attention_streams(graph: Graph, output: str) -> list[Node]:
    """The streams of the output's clock that weigh positions: softmax along a part of time."""
    clock = graph.outputs[output].clock
    return [node for node in graph.nodes if node.clock == clock and _positions_axis(node) is not None]


def _positions_axis(node: Node) -> int | None:
    """The axis along which a node weighs positions; None for what does not."""
    if node.op.name != "softmax":
        return None
    axis = node.params["axis"]
    return axis if isinstance(node.tensor.shape[axis], Past | Whole) else None


def _by_head(value: np.ndarray, node: Node) -> np.ndarray:
    """f32[heads, positions], where a head is what the other axes number."""
    moved = np.moveaxis(value, _positions_axis(node), -1)  # type: ignore[arg-type]
    return moved.reshape(-1, moved.shape[-1]).astype(np.float32)


def _attention(node: Node, weights: tuple[np.ndarray, ...]) -> Attention:
    of_source = isinstance(node.tensor.shape[_positions_axis(node)], Whole)  # type: ignore[index]
    return Attention(node.name, weights[0].shape[0], of_source, weights)


def _step(executable: Executable, reading: Reading, ids: Sequence[int], chosen: int) -> TraceStep:
    logprobs = log_softmax(reading.logits)
    chances = np.exp(logprobs)
    best = np.argsort(-logprobs, kind="stable")[:CANDIDATES]

    def candidate(token: int) -> Candidate:
        return Candidate(token_of(executable, token), float(chances[token]))

    entropy = -float(np.sum(chances * np.maximum(logprobs, -1e3))) / np.log(2)  # 0 * -inf would be nan
    text = _text(executable, ids)
    return TraceStep(len(ids), text, candidate(chosen), abs(entropy), tuple(map(candidate, best.tolist())))


def _text(executable: Executable, ids: Sequence[int]) -> str:
    return executable.tokenizer.decode(ids) if executable.tokenizer else " ".join(map(str, ids))


def token_of(executable: Executable, token: int) -> Token:
    """A token with the text that it has inside of a text, special tokens written out."""
    if executable.tokenizer is None:
        return Token(token, str(token))
    between = executable.tokenizer.decode_exactly([token, token])
    text = executable.tokenizer.decode_exactly([token])
    if len(between) == 2 * len(text) + 1:  # a space that is left out at the start of a text
        text = between[len(text) :]
    return Token(token, f"<{token}>" if REPLACEMENT in text or not text else text)


def _source_tokens(executable: Executable, source: Source) -> tuple[Token, ...]:
    node = executable.inputs.source
    if node is None:
        return ()
    if isinstance(source, EncoderStates) or str(node.type) != "i32[]":
        return tuple(Token(i, str(i)) for i in range(len(source)))  # no text, but numbers at each position
    return tuple(token_of(executable, int(token)) for token in source)


# ---- as JSON ----


def trace_json(trace: GenerationTrace) -> dict[str, Any]:
    """The trace as JSON values; of attention, for each head the positions with the largest weights."""
    return {
        "model": trace.model,
        "prompt_tokens": trace.prompt,
        "tokens": [asdict(token) for token in trace.tokens],
        "source": [asdict(token) for token in trace.source],
        "attention": [
            {"name": stream.name, "heads": stream.heads, "of": "source" if stream.is_of_source else "text"}
            for stream in trace.attention
        ],
        "steps": [
            {
                "index": step.index,
                "text": step.text,
                "token": asdict(step.chosen.token),
                "probability": step.chosen.probability,
                "entropy_bits": step.entropy,
                "candidates": [{**asdict(c.token), "probability": c.probability} for c in step.candidates],
                "attention": {stream.name: _heads(stream, step.index - 1) for stream in trace.attention},
            }
            for step in trace.steps
        ],
    }


def _heads(stream: Attention, row: int) -> list[list[dict[str, Any]]]:
    """For each head the positions with the largest weights."""
    return [
        [{"position": at, "weight": weight} for at, weight in stream.top(weights, row)]
        for weights in stream.weights[row]
    ]
