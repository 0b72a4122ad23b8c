"""A compiled model: it scores texts, continues prompts, encodes."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.errors import SystolicError
from .adapters import adapter_choice, adapters_of
from .generate import Generation, Step, loop_of, run_constrained, run_rows, unwatched
from .inputs import Inputs
from .placement import place_weights
from .programs import Programs, Report
from .prompts import prompt_of
from .sources import EncoderStates, Source

if TYPE_CHECKING:
    from ..backends.interface import Backend
    from ..compiler.program import State
    from ..ir.graph import Graph
    from ..models.chat_template import Message
    from ..models.model import Model
    from .batch import Batch
    from .beams import Hypothesis
    from .grammar import Grammars
    from .options import Options
    from .scheduler import Scheduler
    from .session import Session
    from .snapshot import Snapshot
    from .speculation import Speculation
    from .taps import Taps
    from .tokens import Tokenizer
    from .undo import Undo

Prompt = str | Sequence[int]


class Executable:
    """A model with its programs and weights on one backend; made by ``sy.compile``.

    Prompts are token ids, or text where the model has a tokenizer. The keywords of ``generate`` and
    its relatives are the fields of ``Generation``: max_new_tokens, stop, ignore_eos, temperature, top_k,
    top_p, seed, logprobs and many more.
    """

    def __init__(self, model: Model, options: Options, backend: Backend, programs: Programs) -> None:
        self.model = model
        self.options = options
        self.backend = backend
        self.programs = programs
        self._wider: dict[int, Executable] = {}  # by rows

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
        from .tokens import Tokenizer

        return Tokenizer(model.tokenizer_path, add_bos=model.add_bos, bos_id=model.bos_id)

    @cached_property
    def grammars(self) -> Grammars:
        """What new text can be made to fit, in the tokens of this model."""
        from .grammar import Grammars

        return Grammars(self)

    @cached_property
    def parameters(self) -> Mapping[str, Any]:
        """The weights, by name, where the backend wants them."""
        self.place()
        return self.__dict__["parameters"]

    @property
    def logits_output(self) -> str:
        """The name of the output that tokens are chosen from: ``logits``, or the first."""
        outputs = [port.name for port in self.model.graph.signature.outputs]
        return "logits" if "logits" in outputs else outputs[0]

    @property
    def logit_count(self) -> int:
        """V: how many logits a position has."""
        return self.model.graph.signature.output(self.logits_output).tensor.static_shape[-1]

    @cached_property
    def inputs(self) -> Inputs:
        """What the model takes, by clock."""
        clock = self.model.graph.signature.output(self.logits_output).clock
        return Inputs(self.model, clock, self.options.capacity, self.options.source_room)

    @cached_property
    def is_causal(self) -> bool:
        """True, as some process has proved; ``CausalityError`` with the path if an output sees the future."""

        def prove() -> bool:
            self.model.graph.certificate().raise_if_leaking()
            return True

        return self.programs.lowered.keep("causal", prove, bool)

    def fresh_states(self) -> dict[str, Any]:
        """The states before the first position, by name; without what a source leaves."""
        kept = [state for state in self.programs.states if state.kind != "constant"]
        return {s.name: self.backend.zeros(s.type.static_shape, s.type.dtype) for s in kept}

    # ---- states as values ----

    @cached_property
    def undo(self) -> Undo:
        """What the states can undo, and what going back costs."""
        from .undo import Undo

        return Undo(self.programs.states)

    def batch(self, checkpoint_every: int | None = None) -> Batch:
        """Empty rows, whose states can be copied, saved and set back; see ``Batch``."""
        from .batch import Batch

        return Batch(self, checkpoint_every)

    def scheduler(self, **options: Any) -> Scheduler:
        """Serves many requests at once with the rows of this executable; see ``Scheduler``."""
        from .scheduler import Scheduler

        return Scheduler(self, **options)

    def session(self, prompt: Prompt, **generation: Any) -> Session:
        """A text that can be paused, edited and steered while it is generated; see ``Session``."""
        from .session import Session

        return Session(self, prompt, **generation)

    def speculate(self, prompt: Prompt, **options: Any) -> Speculation:
        """Continues a prompt with guessed tokens that are checked together; see ``Speculation``."""
        from .speculation import Speculation

        return Speculation(self, prompt, **options)

    def save_state(self, snapshot: Snapshot, path: str | Path) -> None:
        """Writes the state of a text to a safetensors file."""
        from .saved_state import save_state

        save_state(self, snapshot, Path(path))

    def load_state(self, path: str | Path) -> Snapshot:
        """Reads such a file; ``SystolicError`` if another model made it, or if it does not fit."""
        from .saved_state import load_state

        return load_state(self, Path(path))

    # ---- looking inside ----

    def tap(self, *names: str) -> Taps:
        """Reads streams of the model by their names in dumps, like ``layers.*.attn.probs``; see ``Taps``."""
        from .taps import tapped

        return tapped(self, names)

    def patch(self, name: str, value: Any = None, *, add: Any = None, scale: Any = None) -> Executable:
        """The same model, in which streams are something else for all that read them; see ``patched``."""
        from .taps import patched

        return patched(self, name, {"replace": value, "add": add, "scale": scale})

    def with_graph(self, graph: Graph, weights: Mapping[str, np.ndarray]) -> Executable:
        """The same model with another graph, and the weights that it has beside those of this one."""
        from ..compiler.pipeline import run_passes
        from .program_source import DerivedPrograms

        known = ChainMap(dict(weights), self.model.weights or {})  # type: ignore[arg-type]  # only read
        model = replace(self.model, graph=graph, weights=known)
        source = DerivedPrograms(run_passes(graph, self.options.passes)[-1].graph, self.options)
        made = Executable(model, self.options, self.backend, Programs(source, self.backend))
        more = {name: self.backend.place(array) for name, array in weights.items()}
        made.__dict__["parameters"] = {**self.parameters, **more}
        return made

    # ---- whole texts ----

    def score(
        self, ids: Source, *, target: Sequence[int] | None = None, adapter: str | None = None
    ) -> np.ndarray:
        """Logits float32 [T, V] behind each position of a text, in one parallel pass.

        An encoder-decoder reads ``ids`` as its source, and yields the logits behind each position of
        ``target``, which begins with the model's start token. ``EncoderStates`` are read in place of a
        source. ``adapter`` is one of those that the model was compiled with; a learned prompt is no part
        of the text.
        """
        from .whole_text import score_outputs

        return score_outputs(self, ids, target, adapter)[self.logits_output].astype(np.float32)

    def log_likelihoods(
        self, ids: Source, *, target: Sequence[int] | None = None, adapter: str | None = None
    ) -> np.ndarray:
        """log P of each token after the first, given those before it: float64 [T - 1].

        The tokens are those of ``target`` where the model has a source, as in ``score``.
        """
        from .whole_text import log_likelihoods

        logits = self.score(ids, target=target, adapter=adapter)
        return log_likelihoods(logits, ids if target is None else target)

    def encode(
        self, ids: Source, *, output: str | None = None, adapter: str | None = None, **inputs: Sequence[int]
    ) -> np.ndarray:
        """What a model that reads the whole text yields: float32 [T, …], one value for each position,
        or […] where the output is one value for the text.

        ``output`` is the name of one of the model's outputs, by default the first; of an
        encoder-decoder, that is what the decoder reads of its source. ``inputs`` are what the model
        takes beside the ids, by name (``token_type_ids``), a number for each position; zeros where
        they are not given.
        """
        from .whole_text import encode

        return encode(self, ids, output, adapter, inputs)

    # ---- generation ----

    def prepare(self, length: int, *, report: Report | None = None, **generation: Any) -> None:
        """Makes the programs now that a prompt of ``length`` tokens will need with these settings.

        They are compiled side by side; ``report`` is told how many are ready, and of how many.
        """
        lowered = self.programs.lowered
        source = length if self.inputs.source else 0
        learned = adapter_choice(self.model, generation.get("adapter")).prompt
        prefix = 1 if source else length + len(learned)
        wanted = [lowered.source(source)] if source else []
        wanted += loop_of(self, prefix, Generation(**generation), source)
        self.programs.prepare(wanted, report)

    def place(self, report: Report | None = None) -> None:
        """Reads, rounds and packs the weights now; ``report`` is told how many are ready, and of how many."""
        if "parameters" not in self.__dict__:
            model, transposed = self.model, self.options.transposed
            placed = place_weights(model.graph, model.weights, self.backend, model.name, transposed, report)
            self.__dict__["parameters"] = placed

    def steps(
        self, prompt: Prompt | Source = (), *, encoder_states: np.ndarray | None = None, **generation: Any
    ) -> Iterator[Step]:
        """The new tokens one by one: (token, finish reason of the last, text that can be shown).

        ``encoder_states`` f32[S, D] are read in place of an encoder-decoder's source.
        """
        source = prompt if encoder_states is None else EncoderStates(encoder_states)
        settings = Generation(**generation)
        rows = self._run([source], settings, [settings.adapter])
        return (step for (step,) in rows if step)

    def generate(self, prompt: Prompt | Source = (), **generation: Any) -> list[int]:
        """The new token ids, with the end-of-sequence token or what completed a stop string."""
        return [step.token for step in self.steps(prompt, **unwatched(generation))]

    def stream(self, prompt: Prompt, **generation: Any) -> Iterator[str]:
        """The new text, piece by piece, never ending inside a character or a stop string."""
        if self.tokenizer is None:
            raise SystolicError(f"{self.model.name} has no tokenizer, so it cannot stream text; use steps()")
        return (step.text for step in self.steps(prompt, **generation) if step.text)

    def chat(self, messages: Sequence[Message], **generation: Any) -> str:
        """The model's answer to messages with a ``role`` and a ``content``; see ``chat_prompt``."""
        return "".join(self.stream_chat(messages, **unwatched(generation)))

    def stream_chat(self, messages: Sequence[Message], **generation: Any) -> Iterator[str]:
        """The answer piece by piece."""
        from .chat import chat_prompt

        prompt = chat_prompt(self, messages)
        return self.stream(prompt.ids, **prompt.settings(generation))

    def generate_batch(
        self,
        prompts: Sequence[Prompt | Source],
        *,
        adapter: str | Sequence[str | None] | None = None,
        **generation: Any,
    ) -> list[list[int]]:
        """The new token ids of each prompt, ``batch`` prompts at a time.

        Each row is what ``generate`` gives for it alone; where tokens are drawn, row r has random
        numbers of its own. ``adapter`` is one for all prompts, or a list of one for each.
        """
        settings, replies = Generation(**unwatched(generation)), []
        adapters = adapters_of(adapter, len(prompts))
        for start in range(0, len(prompts), self.options.batch):
            part = prompts[start : start + self.options.batch]
            rows: list[list[int]] = [[] for _ in part]
            chosen = adapters[start : start + self.options.batch]
            for steps in self._run(part, settings, chosen, first_row=start):
                for row, step in zip(rows, steps, strict=True):
                    row.extend([step.token] if step else [])
            replies += rows
        return replies

    def beam_search(
        self, prompt: Prompt | Source = (), *, encoder_states: np.ndarray | None = None, **search: Any
    ) -> list[Hypothesis]:
        """The best ``n`` continuations that ``beams`` beams find, the best first.

        The keywords are the fields of ``BeamSearch``: beams, n, length_penalty, early_stopping, groups,
        diversity, and those of ``Generation`` that draw nothing.
        """
        from .beams import BeamSearch, beam_search

        settings = BeamSearch(**search)
        source, ids = self.prompt_of(
            prompt if encoder_states is None else EncoderStates(encoder_states), settings
        )
        return beam_search(self.with_rows(settings.beams), ids, source, settings)

    def contrastive_search(self, prompt: Prompt | Source = (), **search: Any) -> list[int]:
        """The new token ids that a contrastive search finds, as of ``generate``.

        The keywords are the fields of ``ContrastiveSearch``: top_k, penalty_alpha, and those of
        ``Generation`` that draw nothing.
        """
        return [step.token for step in self.contrastive_steps(prompt, **search)]

    def contrastive_steps(
        self, prompt: Prompt | Source = (), *, encoder_states: np.ndarray | None = None, **search: Any
    ) -> Iterator[Step]:
        """The same one by one, as of ``steps``."""
        from .contrastive import contrastive_search

        return contrastive_search(self, prompt, encoder_states, search)

    @cached_property
    def with_similarity(self) -> Executable:
        """The same, whose programs tell how similar each position is to those before it."""
        from ..compiler.similarity import with_similarity

        return self.with_graph(with_similarity(self.model.graph, self.logits_output), {})

    def text_behind(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of new tokens behind a prompt, without an end-of-sequence token."""
        if self.tokenizer is None:
            raise SystolicError(f"{self.model.name} has no tokenizer")
        from .tokens import TextStream

        return TextStream(self.tokenizer, prompt).whole(t for t in tokens if t not in self.model.eos_ids)

    def with_rows(self, rows: int) -> Executable:
        """This executable if it has so many rows, else one that has, with the same weights."""
        if rows <= self.options.batch:
            return self
        if rows not in self._wider:
            source, options = self.programs.with_rows(rows), replace(self.options, batch=rows)
            store = self.programs.store_within(f"{rows} rows")
            programs = Programs(source, self.backend, store)
            self._wider[rows] = Executable(self.model, options, self.backend, programs)
            self._wider[rows].__dict__["parameters"] = self.parameters
        return self._wider[rows]

    def _run(
        self,
        prompts: Sequence[Prompt | Source],
        generation: Generation,
        adapters: Sequence[str | None],
        first_row: int = 0,
    ) -> Iterator[list[Step | None]]:
        asked = [replace(generation, adapter=adapter) for adapter in adapters]
        sources, ids = zip(*map(self.prompt_of, prompts, asked), strict=True)
        numbers = [adapter_choice(self.model, adapter).number for adapter in adapters]
        run = run_rows if generation.form is None else run_constrained
        return run(self, ids, generation, first_row, sources if self.inputs.source else (), numbers)

    def prompt_of(self, prompt: Prompt | Source, generation: Generation) -> tuple[Source, list[int]]:
        """(source, text to continue): an encoder-decoder reads the prompt as its source.

        Raises ``SystolicError`` if this model cannot continue it.
        """
        return prompt_of(self, prompt, generation)

    def prompt_ids(self, prompt: Prompt) -> Sequence[int]:
        """The token ids of a prompt, as the tokenizer makes them from text."""
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise SystolicError(f"{self.model.name} has no tokenizer; give the prompt as token ids")
        return self.tokenizer.encode(prompt)
