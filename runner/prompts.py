"""What a model is asked to continue: a prompt, checked, with what an adapter puts before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..ir.errors import SystolicError
from ..ir.types import FLOATS, TensorType
from .adapters import adapter_choice
from .generate import Generation
from .sources import EncoderStates, Source

if TYPE_CHECKING:
    from .executable import Executable


def prompt_of(
    executable: Executable, prompt: str | Sequence[int] | Source, generation: Generation
) -> tuple[Source, list[int]]:
    """(source, text to continue), as of ``exe.prompt_of``; ``SystolicError`` if that cannot be continued."""
    _check_generates(executable, generation)
    name, inputs = executable.model.name, executable.inputs
    source: Source = executable.prompt_ids(prompt) if isinstance(prompt, str) else prompt
    learned = adapter_choice(executable.model, generation.adapter).prompt
    if inputs.source is None:
        if isinstance(source, EncoderStates):
            raise SystolicError(f"{name} has no encoder whose states could be given")
        if generation.prefix:
            raise SystolicError(f"{name} reads one text; only an encoder-decoder has a prefix")
        return [], inputs.checked([*learned, *source] if learned else source, "prompt")  # type: ignore[arg-type,list-item]
    target = inputs.checked([inputs.start, *generation.prefix], "prefix", inputs.token)
    return inputs.checked_source(source, "prompt"), target


def _check_generates(executable: Executable, generation: Generation) -> None:
    signature = executable.model.graph.signature
    name, output = executable.model.name, signature.output(executable.logits_output).type
    _ = executable.is_causal  # raises if it is not
    if not isinstance(output, TensorType) or output.rank != 1 or output.dtype not in FLOATS:
        raise SystolicError(f"{name} cannot generate: its output is {output}, not one logit for each token")
    if generation.stop and executable.tokenizer is None:
        raise SystolicError(f"{name} has no tokenizer, so it cannot stop at strings")
