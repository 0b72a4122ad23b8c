"""The server under load: many streaming clients at once, some of which leave in the middle.

    python -m benchmarks.server_load [--model shakespeare] [--clients 64] [--batch 16] [--seconds 60]

The server is a process of its own, the clients are OpenAI's. Each asks again and again for one of
``--requests`` texts, greedy and drawn, of several lengths, and leaves early ``--killed`` of the time. Every
answer must be that of the same request alone, and one that was left must be its beginning. Afterwards no row
may be in use, nothing may wait, and the server may have no more threads and open files than before. Printed
are percentiles in seconds: to the first token (with the wait for a row), between tokens, of whole answers;
then memory over time. The exit status is 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai

import systolic as sy

WARM_UP = 0.2  # of the time; what the server holds then is compared with the end
BEGINNINGS = ("ROMEO:\n", "JULIET:\nO ", "KING HENRY:\nMy lord, ", "First Citizen:\nBefore we proceed ", "")


@dataclass
class Observed:
    """What the clients have seen; times are seconds."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    tokens: int = 0


def requests_for(count: int) -> list[dict[str, Any]]:
    """Different requests: prompt, length, and how tokens are chosen."""
    choose = random.Random(0)
    return [
        {
            "prompt": f"{BEGINNINGS[number % len(BEGINNINGS)]}{number}",
            "max_tokens": choose.choice((8, 24, 64, 100)),
            "temperature": choose.choice((0.0, 0.8, 1.2)),
            "top_p": choose.choice((1.0, 0.9)),
            "seed": number,
        }
        for number in range(count)
    ]


def answers_alone(model: sy.Model, requests: list[dict[str, Any]]) -> list[str]:
    """The text of each request with nothing beside it."""
    executable = sy.compile(model)
    return [
        "".join(
            executable.stream(
                request["prompt"],
                max_new_tokens=request["max_tokens"],
                temperature=request["temperature"],
                top_p=request["top_p"],
                seed=request["seed"],
            )
        )
        for request in requests
    ]


async def client(
    api: openai.AsyncOpenAI,
    asked: list[dict[str, Any]],
    expected: list[str],
    observed: Observed,
    options: argparse.Namespace,
    number: int,
    end: float,
) -> None:
    """One client, until the time is over."""
    choose = random.Random(number)
    while time.perf_counter() < end:
        which = choose.randrange(len(asked))
        leaves_after = choose.randrange(1, 30) if choose.random() < options.killed else None
        try:
            said, is_whole = await one_answer(api, asked[which], leaves_after, observed)
        except openai.RateLimitError as error:
            observed.outcomes["queue was full"] += 1
            await asyncio.sleep(float(error.response.headers["Retry-After"]))
            continue
        except openai.OpenAIError as error:
            observed.outcomes[f"failed: {error}"] += 1
            continue
        if is_whole:
            observed.outcomes["whole" if said == expected[which] else "WRONG"] += 1
        else:
            observed.outcomes["left" if expected[which].startswith(said) else "WRONG"] += 1


async def one_answer(
    api: openai.AsyncOpenAI, request: dict[str, Any], leaves_after: int | None, observed: Observed
) -> tuple[str, bool]:
    """The text that came, and whether all of it did."""
    start = previous = time.perf_counter()
    said, pieces = "", 0
    stream = await api.completions.create(model="loaded", stream=True, **request)
    async for piece in stream:
        now = time.perf_counter()
        (observed.between if pieces else observed.first).append(now - previous)
        previous = now
        said += piece.choices[0].text
        pieces += 1
        if pieces == leaves_after and piece.choices[0].finish_reason is None:
            await stream.close()
            return said, False
    observed.tokens += request["max_tokens"]
    observed.whole.append(previous - start)
    return said, True


@dataclass(frozen=True)
class Held:
    """What the server's process holds."""

    megabytes: float
    threads: int
    files: int

    @classmethod
    def by(cls, process: int) -> Held:
        status = Path(f"/proc/{process}/status").read_text()
        numbers = {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads")}  # type: ignore[index]
        files = len(os.listdir(f"/proc/{process}/fd"))
        return cls(numbers["VmRSS"] / 1024, numbers["Threads"], files)


async def load(address: str, process: int, options: argparse.Namespace) -> tuple[Observed, list[Held], str]:
    """Runs all clients; what they saw, what the server held over time, and its metrics in the end."""
    asked = requests_for(options.requests)
    expected = answers_alone(sy.load(options.model), asked)
    observed, held = Observed(), [Held.by(process)]
    api = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300)
    async with api:
        end = time.perf_counter() + options.seconds
        clients = [
            asyncio.create_task(client(api, asked, expected, observed, options, number, end))
            for number in range(options.clients)
        ]
        while time.perf_counter() < end:
            await asyncio.sleep(options.seconds * WARM_UP)
            held.append(Held.by(process))
        await asyncio.gather(*clients)
    async with openai.AsyncOpenAI(base_url=address, api_key="none") as plain:
        await asyncio.sleep(1)
        metrics = (await plain.get("/metrics", cast_to=str)) if options.seconds else ""
    await asyncio.sleep(1)  # connections close
    held.append(Held.by(process))
    return observed, held, metrics


def report(observed: Observed, held: list[Held], metrics: str, options: argparse.Namespace) -> list[str]:
    """Prints everything; what is not as it must be."""
    rows = {"first token": observed.first, "between tokens": observed.between, "whole answer": observed.whole}
    print(
        f"{options.clients} clients, {options.batch} rows, {options.seconds:g} s: {dict(observed.outcomes)}"
    )
    print(f"{observed.tokens / options.seconds:.0f} tokens per second in whole answers")
    for name, times in rows.items():
        shown = "  ".join(f"p{q} {np.percentile(times, q):.4f}" for q in (50, 90, 99))
        print(f"{name:>15}: {shown}  most {max(times):.4f}")
    print("held:", "; ".join(f"{h.megabytes:.0f} MB, {h.threads} threads, {h.files} files" for h in held))
    used = {name: re.search(rf"^{name} ([\d.]+)", metrics, re.M) for name in _MUST_BE_ZERO}
    wrong = [
        f"{name} is {found and found[1]}" for name, found in used.items() if not found or float(found[1])
    ]
    bad = [name for name in observed.outcomes if name == "WRONG" or name.startswith("failed")]
    wrong += [f"{observed.outcomes[name]} answers: {name}" for name in bad]
    warm, last = held[1], held[-1]
    if last.threads > warm.threads or last.files > warm.files:
        wrong.append(f"the server held {warm} and then {last}")
    return wrong


_MUST_BE_ZERO = ("systolic_requests_running", "systolic_requests_waiting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shakespeare")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--killed", type=float, default=0.25)
    options = parser.parse_args()
    command = [sys.executable, "-m", "systolic", "serve", options.model, "--port", "0", "--name", "loaded"]
    server = subprocess.Popen(
        [*command, "--batch", str(options.batch)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        address = line.split(" at ")[-1].strip().removesuffix("/v1")
        observed, held, metrics = asyncio.run(load(address, server.pid, options))
        wrong = report(observed, held, metrics, options)
        server.send_signal(signal.SIGTERM)
        ended = server.wait(timeout=30)
        print(json.dumps({"server_status": ended, "wrong": wrong}))
    finally:
        server.kill()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
