"""Looking inside a model while it runs: streams that are read, and streams that are replaced.

A tap makes a stream of the graph an output of the programs that are derived from it; a program without
taps has nothing of them. A patch rewrites the graph before anything is derived, so that states hold what
was patched. Neither changes the executable that it is asked of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler.patch import change_by, patch, patch_array
from ..ir.dumps.extract import find_nodes
from ..ir.errors import GraphError, SystolicError
from ..ir.graph import Graph, Node
from ..ir.types import Past, Shape, Whole
from .adapters import adapter_choice
from .choice import Chooser
from .generate import Generation, Reply, Step
from .rows import Rows
from .sources import EncoderStates, Source
from .whole_text import run_text, score_outputs

if TYPE_CHECKING:
    from .executable import Executable

TAP_PREFIX = "tap."  # of the outputs that are read


@dataclass(frozen=True, eq=False)
class Reading:
    """One position that was read: the ``token`` there, and what came of it.

    ``values`` has what each tapped stream held, by name: the value of one position, in which a part of
    the past has exactly the positions that are visible, oldest first. ``logits`` f32[V] are those of the
    next token; ``step`` is that token, None inside of the prompt.
    """

    position: int
    token: int
    values: Mapping[str, np.ndarray]
    logits: np.ndarray
    step: Step | None = None


class Taps:
    """Reads streams of a model at every position: made by ``exe.tap``."""

    def __init__(self, executable: Executable, streams: Mapping[str, Node]) -> None:
        self._untapped = executable
        self.streams = streams

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tapped streams, in the order of the graph."""
        return tuple(self.streams)

    @cached_property
    def executable(self) -> Executable:
        """The model with the streams as outputs called ``tap.NAME``."""
        graph = self._untapped.model.graph
        outputs = {TAP_PREFIX + name: node for name, node in self.streams.items()}
        return self._untapped.with_graph(replace(graph, outputs={**graph.outputs, **outputs}), {})

    def patch(self, name: str, value: Any = None, *, add: Any = None, scale: Any = None) -> Taps:
        """The same taps on a patched model; see ``patched``."""
        return self._untapped.patch(name, value, add=add, scale=scale).tap(*self.names)

    def trace(
        self,
        prompt: str | Source = (),
        *,
        encoder_states: np.ndarray | None = None,
        **generation: Any,
    ) -> Iterator[Reading]:
        """Reads a prompt and continues it: one ``Reading`` for each position that is read.

        The keywords are those of ``generate``, and the tokens are the same. The last new token is not
        read any more; with ``max_new_tokens=0`` the prompt alone is read.
        """
        executable, settings = self.executable, Generation(**generation)
        given = prompt if encoder_states is None else EncoderStates(encoder_states)
        source, text = executable.prompt_of(given, settings)
        reply = Reply(executable, text, settings)
        chooser = Chooser(executable, len(text), settings)
        number = adapter_choice(executable.model, settings.adapter).number
        reader, unread = _Reader(executable, self.streams, source, number), text
        while unread:
            *earlier, last = reader.read(unread)
            yield from earlier
            unread = []
            if not reply.is_over:
                token = chooser.choose(last.logits, text)
                text = [*text, token]
                chances = chooser.chances(last.logits, token)
                is_complete = chooser.completes(text)
                last = replace(last, step=reply.push(token, *chances, is_complete=is_complete))
                unread = [] if reply.is_over else [token]
            yield last

    def score(
        self, ids: Source, *, target: Sequence[int] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray | list[np.ndarray]]]:
        """Logits f32[T, V] as of ``exe.score``, and the streams by name: [T, …], or a list of T arrays
        where a value is as long as the past."""
        executable = self.executable
        results = score_outputs(executable, ids, target)
        logits = results[executable.logits_output].astype(np.float32)
        return logits, self._of_text(results, _ends(executable, ids))

    def encode(self, ids: Sequence[int], **inputs: Sequence[int]) -> dict[str, np.ndarray | list[np.ndarray]]:
        """The same streams of a model that reads the whole text; ``inputs`` as of ``exe.encode``."""
        executable, length = self.executable, len(ids)
        texts = executable.inputs.to_encode(ids, inputs)
        results = run_text(executable, executable.programs.score(length), texts)
        return self._of_text(results, dict.fromkeys(executable.model.graph.clocks, length))

    def _of_text(
        self, results: Mapping[str, np.ndarray], ends: Mapping[str, int]
    ) -> dict[str, np.ndarray | list[np.ndarray]]:
        """The streams at every position of a text, from what a scoring program yields [T, …]."""
        values: dict[str, np.ndarray | list[np.ndarray]] = {}
        for name, node in self.streams.items():
            shape = node.tensor.shape
            seen = [visible(value, shape, t, ends) for t, value in enumerate(results[TAP_PREFIX + name])]
            values[name] = seen if any(isinstance(dim, Past) for dim in shape) else np.stack(seen)
        return values


