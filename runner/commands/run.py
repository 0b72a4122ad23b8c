"""systolic run: continues a prompt and shows the text while it is made."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...ir.errors import SystolicError
from ..files import read_text
from ..interrupted import INTERRUPTED_STATUS
from . import sampling_options as options
from .arguments import (
    DEFAULT_MODEL,
    Adapter,
    Backend,
    Capacity,
    Dtype,
    Json,
    ModelArgument,
    Roll,
    State,
    StateDtype,
)
from .progress import progress_bar
from .tracing import ForceOption, TraceOption, check_trace, write_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..executable import Executable
    from ..programs import Made


@dataclass
class Record:
    """What a run has given so far; times are seconds."""

    new_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = "length"  # what it is if not a single token was asked for
    timings: dict[str, float | None] = field(default_factory=dict)


def run(
    model: ModelArgument = DEFAULT_MODEL,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(help='Token ids instead, like "1,403,407".')] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 64,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    typical_p: options.TypicalP = None,
    top_n_sigma: options.TopNSigma = None,
    xtc_probability: options.Xtc = None,
    mirostat_tau: options.Mirostat = None,
    repetition_penalty: options.Repetition = None,
    presence_penalty: options.Presence = None,
    frequency_penalty: options.Frequency = None,
    dry_multiplier: options.Dry = None,
    no_repeat_ngram_size: options.NoRepeatNgram = None,
    min_new_tokens: options.MinNewTokens = None,
    seed: options.Seed = 0,
    logprobs: options.Logprobs = None,
    beams: options.Beams = 1,
    length_penalty: options.LengthPenalty = 1.0,
    penalty_alpha: options.PenaltyAlpha = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; can be repeated.")] = None,
    backend: Backend = "xla",
    state: State = None,
    capacity: Capacity = None,
    dtype: Dtype = None,
    state_dtype: StateDtype = None,
    roll: Roll = "auto",
    adapter: Adapter = None,
    json_schema: Annotated[Path | None, typer.Option(help="A file: the text is JSON of this schema.")] = None,
    regex: Annotated[str | None, typer.Option(help="The text matches this regular expression.")] = None,
    grammar: Annotated[
        Path | None, typer.Option(help="A file: the text is of this grammar, Lark's form.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on behind an end token.")] = False,
    trace: TraceOption = None,
    force: ForceOption = False,
    as_json: Json = False,
) -> None:
    """Continues a prompt; the text appears as it is generated."""
    from ..locate import only_adapter, open_executable

    if beams < 1:
        raise SystolicError(f"--beams must be at least 1, not {beams}")
    if beams > 1 and penalty_alpha is not None:
        raise SystolicError("--beams and --penalty-alpha are two ways to search; give one of them")
    check_trace(trace, beams=beams, as_json=as_json, force=force)
    start = time.perf_counter()
    executable = open_executable(
        model,
        backend,
        capacity=capacity,
        state=state,
        state_dtype=state_dtype,
        dtype=dtype,
        roll=roll,
        adapters=adapter or (),
    )
    ids = list(executable.prompt_ids(_prompt(prompt, prompt_ids)))
    record = Record(timings={"load_seconds": time.perf_counter() - start})
    settings = options.sampling_settings(
        executable.model,
        adapter=only_adapter(executable.model),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        top_n_sigma=top_n_sigma,
        xtc_probability=xtc_probability,
        mirostat_tau=mirostat_tau,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        dry_multiplier=dry_multiplier,
        no_repeat_ngram_size=no_repeat_ngram_size,
        min_new_tokens=min_new_tokens,
        seed=seed,
        logprobs=logprobs,
        stop=stop or (),
        json_schema=None if json_schema is None else read_text(json_schema),
        regex=regex,
        grammar=None if grammar is None else read_text(grammar),
        ignore_eos=ignore_eos,
    )
    if beams > 1:
        search = {**settings, "beams": beams, "n": beams, "length_penalty": length_penalty}
        return _search(executable, ids, search, record, as_json=as_json)
    is_contrastive = penalty_alpha is not None
    if is_contrastive:
        search = options.contrastive_settings(
            settings, temperature=temperature, top_k=top_k, penalty_alpha=penalty_alpha
        )
        steps = executable.contrastive_steps(ids, **search)
    else:
        steps = executable.steps(ids, **settings)
    try:
        if not is_contrastive:
            _prepare(executable, ids, settings, record)
        if not as_json and not executable.inputs.source:  # what an encoder-decoder says stands on its own
            _show_prompt(prompt)
        _follow(executable, steps, record, show=not as_json)
    except KeyboardInterrupt:
        record.finish_reason = "interrupted"
    if as_json:
        print(json.dumps(_report(executable, ids, record), ensure_ascii=False))
    else:
        _close(record)
    if trace is not None:
        write_trace(executable, ids, record.new_ids, trace, force=force)
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


def _search(
    executable: Executable, ids: Sequence[int], search: dict[str, Any], record: Record, *, as_json: bool
) -> None:
    """Prints what a beam search found: the best text, or with --json all of them."""
    start = time.perf_counter()
    found = executable.beam_search(ids, **search)
    record.timings["search_seconds"] = time.perf_counter() - start
    if not as_json:
        best = found[0].tokens if found else ()
        print(executable.text_behind(ids, best) if executable.tokenizer else " ".join(map(str, best)))
        return
    listed = [
        {
            "new_ids": list(one.tokens),
            "text": executable.text_behind(ids, one.tokens) if executable.tokenizer else None,
            "score": one.score,
        }
        for one in found
    ]
    report = {"model": executable.model.name, "prompt_ids": list(ids), "beams": listed}
    print(json.dumps({**report, "timings": record.timings}, ensure_ascii=False))


def _prepare(executable: Executable, ids: Sequence[int], settings: dict[str, Any], record: Record) -> None:
    start = time.perf_counter()
    with progress_bar("compiling") as report:
        executable.prepare(len(ids), report=report, **settings)
    compiled = time.perf_counter()
    with progress_bar("placing weights") as report:
        executable.place(report)
    record.timings["compile_seconds"] = compiled - start
    record.timings["weights_seconds"] = time.perf_counter() - compiled


def _follow(executable: Executable, steps: Any, record: Record, *, show: bool) -> None:
    """Takes all steps, showing each piece at once."""
    compiled = previous = time.perf_counter()
    for step in steps:
        if not record.new_ids:
            record.timings["first_token_seconds"] = time.perf_counter() - compiled
            previous = time.perf_counter()
        record.new_ids.append(step.token)
        if step.logprob is not None:
            others = [{"id": other, "logprob": chance} for other, chance in step.alternatives]
            record.logprobs.append({"logprob": step.logprob, "alternatives": others})
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
    if sys.stderr.isatty() and (speed or not record.new_ids):
        line = f"{len(record.new_ids)} tokens ({record.finish_reason})"
        line += f", {speed:.1f} tokens per second" if speed else ""
        print(typer.style(line, dim=True), file=sys.stderr)


def _report(executable: Executable, ids: list[int], record: Record) -> dict[str, Any]:
    return {
        "model": executable.model.name,
        "backend": executable.options.backend,
        "prompt_ids": ids,
        "new_ids": record.new_ids,
        "text": "".join(record.pieces) if executable.tokenizer else None,
        "finish_reason": record.finish_reason,
        **({"logprobs": record.logprobs} if record.logprobs else {}),
        "timings": record.timings,
        "programs": [_program_record(made) for made in executable.programs],
    }


def _program_record(made: Made) -> dict[str, Any]:
    program = made.prepared.program
    return {
        "name": made.name,
        "rows": program.rows,
        "positions": program.chunk,
        "seconds": made.seconds,
        "from_cache": made.from_cache,
        "layers": made.prepared.layers,
    }
