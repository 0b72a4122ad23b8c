"""systolic run: continues a prompt and shows the text while it is made."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...ir.errors import SystolicError
from .arguments import DEFAULT_MODEL, Backend, Capacity, Json, ModelArgument, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...models.load import Model
    from ..executable import Executable

INTERRUPTED_STATUS = 130


@dataclass
class Record:
    """What a run has given so far; times are seconds."""

    new_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: str = "length"  # what it is if not a single token was asked for
    timings: dict[str, float | None] = field(default_factory=dict)


def run(
    model: ModelArgument = DEFAULT_MODEL,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(help='Token ids instead, like "1,403,407".')] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 64,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="0 always takes the most likely token. Default: as generation_config.json says, or 0."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from the k most likely tokens only; 0: all.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the most likely tokens with this mass.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed draws the same tokens.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; can be repeated.")] = None,
    backend: Backend = "xla",
    state: State = None,
    capacity: Capacity = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on behind an end token.")] = False,
    as_json: Json = False,
) -> None:
    """Continues a prompt; the text appears as it is generated."""
    from ..locate import open_executable

    start = time.perf_counter()
    executable = open_executable(model, backend, capacity=capacity, state=state)
    ids = list(executable.prompt_ids(_prompt(prompt, prompt_ids)))
    record = Record(timings={"load_seconds": time.perf_counter() - start})
    steps = executable.steps(
        ids,
        max_new_tokens=max_new_tokens,
        **_sampling(executable.model, temperature, top_k, top_p),
        seed=seed,
        stop=stop or (),
        ignore_eos=ignore_eos,
    )
    if not as_json and not executable.inputs.source:  # what an encoder-decoder says stands on its own
        _show_prompt(prompt)
    try:
        _follow(executable, ids, steps, record, show=not as_json)
    except KeyboardInterrupt:
        record.finish_reason = "interrupted"
    if as_json:
        print(json.dumps(_report(executable, ids, record), ensure_ascii=False))
    else:
        _close(record)
    if record.finish_reason == "interrupted":
        raise typer.Exit(INTERRUPTED_STATUS)


def _prompt(prompt: str | None, prompt_ids: str | None) -> str | list[int]:
    if prompt is not None and prompt_ids is not None:
        raise SystolicError("--prompt and --prompt-ids exclude each other; give one of them")
    if prompt_ids is None:
        return prompt or ""
    try:
        return [int(part) for part in prompt_ids.replace(",", " ").split()]
    except ValueError:
        raise SystolicError(f'--prompt-ids must be integers like "1,403,407", not {prompt_ids!r}') from None


def _sampling(
    model: Model, temperature: float | None, top_k: int | None, top_p: float | None
) -> dict[str, Any]:
    """How tokens are drawn: what the flags say, and behind them the model's own settings."""
    asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    settings = {**model.sampling, **{name: value for name, value in asked.items() if value is not None}}
    return {**settings, "top_k": int(settings.get("top_k", 0))}


def _follow(executable: Executable, ids: Sequence[int], steps: Any, record: Record, *, show: bool) -> None:
    """Takes all steps, showing each piece at once."""
    start = time.perf_counter()
    executable.prepare(len(ids))
    compiled = previous = time.perf_counter()
    record.timings["compile_seconds"] = compiled - start
    for step in steps:
        if not record.new_ids:
            record.timings["first_token_seconds"] = time.perf_counter() - compiled
            previous = time.perf_counter()
        record.new_ids.append(step.token)
        record.pieces.append(step.text if executable.tokenizer else f" {step.token}")
        record.finish_reason = step.finish_reason or record.finish_reason
        if show and record.pieces[-1]:
            sys.stdout.write(record.pieces[-1])
            sys.stdout.flush()
        elapsed = time.perf_counter() - previous
        record.timings["decode_seconds"] = elapsed
        more = len(record.new_ids) - 1
        record.timings["tokens_per_second"] = more / elapsed if more else None


def _show_prompt(prompt: str | None) -> None:
    """On a terminal the text begins with its prompt; in a pipe there is only what was generated."""
    if prompt and sys.stdout.isatty():
        sys.stdout.write(typer.style(prompt, dim=True))
        sys.stdout.flush()


def _close(record: Record) -> None:
    print()
    speed = record.timings.get("tokens_per_second")
    if sys.stderr.isatty() and speed:
        line = f"{len(record.new_ids)} tokens ({record.finish_reason}), {speed:.1f} tokens per second"
        print(typer.style(line, dim=True), file=sys.stderr)


def _report(executable: Executable, ids: list[int], record: Record) -> dict[str, Any]:
    return {
        "model": executable.model.name,
        "backend": executable.options.backend,
        "prompt_ids": ids,
        "new_ids": record.new_ids,
        "text": "".join(record.pieces) if executable.tokenizer else None,
        "finish_reason": record.finish_reason,
        "timings": record.timings,
    }
