"""Texts that are known as a whole, each read by one program in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends.interface import Prepared
from ..compiler.derive import source_graph
from ..ir.errors import SystolicError
from ..ir.types import DTYPES
from .adapters import adapter_choice, adapter_inputs
from .lengths import LENGTH_INPUT
from .sources import EncoderStates, Source

if TYPE_CHECKING:
    from .executable import Executable


def score_outputs(
    executable: Executable, ids: Source, target: Sequence[int] | None = None, adapter: str | None = None
) -> dict[str, np.ndarray]:
    """All outputs [T, …] by name of the pass that ``exe.score`` makes."""
    choice, inputs = adapter_choice(executable.model, adapter), executable.inputs
    whole: Any = [*choice.prompt, *ids] if choice.prompt else ids  # type: ignore[misc]  # one text, of ids
    texts = inputs.to_score(whole, target)
    *sources, text = map(len, texts.values())
    programs = executable.programs
    programs = programs.behind_encoder if isinstance(ids, EncoderStates) else programs
    results = run_text(executable, programs.score(text, *sources), texts, choice.number)
    return {name: values[len(choice.prompt) :] for name, values in results.items()}


def log_likelihoods(logits: np.ndarray, tokens: Any) -> np.ndarray:
    """log P of each token after the first, by the logits [T, V] behind them: float64 [T - 1]."""
    scores = logits[:-1].astype(np.float64)
    shifted = scores - scores.max(axis=-1, keepdims=True)
    said = np.asarray(tokens, np.int64)[1:, None]
    chosen = np.take_along_axis(shifted, said, axis=-1)[:, 0]
    return chosen - np.log(np.exp(shifted).sum(axis=-1))


def encode(
    executable: Executable,
    ids: Source,
    output: str | None,
    adapter: str | None,
    others: Mapping[str, Sequence[int]],
) -> np.ndarray:
    """One output of a model that reads the whole text; see ``exe.encode``."""
    model, inputs = executable.model, executable.inputs
    outputs = (source_graph(model.graph, str(inputs.clock)) if inputs.source else model.graph).outputs
    name = next(iter(outputs)) if output is None else output
    if name not in outputs:
        raise SystolicError(f"{model.name} has no output {name!r}; it has {', '.join(outputs)}")
    texts = inputs.to_encode(ids, others)
    length = len(next(iter(texts.values())))
    program = executable.programs.encode(length) if inputs.source else executable.programs.score(length)
    number = adapter_choice(model, adapter).number
    values = run_text(executable, program, texts, number)[name].astype(np.float32)
    return values if outputs[name].clock is not None else values[0]


def run_text(
    executable: Executable, prepared: Prepared, texts: Mapping[str, Any], adapter: int = 0
) -> dict[str, np.ndarray]:
    """The results [T, …] by name of a program that reads texts at once; the last one has T tokens.

    ``adapter`` is the number of the one that they are read with.
    """
    types = {node.name: node.tensor for node in prepared.program.graph.signature.inputs}
    first, *_, length = len(next(iter(texts.values()))), *map(len, texts.values())
    inputs = {"offset": np.zeros(1, np.int32), "length": np.array([length], np.int32)}
    inputs |= adapter_inputs(executable.model.graph, 1, {0: adapter})
    for name, numbers in texts.items():
        inputs[name] = np.zeros(types[name].static_shape, DTYPES[types[name].dtype])
        inputs[name][0, : len(numbers)] = numbers
    if LENGTH_INPUT in types:
        inputs[LENGTH_INPUT] = inputs["length"]
    if executable.inputs.source:  # which is the first text
        inputs[f"length.{executable.inputs.source.clock}"] = np.array([first], np.int32)
    results, _ = prepared.run(executable.parameters, inputs, {})
    return {name: executable.backend.fetch(result)[0, :length] for name, result in results.items()}
