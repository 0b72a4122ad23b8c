"""Prompts: how many tokens per second we and the peers read, in one interleaved run.

    python -m benchmarks.prefill [--model llama-0.5b] [--prompt 512] [--dtypes f32,bf16] [--batch 1]
                                 [--peers jax,llama.cpp] [--capacity 1024] [--rounds 5] [--threads 2]
                                 [--json] [--out FILE]

Timed is from a fresh state to the first new token, which all must choose alike in f32. Beside the rate is the
share of the machine's matmul peak that the products come to: two operations for each weight of a layer and
each token, and one row of the head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import machine
from .contest import (
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
    length: int,
    rounds: int = 5,
) -> Record:
    """Times a prompt of ``length`` tokens for each contestant, ``rounds`` times."""

    def work(setting: Setting) -> Callable[[Contestant], Turn]:
        prompts = subject.prompts(setting.rows, length)

        def turn(contestant: Contestant) -> Turn:
            start = time.perf_counter()
            tokens = contestant.prefill(prompts)
            return Turn(time.perf_counter() - start, tokens[:, None])

        return turn

    entries, absent = enter(subject, peers, settings, work)
    bandwidth = run_rounds(entries, rounds)
    device = settings[0].device
    peaks = {dtype: machine.matmul_peak(dtype, device=device) for dtype in ("f32", "bf16")}
    operations = product_operations(subject, length)
    return Record(
        "prefill",
        command_line(),
        subject.name,
        subject.parameters,
        {
            **machine.describe(device),
            "read_bandwidth": bandwidth,
            "matmul_peak": {dtype: {"rate": rate, "by": by} for dtype, (rate, by) in peaks.items()},
        },
        [row(entry, entries, operations, length, peaks) for entry in entries],
        absent,
        different_tokens(entries),
        {"prompt": length},
    )


def product_operations(subject: Subject, length: int) -> float:
    """Multiplications and additions with the matrices of the layers, for one text of ``length``."""
    tables = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "wpe.weight", "embeddings.weight")
    matrices = [a for name, a in subject.weights.items() if a.ndim == 2 and not name.endswith(tables)]
    head = subject.vocabulary_size * subject.config.get("hidden_size", subject.config.get("n_embd", 0))
    return 2.0 * length * sum(a.size for a in matrices) + 2.0 * head


def row(
    entry: Entry,
    entries: Sequence[Entry],
    operations: float,
    length: int,
    peaks: Mapping[str, tuple[float, str]],
) -> dict[str, Any]:
    """What was measured of one contestant."""
    rows = entry.setting.rows
    peak = peaks["f32" if entry.setting.dtype == "f32" else "bf16"][0]
    return {
        "name": entry.name,
        "peer": entry.peer,
        "dtype": entry.setting.dtype,
        "rows": rows,
        "prompt": length,
        "tokens_per_second": [rows * length / s for s in entry.seconds],
        "seconds": entry.seconds,
        "ours_is_times": ours_is_times(entry, entries),
        "of_peak": [rows * operations / s / peak for s in entry.seconds],
    }


def table(record: Record) -> str:
    """The record as Markdown."""
    rows = []
    for found in record.rows:
        rows.append(
            [
                found["name"],
                spread(found["tokens_per_second"], 0),
                *ratio_cells(found, record.rows),
                spread(found["of_peak"]),
            ]
        )
    heading = ["", "tokens/s", *ratio_heading(record.rows), "of the matmul peak"]
    prompt = f"a prompt of {record.settings['prompt']}"
    title = f"{record.model} ({record.parameters / 1e9:.2f} B), {prompt}; {limits_line(record)}\n\n"
    return title + markdown(heading, rows) + absent_lines(record.absent)


def main() -> None:
    parser = parser_for(__doc__ or "")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    options = parser.parse_args()
    record = measure(
        load_subject(options.model),
        peers_of(options),
        settings_of(options),
        length=options.prompt,
        rounds=options.rounds,
    )
    show(record, table(record), options)


if __name__ == "__main__":
    main()
