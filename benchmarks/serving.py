"""Serving: many requests at once against one after another, and what a new prompt costs everybody.

    python -m benchmarks.serving [--model shakespeare] [--batch 8] [--tokens 64] [--prompt 128] [--rounds 5]

Printed are medians of the rounds with their range. *Throughput* is new tokens per second of ``--batch``
requests: one after another with a batch of one, all in one ``generate_batch``, all through a scheduler. They
must say the same. *Under load*, all rows but one are generating when a prompt of ``--prompt`` tokens
comes: its time to first token, and the longest pause that it causes between two tokens of the others, for
several numbers of prompt tokens per step; beside them the time to first token of the prompt alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import systolic as sy

from .contest import markdown, spread
from .machine import add_device, choose


def prompts_for(model: sy.Model, count: int, length: int) -> list[list[int]]:
    """Random texts of the vocabulary, no two beginning alike."""
    random = np.random.default_rng(0)
    first = 0 if model.bos_id is None else model.bos_id
    return [[first, *random.integers(3, model.vocabulary_size, length - 1).tolist()] for _ in range(count)]


def measure_throughput(model: sy.Model, options: argparse.Namespace) -> dict[str, list[float]]:
    """New tokens per second, one number for each round."""
    prompts = prompts_for(model, options.batch, 16)
    settings = {"max_new_tokens": options.tokens, "ignore_eos": True}
    one = sy.compile(model, capacity=options.capacity)
    many = sy.compile(model, capacity=options.capacity, batch=options.batch)
    scheduler = many.scheduler(prefix_bytes=0)

    def one_by_one() -> list[list[int]]:
        return [one.generate(prompt, **settings) for prompt in prompts]

    def together() -> list[list[int]]:
        return many.generate_batch(prompts, **settings)

    def scheduled() -> list[list[int]]:
        requests = [scheduler.submit(prompt, **settings) for prompt in prompts]
        return [request.result() for request in requests]

    ways = {"one by one": one_by_one, "generate_batch": together, "scheduler": scheduled}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(options.rounds + 1):
        said = {}
        for name, way in ways.items():
            start = time.perf_counter()
            said[name] = way()
            if round_:  # the first one compiles
                rates[name].append(options.batch * options.tokens / (time.perf_counter() - start))
        assert said["one by one"] == said["generate_batch"] == said["scheduler"], "they say different tokens"
    return rates


def measure_load(model: sy.Model, options: argparse.Namespace, prompt_tokens: int) -> dict[str, list[float]]:
    """Milliseconds, one number for each round."""
    exe = sy.compile(model, capacity=options.capacity, batch=options.batch)
    scheduler = exe.scheduler(prefix_bytes=0, prompt_tokens=prompt_tokens)
    background, prompt = prompts_for(model, options.batch, options.prompt)[:2]
    settings = {"ignore_eos": True, "temperature": 1.0}
    found: dict[str, list[float]] = {"alone": [], "first token": [], "pause": [], "between tokens": []}
    for _ in range(options.rounds):
        alone = scheduler.submit(prompt, max_new_tokens=1, **settings)
        alone.result()
        others = [
            scheduler.submit(background[:8], max_new_tokens=options.capacity, seed=seed, **settings)
            for seed in range(options.batch - 1)
        ]
        between = _gaps(scheduler, others[0], lambda other=others[0]: len(other.tokens) < 64)
        request = scheduler.submit(prompt, max_new_tokens=1, **settings)
        gaps = _gaps(scheduler, others[0], lambda new=request: not new.is_done)
        for other in others:
            other.cancel()
        scheduler.step()
        found["alone"].append(1e3 * _first_token(alone))
        found["first token"].append(1e3 * _first_token(request))
        found["pause"].append(1e3 * max(gaps))
        found["between tokens"].append(1e3 * float(np.median(between[2:])))
    return found


def _first_token(request: Any) -> float:
    return request.first_token - request.submitted


def _gaps(scheduler: sy.Scheduler, other: Any, goes_on: Any) -> list[float]:
    """Seconds per token of ``other``, call by call, while steps are taken."""
    gaps, last = [], time.perf_counter()
    while goes_on():
        count = len(other.tokens)
        scheduler.step()
        if len(other.tokens) > count:
            gaps.append((time.perf_counter() - last) / (len(other.tokens) - count))
            last = time.perf_counter()
    return gaps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shakespeare", help="a directory or an embedded model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--capacity", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    add_device(parser)
    options = parser.parse_args()
    choose(options.device)
    model = sy.load(options.model)
    rates = measure_throughput(model, options)
    load = {share: measure_load(model, options, share) for share in options.prompt_tokens}
    text = json.dumps({"tokens_per_second": rates, "milliseconds": load}, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else table(rates, load, options))


def table(
    rates: Mapping[str, Sequence[float]],
    load: Mapping[int, Mapping[str, Sequence[float]]],
    options: argparse.Namespace,
) -> str:
    """Tokens per second one way and the other, then milliseconds under load."""
    base = np.array(rates["one by one"])
    throughput = [[name, spread(values, 0), spread(values / base)] for name, values in rates.items()]
    cases = list(next(iter(load.values())))
    shares = [[str(share), *(spread(found[case], 1) for case in cases)] for share, found in load.items()]
    said = f"A prompt of {options.prompt} tokens beside {options.batch - 1} running texts, milliseconds:"
    first = markdown(["", "tokens/s", "times one by one"], throughput)
    return f"{first}\n\n{said}\n\n{markdown(['its tokens per step', *cases], shares)}"


if __name__ == "__main__":
    main()