class _Reader:
    """Reads one text, in the first row, with programs that yield results at every position."""

    def __init__(
        self, executable: Executable, streams: Mapping[str, Node], source: Source, adapter: int
    ) -> None:
        self._executable = executable
        self._streams = streams
        self._ends = _ends(executable, source)
        others: list[Source] = [()] * (executable.options.batch - 1)
        self._rows = Rows(executable, [source, *others] if executable.inputs.source else (), [adapter])

    def read(self, tokens: Sequence[int]) -> Iterator[Reading]:
        """Reads more tokens: at least one."""
        others: list[list[int]] = [[] for _ in range(self._executable.options.batch - 1)]
        self._rows.prepare([len(tokens), *map(len, others)])
        self._rows.lengths.grow([list(tokens), *others])
        start = 0
        for size in self._executable.options.cut(len(tokens)):
            yield from self._read_chunk(tokens[start : start + size], size)
            start += size

    def _read_chunk(self, tokens: Sequence[int], size: int) -> Iterator[Reading]:
        executable, rows = self._executable, self._rows
        block = np.zeros((executable.options.batch, size), np.int32)
        lengths = np.zeros(executable.options.batch, np.int32)
        block[0, : len(tokens)], lengths[0] = tokens, len(tokens)
        program = executable.programs.verify(size, rows.longest_source)
        inputs = {executable.inputs.token.name: block, "offset": rows.seen, "length": lengths}
        results, updated = program.run(executable.parameters, inputs | rows.inputs, rows.states)
        start, rows.states, rows.seen = int(rows.seen[0]), {**rows.states, **updated}, rows.seen + lengths
        fetched = {name: executable.backend.fetch(result)[0] for name, result in results.items()}
        logits = fetched[executable.logits_output].astype(np.float32)
        for i, token in enumerate(tokens):
            values = {
                name: visible(fetched[TAP_PREFIX + name][i], node.tensor.shape, start + i, self._ends)
                for name, node in self._streams.items()
            }
            yield Reading(start + i, token, values, logits[i])


def _ends(executable: Executable, source: Source) -> dict[str, int]:
    """How many positions each finished clock has."""
    node = executable.inputs.source
    return {} if node is None else {str(node.clock): len(source)}


def visible(array: np.ndarray, shape: Shape, position: int, ends: Mapping[str, int]) -> np.ndarray:
    """What one position may see of a value that a program holds in slots, in the order of time.

    ``shape`` is the stream's. Position p is in slot p, or in a ring of n slots, in slot p modulo n.
    """
    for axis, dim in enumerate(shape):
        if isinstance(dim, Past):
            oldest = 0 if dim.window is None else max(0, position + 1 - dim.window)
            slots = np.arange(oldest, position + 1) % array.shape[axis]
            array = array.take(slots, axis)
        elif isinstance(dim, Whole):
            array = array.take(np.arange(ends[dim.clock]), axis)
    return array


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logs of probabilities f64[V]."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


# ---- made by an executable ----


def tapped(executable: Executable, patterns: Sequence[str]) -> Taps:
    """Taps on the streams whose names fit; ``SystolicError`` where there is none, or none that changes
    from position to position of the text that is continued."""
    graph = executable.model.graph
    clock = graph.outputs[executable.logits_output].clock
    if not patterns:
        raise SystolicError("tap needs the names of streams, like layers.*.attn.probs")
    wanted: set[Node] = set()
    for pattern in patterns:
        found = find_nodes(graph, pattern)
        wanted |= {node for node in found if node.clock == clock}
        if wanted.isdisjoint(found):
            raise SystolicError(_untappable(found[0], graph))
    return Taps(executable, {node.name: node for node in graph.nodes if node in wanted})


def _untappable(node: Node, graph: Graph) -> str:
    what = "never changes" if node.clock is None else f"is a stream of the clock {node.clock}"
    return f"{node.name} {what}; a tap reads streams that {graph.name} has at each position of its text"


def patched(executable: Executable, pattern: str, how: Mapping[str, Any]) -> Executable:
    """An executable of the same model and weights, in which the streams whose names fit ``pattern`` are
    something else for all that read them.

    ``how`` has one value that is not None. ``replace``: a function of the modelling language from the
    stream to one of the same type, or numbers that broadcast to a value of it; ``add``: numbers that are
    added; ``scale``: numbers that it is multiplied by. The numbers are weights, so that other numbers of
    the same shape run the program that is compiled already.
    """
    given = {name: value for name, value in how.items() if value is not None}
    if len(given) != 1:
        raise SystolicError(f"a patch of {pattern} is one of: a value or function, add=…, scale=…")
    ((kind, value),) = given.items()
    graph = executable.model.graph
    targets = find_nodes(graph, pattern)
    if callable(value):
        if kind != "replace":
            raise SystolicError(f"{kind}= of a patch must be numbers, not {value!r}")
        changed = patch(graph, targets, value)
        known = {node.name for node in graph.parameters}
        for node in changed.parameters:
            if node.name not in known:
                raise SystolicError(f"a patch reads the weight {node.name}, which {graph.name} does not have")
        return executable.with_graph(changed, {})
    count = sum(node.name.startswith("patch.") for node in graph.parameters)
    name, array = f"patch.{count}", patch_array(value)
    try:
        changed = patch(graph, targets, change_by(kind, name, array))
    except GraphError as error:  # its line would be one of ours
        raise SystolicError(f"the patch of {pattern}: {error.message}") from None
    return executable.with_graph(changed, {name: array})
