"""An interleaved run: all contestants take turns, round by round, and are compared within each round.

A time on a shared machine says little; the ratio of two that ran one behind the other says more. A round is
every contestant once, with the machine's read bandwidth before and behind it; the first round compiles and is
not counted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import machine
from .peers import FORMAT, OURS, PEERS, Contestant, Setting, Unavailable, is_ours, prepare
from .subjects import Subject

REST = 0.3  # seconds between two contestants: threads of the one before may still spin
READING = 0.15  # seconds in which the read bandwidth is measured between them


@dataclass(frozen=True)
class Turn:
    """What a contestant did in one round: seconds, and the tokens that it chose, i32[rows, n]."""

    seconds: float
    tokens: np.ndarray


@dataclass
class Entry:
    """A contestant with what it is prepared for, and what was measured, one number for each round."""

    name: str
    contestant: Contestant
    peer: str
    setting: Setting
    work: Callable[[Contestant], Turn]
    seconds: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    tokens: np.ndarray | None = None


@dataclass(frozen=True)
class Record:
    """What a run found. ``rows`` are one dictionary for each contestant; ``absent`` says who did not take
    part and why; ``different`` what chose other tokens where all must choose the same."""

    benchmark: str
    command: str
    model: str
    parameters: int
    machine: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    absent: Mapping[str, str]
    different: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def row(self, name: str) -> Mapping[str, Any]:
        """The row of a contestant; KeyError if it did not take part."""
        return {row["name"]: row for row in self.rows}[name]


def enter(
    subject: Subject,
    peers: Sequence[str],
    settings: Sequence[Setting],
    work: Callable[[Setting], Callable[[Contestant], Turn]],
) -> tuple[list[Entry], dict[str, str]]:
    """Ours and the peers, prepared for each setting, and the reasons of those that are absent.

    A format of ours takes part beside the dtype whose numbers it keeps: ours-f32-packed beside f32.
    """
    entries, absent = [], {}
    is_capacity_shown = len({setting.capacity for setting in settings}) > 1
    for setting in settings:
        for peer in (OURS, *peers):
            if peer.startswith(FORMAT) and not f"{peer}-".startswith(f"{FORMAT}{setting.dtype}-"):
                continue
            try:
                contestant = prepare(peer, subject, setting)
            except Unavailable as reason:
                absent[f"{peer}, {setting.dtype}"] = str(reason)
                print(f"{peer}, {setting.dtype}: absent, {reason}", file=sys.stderr)
                continue
            name = contestant.name + (f", batch {setting.rows}" if setting.rows > 1 else "")
            name += f", capacity {setting.capacity}" if is_capacity_shown else ""
            entries.append(Entry(name, contestant, peer, setting, work(setting)))
    if not entries:
        raise SystemExit("nobody takes part; the reasons stand above")
    return entries, absent


def run_rounds(entries: Sequence[Entry], rounds: int) -> list[float]:
    """Runs them all ``rounds`` times and once before; the read bandwidth as measured between turns.

    What a shared machine reads changes within seconds, so an entry's turn is held against the readings right
    before and behind it.
    """
    readings = []
    for round_ in range(rounds + 1):
        for entry in entries:
            before = machine.read_bandwidth(READING, entry.setting.device)
            turn = entry.work(entry.contestant)
            entry.tokens = turn.tokens
            time.sleep(REST)
            if round_:  # the first compiles
                after = machine.read_bandwidth(READING, entry.setting.device)
                entry.seconds.append(turn.seconds)
                entry.bandwidth.append((before + after) / 2)
                readings.append(before)
    return readings


def different_tokens(entries: Sequence[Entry]) -> list[str]:
    """Who chose other tokens than the first of the same rows, in f32."""
    found = []
    first: dict[int, Entry] = {}
    for entry in entries:
        if entry.setting.dtype != "f32" or entry.tokens is None:
            continue
        base = first.setdefault(entry.setting.rows, entry)
        assert base.tokens is not None
        if not np.array_equal(base.tokens, entry.tokens):
            at = int(np.argwhere((base.tokens != entry.tokens).any(axis=0))[0, 0])
            found.append(f"{entry.name} and {base.name} choose different tokens from token {at} on")
    return found


def agreement(entry: Entry, entries: Sequence[Entry]) -> tuple[int, int]:
    """How many tokens of each row are those of the first contestant (ours) that keeps its weights alike,
    before the first that is another, and how many there are."""
    alike = (entry.setting.dtype, entry.setting.rows)
    base = next(base for base in entries if (base.setting.dtype, base.setting.rows) == alike)
    assert base.tokens is not None
    assert entry.tokens is not None
    differ = (base.tokens != entry.tokens).any(axis=0)
    return int(differ.argmax()) if differ.any() else len(differ), len(differ)


def agreement_cell(found: Sequence[int]) -> str:
    same, count = found
    return "all" if same == count else f"the first {same} of {count}"


def ours_is_times(entry: Entry, entries: Sequence[Entry]) -> dict[str, list[float]]:
    """How many times as fast as the entry each of ours in the same setting is, by round; by peer name."""
    return {
        ours.peer: [theirs / own for theirs, own in zip(entry.seconds, ours.seconds, strict=True)]
        for ours in entries
        if is_ours(ours.peer) and ours.setting == entry.setting
    }


def formats_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whose ratios a table shows: ours, and its other formats."""
    return list(dict.fromkeys(name for row in rows for name in row["ours_is_times"]))


