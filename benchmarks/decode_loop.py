"""What a token costs in the decode loop beyond the bare decode program, on one row.

    python -m benchmarks.decode_loop [--layers 4] [--hidden 512] [--capacity 512] [--tokens 64] [--rounds 5]
                                     [--json] [--out FILE]

A small Llama with random weights and 32,000 tokens. ``bare`` calls the decode program again and again
without looking at what it yields, or waits for its logits each time, as anyone must who chooses the next
token from them. The others make the same number of tokens through the loop: all of them
in one call, in calls of 8, and one call for each, which is stepping from the host. Rounds are interleaved;
printed are the medians in milliseconds per token, and what is added to ``bare`` in the same round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import systolic as sy

from .contest import markdown, spread
from .machine import add_device, choose
from .subjects import llama_config, random_weights

CHAINS = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "temperature, top-k, top-p": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "temperature, min-p": {"temperature": 0.8, "min_p": 0.05},
    "repetition, temperature": {"temperature": 0.8, "repetition_penalty": 1.1},
    "greedy, 5 log-probabilities": {"logprobs": 5},
}
CALLS = {"one call": 64, "calls of 8": 8, "calls of 1": 1}


def make_executable(options: argparse.Namespace) -> sy.Executable:
    config = llama_config(options.hidden, options.layers, options.capacity)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        graph = sy.load(path).graph
    return sy.compile(graph, random_weights(graph), capacity=options.capacity, chunk=16)


def time_bare(exe: sy.Executable, tokens: int, *, waits: bool = False) -> float:
    """Seconds per call of the decode program; it is waited for each time, or only for the last one."""
    program, states = exe.programs.chunk(1), exe.fresh_states()
    length, results = np.ones(1, np.int32), {}
    start = 0.0
    for position in range(tokens + 1):
        if position == 1:  # the first call warms up
            exe.backend.fetch(results[exe.logits_output])
            start = time.perf_counter()
        given = {"token": np.array([[position + 1]], np.int32), "length": length}
        given["offset"] = np.array([position], np.int32)
        results, states = program.run(exe.parameters, given, states)
        if waits:
            exe.backend.fetch(results[exe.logits_output])
    exe.backend.fetch(results[exe.logits_output])
    return (time.perf_counter() - start) / tokens


def time_loop(exe: sy.Executable, tokens: int, per_call: int, settings: dict) -> float:
    """Seconds per token, the prompt and its first call left out."""
    steps = exe.steps([1], max_new_tokens=tokens + per_call, tokens_per_call=per_call, **settings)
    for _ in range(per_call):
        next(steps)
    start = time.perf_counter()
    made = sum(1 for _ in steps)
    return (time.perf_counter() - start) / made


def run(options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds per token of each case, by round."""
    exe, times = make_executable(options), {}  # type: ignore[var-annotated]
    for round_ in range(options.rounds + 1):
        cases = {
            "bare": time_bare(exe, options.tokens),
            "bare, waited for": time_bare(exe, options.tokens, waits=True),
        }
        for name, settings in CHAINS.items():
            calls = CALLS if name == "greedy" else {"one call": 64}
            for call, per_call in calls.items():
                cases[f"{name}: {call}"] = time_loop(exe, options.tokens, per_call, settings)
        for name, seconds in cases.items():
            times.setdefault(name, []).extend([1e3 * seconds] * bool(round_))  # the first compiles
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"layers": 4, "hidden": 512, "capacity": 512, "tokens": 64, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    add_device(parser)
    options = parser.parse_args()
    choose(options.device)
    times = run(options)
    if options.out is not None:
        options.out.write_text(json.dumps(times) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(times))
        return
    print(table(times))


def table(times: Mapping[str, Sequence[float]]) -> str:
    """Milliseconds per token of each case, and microseconds more than the bare program in the same round."""
    bare = np.array(times["bare"])
    lines = [
        [name, spread(values), spread(1e3 * (np.array(values) - bare), 0)] for name, values in times.items()
    ]
    return markdown(["", "ms per token", "more than the bare program, µs"], lines)


if __name__ == "__main__":
    main()
