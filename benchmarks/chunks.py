"""The chunks that prompts are read in: predicted against measured seconds, and chosen cuts against others.

    python -m benchmarks.chunks [--models llama-0.1b llama-0.5b] [--dtypes f32,bf16,int8] [--rounds 3]
                                [--lengths 2 5 20 …] [--largest 512] [--capacity 1024] [--json] [--out FILE]

Each round calls the program of every power of two once, at the start of a text. Prompts are then compared by
the medians of these calls: as they are cut by what is predicted, in the soonest of all sequences of powers of
two, and in halves of 512 down to 16, of which the smallest holds the rest. What programs cost to load is left
out. ``--read`` reads the prompts of ``--lengths`` for real, in both cuts by turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

import systolic as sy
from systolic.compiler.chunks import Chunk, choose_chunks, cut_prompt
from systolic.compiler.pipeline import run_passes

from .contest import markdown, spread
from .peers.ours import with_weights_as
from .subjects import Subject, load_subject

LENGTHS = (1, 2, 3, 5, 9, 15, 20, 33, 48, 65, 100, 129, 150, 200, 257, 300, 400, 513, 600)
HALVES = (1, 16, 32, 64, 128, 256, 512)  # what is compared with: no prediction, the smallest that is enough


@dataclass(frozen=True)
class Call:
    """A program for ``positions``: predicted seconds, those of each round, and whether prompts use it."""

    positions: int
    predicted: float
    seconds: tuple[float, ...]
    is_chosen: bool


@dataclass(frozen=True)
class Prompt:
    """A prompt: how it is cut, what that takes, as a multiple of the soonest sequence of all powers of two,
    and of the smallest half of 512 that holds it. ``read`` are ratios to the soonest, of real reading."""

    length: int
    cut: tuple[int, ...]
    soonest: tuple[int, ...]
    seconds: float
    of_soonest: float
    of_halves: float
    read: tuple[float, ...] = ()


@dataclass(frozen=True)
class Record:
    model: str
    dtype: str
    calls: tuple[Call, ...]
    prompts: tuple[Prompt, ...]


def measure(
    subject: Subject,
    dtype: str,
    lengths: Sequence[int],
    *,
    largest: int = 512,
    capacity: int = 1024,
    rounds: int = 3,
    read: bool = False,
) -> Record:
    """Calls all programs of up to ``largest`` positions, and compares ways to read prompts of ``lengths``."""
    executable = sy.compile(with_weights_as(subject, dtype), capacity=capacity)
    graph = run_passes(executable.model.graph, executable.options.passes)[-1].graph
    predicted = executable.backend.chunk_seconds(graph, 1, capacity)
    sizes = [1 << power for power in range(largest.bit_length())]
    programs = executable.programs
    programs.prepare([programs.lowered.chunk(size) for size in sizes])
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds + 1):
        for size in sizes:
            seconds[size].append(read_seconds(executable, subject, [size], size))
    taken = {size: median(each[1:]) for size, each in seconds.items()}
    chunks = choose_chunks(predicted, min(capacity, largest))
    calls = tuple(
        Call(size, predicted(size, 0), tuple(each[1:]), any(size == chunk.size for chunk in chunks))
        for size, each in seconds.items()
    )
    prompts = [compared(length, chunks, taken) for length in lengths]
    if read:
        prompts = [really_read(executable, subject, prompt, rounds) for prompt in prompts]
    return Record(subject.name, dtype, calls, tuple(prompts))


def read_seconds(executable: sy.Executable, subject: Subject, cut: Sequence[int], length: int) -> float:
    """Reads a prompt of ``length`` tokens from the start, in chunks of these sizes."""
    states, offset, prompt = executable.fresh_states(), 0, subject.prompts(1, length)
    started = time.perf_counter()
    for size in cut:
        block = np.zeros((1, size), np.int32)
        tokens = prompt[:, offset : offset + size]
        block[:, : tokens.shape[1]] = tokens
        inputs = {"offset": np.array([offset], np.int32), "length": np.array([tokens.shape[1]], np.int32)}
        inputs |= {executable.inputs.token.name: block}
        program = executable.programs.chunk(size)
        results, updated = program.run(executable.parameters, inputs, states)
        states, offset = {**states, **updated}, offset + size
    executable.backend.fetch(results[executable.logits_output])
    return time.perf_counter() - started


def compared(length: int, chunks: Sequence[Chunk], taken: dict[int, float]) -> Prompt:
    """The cut that predictions choose, by the seconds that calls took."""
    cut = [chunk.size for chunk in cut_prompt(length, chunks)]
    best = soonest(length, taken)
    halves = [size for size in HALVES if size in taken]
    count, rest = divmod(length, max(halves))
    usual = [max(halves)] * count + ([min(size for size in halves if size >= rest)] if rest else [])
    total = sum(taken[size] for size in cut)
    others = [sum(taken[size] for size in other) for other in (best, usual)]
    return Prompt(length, tuple(cut), tuple(best), total, total / others[0], total / others[1])


def soonest(length: int, taken: dict[int, float]) -> list[int]:
    """The sequence of any sizes that reads ``length`` positions in the least time, the larger ones first."""
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for left in range(1, length + 1):
        ways = ((best[max(0, left - size)], size) for size in taken)
        best.append(min((cost + taken[size], [*sizes, size]) for (cost, sizes), size in ways))
    return sorted(best[length][1], reverse=True)


def really_read(executable: sy.Executable, subject: Subject, prompt: Prompt, rounds: int) -> Prompt:
    """The prompt with ratios of reading it in both cuts, by turns."""
    ratios = []
    for _ in range(rounds):
        ours, best = (
            read_seconds(executable, subject, cut, prompt.length) for cut in (prompt.cut, prompt.soonest)
        )
        ratios.append(ours / best)
    return Prompt(**{**asdict(prompt), "read": tuple(ratios)})


def shown(record: Record) -> str:
    """The record as two tables in Markdown."""
    calls = [
        [
            f"**{call.positions}**" if call.is_chosen else f"{call.positions}",
            f"{1e3 * call.predicted:,.1f}",
            spread([1e3 * seconds for seconds in call.seconds], 1),
            spread([seconds / call.predicted for seconds in call.seconds]),
        ]
        for call in record.calls
    ]
    prompts = [
        [
            f"{prompt.length}",
            " + ".join(map(str, prompt.cut)),
            " + ".join(map(str, prompt.soonest)),
            f"{1e3 * prompt.seconds:,.0f}",
            f"{prompt.of_soonest:.2f}",
            f"{prompt.of_halves:.2f}",
            spread(prompt.read) if prompt.read else "",
        ]
        for prompt in record.prompts
    ]
    ratios = [prompt.of_soonest for prompt in record.prompts]
    title = f"{record.model} {record.dtype}: cuts take {median(ratios):.2f} (at most {max(ratios):.2f}) times"
    heading = ["tokens", "cut", "soonest", "ms", "÷ soonest", "÷ halves", "read ÷ soonest"]
    return (
        f"{title} the soonest\n\n"
        + markdown(["positions", "predicted ms", "ms", "measured ÷ predicted"], calls)
        + "\n\n"
        + markdown(heading, prompts)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["llama-0.1b", "llama-0.5b"])
    parser.add_argument("--dtypes", default="f32,bf16,int8")
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument(
        "--largest", type=int, default=512, help="positions of the largest program that is called"
    )
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", action="store_true", help="read the prompts for real, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each model and dtype")
    parser.add_argument("--out", type=Path, help="also write them to this file")
    options = parser.parse_args()
    records = []
    for name in options.models:
        subject = load_subject(name)
        for dtype in options.dtypes.split(","):
            sizes = {"largest": options.largest, "capacity": options.capacity, "rounds": options.rounds}
            records.append(measure(subject, dtype, options.lengths, **sizes, read=options.read))
            print(json.dumps(asdict(records[-1])) if options.json else shown(records[-1]), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n")


if __name__ == "__main__":
    main()