def ratio_heading(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {name: "ours" if name == OURS else name.removeprefix(FORMAT) for name in formats_of(rows)}
    return [f"{name} is … times as fast" for name in names.values()]


def ratio_cells(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A cell for each of ours; empty beside itself, and where it does not keep the same numbers."""
    ratios = row["ours_is_times"]
    is_shown = {name: name in ratios and name != row["peer"] for name in formats_of(rows)}
    is_plain = row["peer"] == OURS
    return [spread(ratios[name]) if shown and not is_plain else "" for name, shown in is_shown.items()]


def command_line() -> str:
    """How this process was started, as a user types it; where its results are written is left out."""
    module = sys.modules["__main__"].__spec__
    given = [part for i, part in enumerate(sys.argv[1:]) if "--out" not in (part, sys.argv[i])]
    return shlex.join(["python", "-m", module.name if module else "benchmarks", *given])


# ---- what is printed ----


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the range."""
    low, high = min(values), max(values)
    return f"{np.median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def absent_lines(absent: Mapping[str, str]) -> str:
    """A line for each peer and reason, with the dtypes that it holds for."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, reason in absent.items():
        peer, _, dtype = name.partition(", ")
        found.setdefault((peer, reason), []).extend([dtype] if dtype else [])
    return "".join(f"\n- absent: {', '.join([peer, *of])}: {why}" for (peer, why), of in found.items())


def limits_line(record: Record) -> str:
    """The machine's limits in one sentence."""
    found = record.machine
    parts = [
        f"{found['threads']} threads",
        f"reads {spread([b / 1e9 for b in found['read_bandwidth']], 1)} GB/s",
    ]
    for dtype, peak in found.get("matmul_peak", {}).items():
        parts.append(f"multiplies {dtype} at {peak['rate'] / 1e9:,.0f} GFLOP/s ({peak['by']})")
    return ", ".join(parts)


# ---- the command line ----


def parser_for(doc: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options that all benchmarks with peers have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = ",".join(PEERS)
    usual = {
        "model": "llama-0.1b",
        "dtypes": "f32",
        "batch": "1",
        "rounds": 5,
        "peers": peers,
        "capacity": "1024",
    }
    options = {**usual, **defaults}
    parser.add_argument(
        "--model", default=options["model"], help="a name in benchmarks/subjects.py, or a directory"
    )
    parser.add_argument("--dtypes", default=options["dtypes"], help="how weights are kept: f32,bf16,int8,…")
    parser.add_argument("--batch", default=options["batch"], help="numbers of rows: 1,8")
    parser.add_argument(
        "--peers", default=options["peers"], help=f"of {peers}, ours-FORMAT (weights kept otherwise); or none"
    )
    parser.add_argument(
        "--capacity", default=options["capacity"], help="numbers of positions of room: 512,8192"
    )
    parser.add_argument("--rounds", type=int, default=options["rounds"])
    parser.add_argument("--threads", type=int, default=machine.THREADS)
    machine.add_device(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    return parser


def peers_of(options: argparse.Namespace) -> list[str]:
    return [] if options.peers in ("", "none") else options.peers.split(",")


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """One for each capacity, number of rows and dtype, once the device was found."""
    machine.choose(options.device)
    return [
        Setting(dtype, int(rows), int(capacity), options.threads, options.device)
        for capacity in options.capacity.split(",")
        for rows in options.batch.split(",")
        for dtype in options.dtypes.split(",")
    ]


def show(record: Record, table: str, options: argparse.Namespace) -> None:
    """Prints the record as asked, writes it as asked; ends with status 1 if tokens differ."""
    text = json.dumps(asdict(record), indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else table + "".join(f"\n- {line}" for line in record.different))
    if record.different:
        sys.exit("\n".join(record.different))
