"""Long texts: speed and memory while many tokens are made, block by block, beside peers.

    python -m benchmarks.memory [--model mistral-window] [--tokens 8192] [--block 512] [--peers jax]
                                [--dtypes f32] [--batch 1] [--capacity 8448] [--json] [--out FILE]

Every contestant makes a block of tokens in turn, so that ratios are those of blocks at the same position
of the text. Behind each, the process's own memory (without files that it maps) is read: what it grew by while
the contestant had its turn is counted as the contestant's. A window's ring, like a state of fixed size, must
stay flat, and so must the time per token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import machine
from .contest import (
    REST,
    Entry,
    Record,
    Turn,
    absent_lines,
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
    settings_of,
    show,
    spread,
)
from .peers import Contestant, Setting
from .subjects import Subject, load_subject

PROMPT = 16


def measure(
    subject: Subject,
    peers: Sequence[str],
    settings: Sequence[Setting],
    *,
    tokens: int = 8192,
    block: int = 512,
) -> Record:
    """Makes ``tokens`` tokens with each contestant, ``block`` at a time; the first block is not compared."""

    def turn(contestant: Contestant) -> Turn:
        start = time.perf_counter()
        chosen = contestant.decode(block)
        return Turn((time.perf_counter() - start) / block, chosen)

    entries, absent = enter(subject, peers, settings, lambda setting: turn)
    for entry in entries:
        entry.contestant.prefill(subject.prompts(entry.setting.rows, PROMPT))
    grown: dict[str, list[int]] = {entry.name: [] for entry in entries}
    said: dict[str, list[np.ndarray]] = {entry.name: [] for entry in entries}
    bandwidth = []
    for _ in range(tokens // block):
        for entry in entries:
            device = entry.setting.device
            before = machine.resident_bytes(device)
            found = turn(entry.contestant)
            grown[entry.name].append(machine.resident_bytes(device) - before)
            said[entry.name].append(found.tokens)
            entry.seconds.append(found.seconds)
            time.sleep(REST)
        bandwidth.append(machine.read_bandwidth(0.2, settings[0].device))
    for entry in entries:
        entry.tokens = np.concatenate(said[entry.name], axis=1)
    return Record(
        "memory",
        command_line(),
        subject.name,
        subject.parameters,
        {**machine.describe(settings[0].device), "read_bandwidth": bandwidth},
        [row(entry, entries, grown[entry.name]) for entry in entries],
        absent,
        different_tokens(entries),
        {"tokens": tokens, "block": block, "window": subject.window},
    )


def row(entry: Entry, entries: Sequence[Entry], grown: Sequence[int]) -> dict[str, Any]:
    """What was measured of one contestant; the first block compiles and fills caches."""
    rates = [entry.setting.rows / seconds for seconds in entry.seconds]
    return {
        "name": entry.name,
        "peer": entry.peer,
        "dtype": entry.setting.dtype,
        "rows": entry.setting.rows,
        "capacity": entry.setting.capacity,
        "tokens_per_second": rates[1:],
        "ours_is_times": {name: ratios[1:] for name, ratios in ours_is_times(entry, entries).items()},
        "grown_bytes": list(grown),
    }


def last_against_first(rates: Sequence[float]) -> float:
    """The rate of the last quarter of the blocks as a multiple of the first quarter's."""
    quarter = max(1, len(rates) // 4)
    return float(np.median(rates[-quarter:]) / np.median(rates[:quarter]))


def table(record: Record) -> str:
    """The record as Markdown."""
    rows = []
    for found in record.rows:
        rates = found["tokens_per_second"]
        half = len(found["grown_bytes"]) // 2
        rows.append(
            [
                found["name"],
                spread(rates, 1),
                *ratio_cells(found, record.rows),
                f"{last_against_first(rates):.2f}",
                f"{sum(found['grown_bytes'][1:half]) / 1e6:+.1f} MB",
                f"{sum(found['grown_bytes'][half:]) / 1e6:+.1f} MB",
            ]
        )
    ratios = ratio_heading(record.rows)
    heading = ["", "tokens/s", *ratios, "last quarter ÷ first", "grew in the first half"]
    settings = f"{record.settings['tokens']} tokens in blocks of {record.settings['block']}"
    window = f", window {record.settings['window']}" if record.settings["window"] else ""
    title = f"{record.model} ({record.parameters / 1e9:.2f} B){window}, {settings}; {limits_line(record)}\n\n"
    return title + markdown([*heading, "in the second"], rows) + absent_lines(record.absent)


def main() -> None:
    parser = parser_for(__doc__ or "", model="mistral-window", peers="jax", capacity="8448")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--block", type=int, default=512, help="tokens that each makes in turn")
    options = parser.parse_args()
    record = measure(
        load_subject(options.model),
        peers_of(options),
        settings_of(options),
        tokens=options.tokens,
        block=options.block,
    )
    show(record, table(record), options)


if __name__ == "__main__":
    main()
