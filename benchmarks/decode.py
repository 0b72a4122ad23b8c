"""Decode speed: our programs beside those of peers, in one interleaved run.

    python -m benchmarks.decode [--model llama-0.5b] [--dtypes f32,bf16,int8] [--batch 1,8]
                                [--peers jax,llama.cpp] [--prompt 16] [--tokens 64] [--capacity 1024]
                                [--rounds 5] [--threads 2] [--json] [--out FILE]

All run the same weights on the same threads and, in f32, must choose the same tokens: the likeliest, behind
a random prompt. Printed are medians of the rounds with their range, how many times as fast as a peer ours is
with weights kept in the same dtype, and the share of the machine's read bandwidth that reading every weight
once per step comes to, as measured right before and behind each turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from . import machine
from .contest import (
    Entry,
    Record,
    Turn,
    absent_lines,
    agreement,
    agreement_cell,
    command_line,
    different_tokens,
    enter,
    limits_line,
    markdown,
    ours_is_times,
    parser_for,
    peers_of,
    ratio_cells,
    ratio_heading,
    run_rounds,
    settings_of,
    show,
    spread,
)
from .peers import Contestant, Setting
from .subjects import Subject, load_subject


def measure(
    subject: Subject,
    peers: Sequence[str],
    settings: Sequence[Setting],
    *,
    prompt: int = 16,
    tokens: int = 64,
    rounds: int = 5,
) -> Record:
    """Times ``tokens`` steps of each contestant behind a prompt of ``prompt`` tokens, ``rounds`` times."""

    def work(setting: Setting) -> Callable[[Contestant], Turn]:
        prompts = subject.prompts(setting.rows, prompt)

        def turn(contestant: Contestant) -> Turn:
            contestant.prefill(prompts)
            contestant.decode(1)  # what the first step does once
            start = time.perf_counter()
            chosen = contestant.decode(tokens)
            return Turn((time.perf_counter() - start) / tokens, chosen)

        return turn

    entries, absent = enter(subject, peers, settings, work)
    bandwidth = run_rounds(entries, rounds)
    return Record(
        "decode",
        command_line(),
        subject.name,
        subject.parameters,
        {**machine.describe(settings[0].device), "read_bandwidth": bandwidth},
        [row(entry, entries) for entry in entries],
        absent,
        different_tokens(entries),
        {"prompt": prompt, "tokens": tokens},
    )


def row(entry: Entry, entries: Sequence[Entry]) -> dict[str, Any]:
    """What was measured of one contestant."""
    size = entry.contestant.weight_bytes
    return {
        "name": entry.name,
        "peer": entry.peer,
        "dtype": entry.setting.dtype,
        "rows": entry.setting.rows,
        "capacity": entry.setting.capacity,
        "weight_bytes": size,
        "tokens_per_second": [entry.setting.rows / s for s in entry.seconds],
        "ours_is_times": ours_is_times(entry, entries),
        "of_bandwidth": [size / s / b for s, b in zip(entry.seconds, entry.bandwidth, strict=True)],
        "same_tokens": agreement(entry, entries),
    }


def table(record: Record) -> str:
    """The record as Markdown: the limits, a table, and who is absent."""
    rows = []
    for found in record.rows:
        rows.append(
            [
                found["name"],
                f"{found['weight_bytes'] / 1e6:,.0f} MB",
                spread(found["tokens_per_second"], 1),
                *ratio_cells(found, record.rows),
                spread(found["of_bandwidth"]),
                agreement_cell(found["same_tokens"]),
            ]
        )
    ratios = ratio_heading(record.rows)
    heading = ["", "weights", "tokens/s", *ratios, "of the bandwidth", "tokens as ours"]
    settings = f"{record.settings['tokens']} tokens behind {record.settings['prompt']}"
    title = f"{record.model} ({record.parameters / 1e9:.2f} B), {settings}; {limits_line(record)}\n\n"
    return title + markdown(heading, rows) + absent_lines(record.absent)


def main() -> None:
    parser = parser_for(__doc__ or "")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of the prompt, not timed")
    parser.add_argument("--tokens", type=int, default=64, help="steps that are timed in each round")
    options = parser.parse_args()
    record = measure(
        load_subject(options.model),
        peers_of(options),
        settings_of(options),
        prompt=options.prompt,
        tokens=options.tokens,
        rounds=options.rounds,
    )
    show(record, table(record), options)


if __name__ == "__main__":
    main()
