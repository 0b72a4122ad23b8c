"""systolic score: how likely a model finds a text."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...ir.errors import SystolicError
from ..files import read_text
from .arguments import Adapter, Backend, Capacity, Dtype, Json, ModelArgument, Roll, StateDtype
from .table import aligned

if TYPE_CHECKING:
    from ..executable import Executable


def score(
    model: ModelArgument,
    file: Annotated[Path, typer.Argument(help="A text file in UTF-8.")],
    source: Annotated[
        Path | None, typer.Option(help="What an encoder-decoder reads first: another text file.")
    ] = None,
    backend: Backend = "xla",
    capacity: Capacity = None,
    dtype: Dtype = None,
    state_dtype: StateDtype = None,
    roll: Roll = "auto",
    adapter: Adapter = None,
    as_json: Json = False,
) -> None:
    """Prints the log-likelihood and the perplexity of a text file.

    A text longer than the capacity is read in windows that each begin anew; every token but the first
    (unless it follows a BOS token) is counted once. An encoder-decoder scores the file as its target
    behind --source, every token of it.
    """
    from ..locate import open_executable

    text = read_text(file)
    executable = open_executable(
        model,
        backend,
        capacity=capacity,
        state_dtype=state_dtype,
        dtype=dtype,
        roll=roll,
        adapters=adapter or (),
    )
    if executable.inputs.source or source:
        report = _report(executable, text, *_score_target(executable, text, source), pieces=1)
    else:
        report = _report(executable, text, *_score_text(executable, text, file))
    print(json.dumps(report) if as_json else _table(report))


def _score_text(executable: Executable, text: str, file: Path) -> tuple[float, int, int]:
    """(log-likelihood, tokens that were predicted, windows) of a text."""
    from ..adapters import adapter_choice
    from ..locate import only_adapter

    ids = executable.prompt_ids(text)
    if len(ids) < 2:
        raise SystolicError(f"{file} has {len(ids)} tokens, and at least 2 are needed to score one")
    bos = executable.model.bos_id if ids[0] == executable.model.bos_id else None
    adapter = only_adapter(executable.model)
    learned = adapter_choice(executable.model, adapter).prompt
    parts = windows(ids, executable.options.capacity - len(learned), bos)
    chances = (executable.log_likelihoods(part, adapter=adapter) for part in _with_progress(parts))
    total = sum(float(chance.sum()) for chance in chances)
    return total, sum(len(part) - 1 for part in parts), len(parts)


def _score_target(executable: Executable, text: str, source: Path | None) -> tuple[float, int]:
    """(log-likelihood, tokens that were predicted) of a text behind a source."""
    name = executable.model.name
    if source is None:
        raise SystolicError(f"{name} scores a text behind its source: give --source")
    if executable.inputs.source is None:
        raise SystolicError(f"{name} reads one text; only an encoder-decoder has a --source")
    target = [executable.inputs.start, *executable.prompt_ids(text)]
    ids = executable.prompt_ids(read_text(source))
    return float(executable.log_likelihoods(ids, target=target).sum()), len(target) - 1


def windows(ids: Sequence[int], capacity: int, bos: int | None) -> list[Sequence[int]]:
    """Pieces of up to ``capacity`` tokens in which every token after the first is predicted once.

    Each begins with the BOS token if the text does, else with the last token of the piece before.
    """
    if capacity < 2 < len(ids):
        raise SystolicError(f"a capacity of {capacity} is too small to score a text; at least 2 is needed")
    starts = range(0, len(ids) - 1, max(capacity - 1, 1))
    if bos is None:
        return [ids[start : start + capacity] for start in starts]
    return [[bos, *ids[start + 1 : start + capacity]] for start in starts]


def _with_progress(parts: list[Sequence[int]]) -> Iterable[Sequence[int]]:
    """The parts, with a bar on stderr if there are several and someone is watching."""
    if len(parts) == 1 or not sys.stderr.isatty():
        return parts
    from rich.console import Console
    from rich.progress import track

    return track(parts, "scoring", console=Console(stderr=True), transient=True)


def _report(executable: Executable, text: str, total: float, tokens: int, pieces: int) -> dict[str, Any]:
    per_token = -total / tokens
    return {
        "model": executable.model.name,
        "backend": executable.options.backend,
        "log_likelihood": total,
        "tokens": tokens,
        "characters": len(text),
        "bytes": len(text.encode()),
        "windows": pieces,
        "nats_per_token": per_token,
        "nats_per_character": -total / len(text),
        "nats_per_byte": -total / len(text.encode()),
        "perplexity": math.exp(per_token) if per_token < 700 else None,  # beyond what a float holds
    }


def _table(report: dict[str, Any]) -> str:
    return aligned(
        [
            (name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
            for name, value in report.items()
        ]
    )
