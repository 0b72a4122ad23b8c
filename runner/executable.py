"""A compiled model: it scores texts, continues prompts, encodes."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import backend_named
from ..backends.interface import Backend
from ..compiler.pipeline import run_passes
from ..compiler.program import State
from ..ir.causality import Certificate
from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node
from ..ir.types import DTYPES, FLOATS, TensorType
from ..models.load import Model
from ..models.spec import Config
from .generate import Generation, Step, chunk_sizes, run_rows
from .options import GRAPH_CAPACITY, Options, options_for
from .programs import DerivedPrograms, Programs, ProgramSource
from .tokens import Tokenizer

Prompt = str | Sequence[int]


class Executable:
    """A model with its programs and weights on one backend; made by ``sy.compile``.

    Prompts are token ids, or text where the model has a tokenizer. The keywords of ``generate`` and
    its relatives are the fields of ``Generation``: max_new_tokens, temperature, top_k, top_p, seed,
    stop, ignore_eos.
    """

    def __init__(self, model: Model, options: Options, backend: Backend, source: ProgramSource) -> None:
        self.model = model
        self.options = options
        self.backend = backend
        self.programs = Programs(source, backend)

    @property
    def states(self) -> list[State]:
        """What is kept from step to step: where, how many bytes, and why."""
        return list(self.programs.states)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it has one."""
        model = self.model
        if model.tokenizer_path is None:
            return None
        return Tokenizer(model.tokenizer_path, add_bos=model.add_bos, bos_id=model.bos_id)

    @cached_property
    def parameters(self) -> Mapping[str, Any]:
        """The weights, by name, where the backend wants them."""
        graph, weights = self.model.graph, self.model.weights
        if weights is None:
            raise SystolicError(f"{self.model.name} has no weights, so it cannot run")
        placed = {}
        for node in graph.parameters:
            if node.name not in weights:
                raise SystolicError(f"the weights of {self.model.name} have no tensor {node.name}")
            placed[node.name] = self.backend.place(_checked(node.name, weights[node.name], node.tensor))
        return placed

    @property
    def logits_output(self) -> str:
        """The name of the output that tokens are chosen from: ``logits``, or the first."""
        outputs = self.model.graph.outputs
        return "logits" if "logits" in outputs else next(iter(outputs))

    @property
    def logit_count(self) -> int:
        """V: how many logits a position has."""
        return self.model.graph.outputs[self.logits_output].tensor.static_shape[-1]

    @cached_property
    def token_inputs(self) -> tuple[Node, ...]:
        """The inputs: the first takes token ids, and others a number for each of them, too."""
        inputs = self.model.graph.inputs
        if not inputs or any(str(node.type) != "i32[]" for node in inputs):
            shown = ", ".join(f"{node.name}: {node.type}" for node in inputs)
            raise SystolicError(
                f"{self.model.name} takes ({shown}); only one input of token ids i32[], and numbers "
                "beside it, can be run"
            )
        return inputs

    @cached_property
    def token_input(self) -> str:
        """The name of the only input."""
        first, *others = self.token_inputs
        if others:
            raise SystolicError(
                f"{self.model.name} also takes {others[0].name}, which only encode() can give"
            )
        return first.name

    @cached_property
    def _certificate(self) -> Certificate:
        return self.model.graph.certificate()

    def fresh_states(self) -> dict[str, Any]:
        """The states before the first position, by name."""
        return {s.name: self.backend.zeros(s.type.static_shape, s.type.dtype) for s in self.programs.states}

    # ---- whole texts ----

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """Logits float32 [T, V] behind each position of a text, in one parallel pass."""
        texts = {self.token_input: self._checked_ids(ids, "text")}
        return self._whole_text(texts)[self.logits_output].astype(np.float32)

    def log_likelihoods(self, ids: Sequence[int]) -> np.ndarray:
        """log P of each token after the first, given those before it: float64 [T - 1]."""
        logits = self.score(ids)[:-1].astype(np.float64)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(shifted, np.asarray(ids, np.int64)[1:, None], axis=-1)[:, 0]
        return chosen - np.log(np.exp(shifted).sum(axis=-1))

    def encode(self, ids: Sequence[int], *, output: str | None = None, **inputs: Sequence[int]) -> np.ndarray:
        """What a model that reads the whole text yields: float32 [T, …], one value for each position,
        or […] where the output is one value for the text.

        ``output`` is the name of one of the model's outputs, by default the first. ``inputs`` are what
        the model takes beside the ids, by name (``token_type_ids``), a number for each position; zeros
        where they are not given.
        """
        outputs = self.model.graph.outputs
        name = next(iter(outputs)) if output is None else output
        if name not in outputs:
            raise SystolicError(f"{self.model.name} has no output {name!r}; it has {', '.join(outputs)}")
        values = self._whole_text(self._texts(ids, inputs))[name].astype(np.float32)
        return values if outputs[name].clock is not None else values[0]

    def _texts(self, ids: Sequence[int], others: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """The numbers of each input, for each position of one text."""
        first, *further = self.token_inputs
        texts = {first.name: self._checked_ids(ids, "text")}
        length = len(texts[first.name])
        for node in further:
            texts[node.name] = self._checked_numbers(node, others.get(node.name, [0] * length), length)
        for name in set(others) - {node.name for node in further}:
            known = ", ".join(node.name for node in further) or "nothing"
            raise SystolicError(f"{self.model.name} takes no {name} beside the token ids; it takes {known}")
        return texts

    def _checked_numbers(self, node: Node, numbers: Sequence[int], length: int) -> list[int]:
        limit = _table_size(self.model.graph, node)
        checked = [int(number) for number in numbers]
        if len(checked) != length or not all(0 <= number < limit for number in checked):
            raise SystolicError(f"{node.name} must be {length} numbers from 0 to {limit - 1}, one per token")
        return checked

    def _whole_text(self, texts: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        length = len(next(iter(texts.values())))
        program = self.programs.score(length)
        inputs = {"offset": np.zeros(1, np.int32), "length": np.array([length], np.int32)}
        for name, numbers in texts.items():
            inputs[name] = np.zeros((1, program.program.chunk), np.int32)
            inputs[name][0, :length] = numbers
        results, _ = program.run(self.parameters, inputs, {})
        return {name: self.backend.fetch(result)[0, :length] for name, result in results.items()}

    # ---- generation ----

    def prepare(self, length: int) -> None:
        """Makes the programs now that a prompt of ``length`` tokens will need, and the one to decode."""
        for size in {1, *chunk_sizes(length, self.options.chunks)}:
            self.programs.chunk(size)

    def steps(self, prompt: Prompt, **generation: Any) -> Iterator[Step]:
        """The new tokens one by one: (token, finish reason of the last, text that can be shown)."""
        rows = self._run([prompt], Generation(**generation))
        return (step for (step,) in rows if step)

    def generate(self, prompt: Prompt, **generation: Any) -> list[int]:
        """The new token ids, with the end-of-sequence token or what completed a stop string."""
        return [step.token for step in self.steps(prompt, **generation)]

    def stream(self, prompt: Prompt, **generation: Any) -> Iterator[str]:
        """The new text, piece by piece, never ending inside a character or a stop string."""
        if self.tokenizer is None:
            raise SystolicError(f"{self.model.name} has no tokenizer, so it cannot stream text; use steps()")
        return (step.text for step in self.steps(prompt, **generation) if step.text)

    def generate_batch(self, prompts: Sequence[Prompt], **generation: Any) -> list[list[int]]:
        """The new token ids of each prompt, ``batch`` prompts at a time.

        Each row is what ``generate`` gives for it alone; where tokens are drawn, row r has random
        numbers of its own.
        """
        settings, replies = Generation(**generation), []
        for start in range(0, len(prompts), self.options.batch):
            part = prompts[start : start + self.options.batch]
            rows: list[list[int]] = [[] for _ in part]
            for steps in self._run(part, settings, first_row=start):
                for row, step in zip(rows, steps, strict=True):
                    row.extend([step.token] if step else [])
            replies += rows
        return replies

    def _run(
        self, prompts: Sequence[Prompt], generation: Generation, first_row: int = 0
    ) -> Iterator[list[Step | None]]:
        self._check_generates(generation)
        ids = [self._checked_ids(self.prompt_ids(prompt), "prompt") for prompt in prompts]
        return run_rows(self, ids, generation, first_row)

    def prompt_ids(self, prompt: Prompt) -> Sequence[int]:
        """The token ids of a prompt, as the tokenizer makes them from text."""
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise SystolicError(f"{self.model.name} has no tokenizer; give the prompt as token ids")
        return self.tokenizer.encode(prompt)

    def _check_generates(self, generation: Generation) -> None:
        name, output = self.model.name, self.model.graph.outputs[self.logits_output].type
        self._certificate.raise_if_leaking()
        if not isinstance(output, TensorType) or output.rank != 1 or output.dtype not in FLOATS:
            raise SystolicError(
                f"{name} cannot generate: its output is {output}, not one logit for each token"
            )
        if generation.stop and self.tokenizer is None:
            raise SystolicError(f"{name} has no tokenizer, so it cannot stop at strings")

    def _checked_ids(self, ids: Sequence[int], kind: str) -> list[int]:
        try:
            checked = [operator.index(token) for token in ids]
        except TypeError:
            raise SystolicError(f"the {kind} must be a list of integer token ids, not {ids!r}") from None
        if not checked:
            raise SystolicError(f"the {kind} is empty, and {self.model.name} adds no BOS token to begin with")
        for token in checked:
            if not 0 <= token < self.model.vocabulary_size:
                raise SystolicError(
                    f"token id {token} is outside the vocabulary of {self.model.name}, "
                    f"which has ids 0 to {self.model.vocabulary_size - 1}"
                )
        if len(checked) > self.options.capacity:
            raise SystolicError(
                f"the {kind} has {len(checked)} tokens, more than the capacity of {self.options.capacity}"
            )
        return checked


def _checked(name: str, array: np.ndarray, type_: TensorType) -> np.ndarray:
    found = np.asarray(array)
    if found.shape != type_.static_shape or found.dtype != DTYPES[type_.dtype]:
        raise SystolicError(f"weight {name} must be {type_}, not {found.dtype} {list(found.shape)}")
    return found


def compile(
    model: Model | Graph,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    backend: str = "xla",
    batch: int = 1,
    capacity: int | None = None,
    chunk: int | None = None,
    state: str = "auto",
    cache_directory: str | Path | None = None,
) -> Executable:
    """Prepares a model, or a traced graph with its weights, to run on ``backend`` (xla, numpy).

    ``batch`` rows run side by side with up to ``capacity`` positions each (default: the model's
    context, at most 1024; 256 for a bare graph); prompts are read in chunks of up to ``chunk``;
    ``state`` is auto (a minimum cut), sources or tokens. Raises ``SystolicError`` for a bad option.
    """
    if isinstance(model, Graph):
        capacity = GRAPH_CAPACITY if capacity is None else capacity
        model = model_of_graph(model, weights, capacity)
    cache = None if cache_directory is None else Path(cache_directory)
    options = options_for(model, backend, batch, capacity, chunk, state, cache)
    final = run_passes(model.graph)[-1].graph
    return Executable(model, options, backend_named(backend, cache), DerivedPrograms(final, options))


def model_of_graph(graph: Graph, weights: Mapping[str, np.ndarray] | None, capacity: int) -> Model:
    """A model without tokenizer or special tokens, around a traced graph."""
    return Model(
        name=graph.name,
        path=Path(),
        config=Config(graph.name, {}),
        graph=graph,
        weights=weights if weights or graph.parameters else {},
        vocabulary_size=min((_table_size(graph, node) for node in graph.inputs), default=2**31),
        context_length=capacity,
        bos_id=None,
        eos_ids=(),
        tokenizer_path=None,
        add_bos=False,
        start_id=None,
        sampling={},
    )


def _table_size(graph: Graph, numbers: Node) -> int:
    """How many rows the tables have that an input is looked up in: larger ones would be moved inside."""
    tables = [
        table.tensor.shape[node.params["axis"]]
        for node in graph.nodes
        if node.op.name == "take" and node.sources[1] is numbers
        for table in node.sources[:1]
    ]
    return min((size for size in tables if isinstance(size, int)), default=2**31)
