"""Decoding far into a text: what a step costs with states in fewer bits, by how much of them is used.

    python -m benchmarks.long_context [--model llama-0.1b] [--used 64,4096,8000] [--states f32,f16,bf16,int8]
                                      [--dtype f32] [--batch 1] [--rounds 8] [--json] [--out FILE]

Every state dtype runs a few steps at each used length in turn, round by round; ratios are those to f32 states
at the same length in the same round. States hold random numbers, which take as long as others. What a step
takes longer than at the first length is time for reading states; the bytes that are used more, by that time,
are how fast they are read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import systolic as sy
from systolic.ir.types import DTYPES, TensorType

from . import machine
from .contest import REST, command_line, markdown, spread
from .peers.ours import with_weights_as
from .subjects import load_subject

STEPS = 6  # in a turn; their median counts
ROOM = 8  # positions behind the longest used length


@dataclass(frozen=True)
class Row:
    """One state dtype at one used length, a number for each round: seconds of a step, the same step with f32
    states divided by it, and bytes per second at which what is used more than at the first length is read."""

    states: str
    used: int
    state_bytes: int
    seconds: Sequence[float]
    ratio: Sequence[float]
    rate: Sequence[float]


@dataclass(frozen=True)
class Record:
    """What a run found; ``read_bandwidth`` has a number for each round."""

    benchmark: str
    command: str
    model: str
    weight_bytes: int
    machine: Mapping[str, Any]
    read_bandwidth: Sequence[float]
    rows: Sequence[Row]


class Stepper:
    """The decode program of an executable over random states."""

    def __init__(self, executable: sy.Executable) -> None:
        self.executable = executable
        self.bytes_per_position = sum(state.bytes_per_token for state in executable.states)
        self._program = executable.programs.chunk(1)
        random = np.random.default_rng(2)
        place = executable.backend.place
        self._states = {state.name: place(_draw(state.type, random)) for state in executable.states}

    def seconds(self, used: int) -> float:
        """The median time of a step that is the position number ``used``."""
        rows, times = self.executable.options.batch, []
        place, fetch = self.executable.backend.place, self.executable.backend.fetch
        inputs = {
            "token": place(np.full((rows, 1), 5, np.int32)),
            "offset": place(np.full(rows, used - 1, np.int32)),
            "length": place(np.ones(rows, np.int32)),
        }
        for _ in range(STEPS):
            start = time.perf_counter()
            results, self._states = self._program.run(self.executable.parameters, inputs, self._states)
            fetch(results[self.executable.logits_output])
            times.append(time.perf_counter() - start)
        return float(np.median(times))


def _draw(type_: TensorType, random: np.random.Generator) -> np.ndarray:
    shape, dtype = type_.static_shape, DTYPES[type_.dtype]
    if type_.dtype == "i8":
        return random.integers(-127, 128, shape, dtype)
    normal = random.standard_normal(shape, np.float32)
    if type_.dtype == "u16":
        return normal.astype(DTYPES["bf16"]).view(dtype)
    return normal.astype(dtype) if shape[-1] > 1 else np.abs(normal) / np.float32(127)


def measure(
    model: str,
    dtype: str,
    states: Sequence[str],
    used: Sequence[int],
    batch: int,
    rounds: int,
    device: str = "cpu",
) -> Record:
    """Steps of all state dtypes at all used lengths, in turn; the first round is not counted."""
    subject = load_subject(model)
    kept = with_weights_as(subject, dtype)
    steppers: dict[str, Stepper] = {}
    for name in states:
        made = sy.compile(kept, batch=batch, capacity=max(used) + ROOM, state_dtype=name)
        if steppers:  # one set of weights for all
            made.__dict__["parameters"] = next(iter(steppers.values())).executable.parameters
        steppers[name] = Stepper(made)
    seconds: dict[tuple[str, int], list[float]] = {(name, n): [] for n in used for name in states}
    bandwidth = []
    for round_ in range(rounds + 1):
        for (name, length), found in seconds.items():
            time.sleep(REST / 10)
            taken = steppers[name].seconds(length)
            if round_:
                found.append(taken)
        if round_:
            bandwidth.append(machine.read_bandwidth(0.2, device))
    rows = []
    for (name, length), found in seconds.items():
        size = batch * steppers[name].bytes_per_position
        least = np.array(seconds[name, used[0]])
        more = (np.array(found) - least).clip(1e-9)
        ratio = np.array(seconds[states[0], length]) / found
        rate = size * (length - used[0]) / more
        rows.append(Row(name, length, size * length, found, ratio.tolist(), rate.tolist()))
    weights = sum(node.tensor.bytes for node in kept.graph.parameters)
    return Record("long_context", command_line(), model, weights, machine.describe(device), bandwidth, rows)


def table(record: Record, first: int) -> str:
    """The record as a Markdown table."""
    base = record.rows[0].states
    heading = ["states", "used", "bytes used", "ms per step", f"times {base} states", "states read at GB/s"]
    lines = [
        [
            row.states,
            f"{row.used:,}",
            f"{row.state_bytes / 1e6:,.1f} MB",
            spread([1e3 * s for s in row.seconds]),
            spread(row.ratio),
            spread([r / 1e9 for r in row.rate], 1) if row.used > first else "",
        ]
        for row in record.rows
    ]
    read = spread([b / 1e9 for b in record.read_bandwidth], 1)
    said = f"`{record.command}`: weights {record.weight_bytes / 1e6:,.0f} MB, the machine reads {read} GB/s"
    return f"{said}\n\n{markdown(heading, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama-0.1b", help="a name in benchmarks/subjects.py")
    parser.add_argument("--used", default="64,4096,8000", help="positions that are used, the fewest first")
    parser.add_argument(
        "--states", default="f32,f16,bf16,int8", help="how states are kept; the first is the base"
    )
    parser.add_argument("--dtype", default="f32", help="how weights are kept")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    machine.add_device(parser)
    options = parser.parse_args()
    machine.choose(options.device)
    used = [int(length) for length in options.used.split(",")]
    record = measure(
        options.model,
        options.dtype,
        options.states.split(","),
        used,
        options.batch,
        options.rounds,
        options.device,
    )
    text = json.dumps(asdict(record), indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else table(record, used[0]))


if __name__ == "__main__":
    main()
