"""Recurrent models: prompts and steps beside peers, and what a step costs far into a text.

    python -m benchmarks.recurrent [--models mamba-130m,mamba2-130m,rwkv-169m,lstm-80m,griffin-0.1b]
                                   [--peers jax,transformers] [--prompt 512] [--tokens 32]
                                   [--positions 100,4000] [--rounds 3] [--threads 2] [--json] [--out FILE]

Prompts and steps are those of ``benchmarks.prefill`` and ``benchmarks.decode``: interleaved, the same
weights, and the same tokens in f32. A recurrence keeps what it keeps, however long a text is: ``positions``
are where our steps are timed in turn, in one executable, and the bytes of its states stand beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import decode, prefill
from .contest import command_line, markdown, peers_of, ratio_cells, spread
from .machine import THREADS, add_device, choose
from .peers import Setting
from .peers.ours import prepare
from .subjects import Subject, load_subject

MODELS = "mamba-130m,mamba2-130m,rwkv-169m,lstm-80m,griffin-0.1b"


def far_into_a_text(
    subject: Subject, setting: Setting, positions: Sequence[int], tokens: int, rounds: int
) -> dict[str, Any]:
    """Seconds of our steps behind so many tokens, round by round, and what is kept in bytes by kind."""
    contestant = prepare(subject, setting)
    seconds: dict[int, list[float]] = {position: [] for position in positions}
    for round_ in range(rounds + 1):
        for position in positions:
            contestant.prefill(subject.prompts(setting.rows, position))
            start = time.perf_counter()
            contestant.decode(tokens)
            if round_:  # the first compiles
                seconds[position].append((time.perf_counter() - start) / tokens)
    kept: dict[str, int] = {}
    for state in contestant.executable.states:
        kept[state.kind] = kept.get(state.kind, 0) + state.bytes
    return {"seconds": seconds, "state_bytes": kept}


def measure(name: str, options: argparse.Namespace, positions: Sequence[int]) -> dict[str, Any]:
    """All that is measured of one model."""
    subject, peers = load_subject(name), peers_of(options)
    setting = Setting(capacity=1024, threads=options.threads, device=options.device)
    read = prefill.measure(subject, peers, [setting], length=options.prompt, rounds=options.rounds)
    steps = decode.measure(subject, peers, [setting], prompt=16, tokens=options.tokens, rounds=options.rounds)
    far = {}
    if positions:
        room = replace(setting, capacity=max(positions) + options.tokens + 1)
        far = far_into_a_text(subject, room, positions, options.tokens, options.rounds)
    return {"model": name, "prefill": asdict(read), "decode": asdict(steps), "far": far}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Two Markdown tables: beside peers, and far into a text."""
    rows, far_rows = [], []
    for one in found:
        reads, steps = one["prefill"], one["decode"]
        for read, step in zip(reads["rows"], steps["rows"], strict=True):
            is_first = read is reads["rows"][0]
            cells = [f"{one['model']} ({reads['parameters'] / 1e9:.2f} B)" if is_first else "", read["name"]]
            for row, digits in ((read, 0), (step, 1)):
                cells += [spread(row["tokens_per_second"], digits), *ratio_cells(row, steps["rows"])]
            rows.append(cells)
        if one["far"]:
            behind = one["far"]["seconds"].values()
            kept = ", ".join(
                f"{size / 1e6:.2f} MB {kind}" for kind, size in one["far"]["state_bytes"].items()
            )
            far_rows.append([one["model"], *(spread([1e3 * s for s in each]) for each in behind), kept])
    heading = ["", "", "prompt, tokens/s", "ours is … times", "steps, tokens/s", "ours is … times"]
    text = markdown(heading, rows)
    if far_rows:
        places = [f"ms per token behind {position:,}" for position in found[0]["far"]["seconds"]]
        text += "\n\n" + markdown(["", *places, "states"], far_rows)
    differences = [line for one in found for run in ("prefill", "decode") for line in one[run]["different"]]
    absent = {who: why for one in found for who, why in one["prefill"]["absent"].items()}
    return "\n".join([text, *differences, *(f"- absent: {who}: {why}" for who, why in absent.items())])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=MODELS, help="names in benchmarks/subjects.py")
    parser.add_argument("--peers", default="jax,transformers")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="steps that are timed in each round")
    parser.add_argument("--positions", default="100,4000", help="where our steps are timed; or none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    add_device(parser)
    options = parser.parse_args()
    choose(options.device)
    positions = [] if options.positions == "none" else [int(p) for p in options.positions.split(",")]
    found = [measure(name, options, positions) for name in options.models.split(",")]
    record = json.dumps({"command": command_line(), "models": found}, indent=1)
    if options.out is not None:
        options.out.write_text(record + "\n", encoding="utf-8")
    print(record if options.json else table(found))


if __name__ == "__main__":
    main()
