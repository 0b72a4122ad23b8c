"""Decode speed: our programs beside a hand-written JAX one and transformers, in one interleaved run.

    python -m benchmarks.decode [--hidden 768] [--layers 12] [--dtypes f32,bf16,int8,int4-32] [--batch 1,8]
                                [--capacity 1024] [--tokens 64] [--rounds 7] [--transformers] [--json]

All run random weights of one Llama shape on the same threads and, in f32, must choose the same tokens.
Printed are the medians of the rounds with their range, the ratio of each to ours in f32, and the share of
the machine's read bandwidth, as measured here, that reading every weight once per token comes to.
``--transformers`` needs torch and transformers beside systolic; it runs f32 and bf16 there with its own
dynamic cache.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import systolic as sy
from systolic.ir.types import DTYPES
from systolic.models.load import keep_weights_as
from systolic.models.quantised import SCHEMES, quantise

from .jax_llama import empty_cache, make_step

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Contestant:
    """One way to decode: ``run`` makes tokens and returns seconds per step and the tokens of row 0."""

    name: str
    rows: int
    weight_bytes: int
    run: Callable[[], tuple[float, list[int]]]


def llama_config(hidden: int, layers: int, capacity: int) -> dict[str, Any]:
    heads = max(1, hidden // 64)
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3 // 64 * 64,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 4 if heads % 4 == 0 else heads // 3 if heads % 3 == 0 else heads,
        "vocab_size": 32000,
        "max_position_embeddings": capacity,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }


def random_weights(graph: sy.Graph) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        node.name: random.standard_normal(node.tensor.static_shape, dtype=np.float32) * np.float32(0.03)
        + np.float32(node.tensor.rank == 1)
        for node in graph.parameters
    }


def read_bandwidth(seconds: float = 1.0) -> float:
    """Bytes per second that a sum over a large array reads, the best of several runs."""
    array, total, best = jnp.ones(1 << 27, jnp.float32), jax.jit(jnp.sum), float("inf")
    total(array).block_until_ready()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        total(array).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return array.nbytes / best


# ---- contestants ----


def ours(graph: sy.Graph, weights: Weights, dtype: str, rows: int, options: argparse.Namespace) -> Contestant:
    """The derived program with its decode loop, weights kept as ``dtype``."""
    if dtype in SCHEMES:
        graph, kept = quantise(graph, weights, dtype)
    elif dtype != "f32":
        graph = keep_weights_as(graph, dtype)
        types = {node.name: DTYPES[node.tensor.dtype] for node in graph.parameters}
        kept = {name: array.astype(types[name]) for name, array in weights.items()}
    else:
        kept = weights
    exe = sy.compile(graph, kept, batch=rows, capacity=options.capacity, chunk=16)

    def run() -> tuple[float, list[int]]:
        prompts = [[1 + row] for row in range(rows)]
        start = time.perf_counter()
        few = exe.generate_batch(prompts, max_new_tokens=1, ignore_eos=True)
        middle = time.perf_counter()
        tokens = exe.generate_batch(prompts, max_new_tokens=options.tokens, ignore_eos=True)
        seconds = (time.perf_counter() - middle) - (middle - start)
        assert few[0] == tokens[0][:1]
        return seconds / (options.tokens - 1), tokens[0]

    size = sum(node.tensor.bytes for node in graph.parameters)
    return Contestant(f"systolic {dtype}" + (f", batch {rows}" if rows > 1 else ""), rows, size, run)


def hand_written(config: dict[str, Any], weights: Weights, options: argparse.Namespace) -> Contestant:
    step, placed = make_step(config), {name: jnp.asarray(array) for name, array in weights.items()}

    def run() -> tuple[float, list[int]]:
        cache, token, chosen, start = empty_cache(config, options.capacity), 1, [], 0.0
        for position in range(options.tokens):
            logits, cache = step(placed, cache, jnp.int32(token), jnp.int32(position))
            token = int(np.argmax(np.asarray(logits)))
            chosen.append(token)
            if position == 0:
                start = time.perf_counter()
        return (time.perf_counter() - start) / (options.tokens - 1), chosen

    return Contestant("JAX by hand, f32", 1, sum(array.nbytes for array in weights.values()), run)


def library(config: dict[str, Any], weights: Weights, options: argparse.Namespace) -> Iterator[Contestant]:
    """transformers on torch with as many threads as there are cores."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    for dtype in (torch.float32, torch.bfloat16):
        model = LlamaForCausalLM(LlamaConfig(**config)).eval()
        model.load_state_dict(
            {name: torch.from_numpy(array) for name, array in weights.items()}, strict=False
        )
        model.to(dtype)
        yield _of_library(model, str(dtype).removeprefix("torch."), options, torch)


def _of_library(model: Any, dtype: str, options: argparse.Namespace, torch: Any) -> Contestant:
    def run() -> tuple[float, list[int]]:
        token, cache, chosen, start = torch.tensor([[1]]), None, [], 0.0
        with torch.inference_mode():
            for position in range(options.tokens):
                output = model(input_ids=token, past_key_values=cache, use_cache=True)
                cache, token = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
                chosen.append(int(token))
                if position == 0:
                    start = time.perf_counter()
        return (time.perf_counter() - start) / (options.tokens - 1), chosen

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return Contestant(f"transformers, {dtype}", 1, size, run)


# ---- the run ----


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements as one JSON-able record."""
    config = llama_config(options.hidden, options.layers, options.capacity)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        graph = sy.load(path).graph
    weights = random_weights(graph)
    contestants = [
        ours(graph, weights, dtype, rows, options)
        for rows in map(int, options.batch.split(","))
        for dtype in (options.dtypes.split(",") if rows == 1 else ("f32",))
    ]
    contestants.append(hand_written(config, weights, options))
    if options.transformers:
        contestants += library(config, weights, options)
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for round_ in range(options.rounds + 1):
        expected: list[int] = []
        for contestant in contestants:
            took, tokens = contestant.run()
            if "f32" in contestant.name or "float32" in contestant.name:
                expected = expected or tokens
                assert tokens == expected, f"{contestant.name} chose other tokens"
            if round_:  # the first one compiles
                seconds[contestant.name].append(took)
    bandwidth = read_bandwidth()
    return {
        "config": config,
        "tokens": options.tokens,
        "read_bandwidth": bandwidth,
        "contestants": [
            {
                "name": c.name,
                "weight_bytes": c.weight_bytes,
                "tokens_per_second": [c.rows / s for s in seconds[c.name]],
                "ratio": [
                    base / s for s, base in zip(seconds[c.name], seconds[contestants[0].name], strict=True)
                ],
                "of_bandwidth": [c.weight_bytes / s / bandwidth for s in seconds[c.name]],
            }
            for c in contestants
        ],
    }


def _spread(values: list[float], digits: int = 2) -> str:
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(record: Mapping[str, Any]) -> str:
    """The record as a Markdown table."""
    config = record["config"]
    shape = f"{config['num_hidden_layers']} layers of {config['hidden_size']}"
    lines = [
        f"{shape}; read bandwidth {record['read_bandwidth'] / 1e9:.1f} GB/s; {record['tokens']} tokens\n",
        "| | weights | tokens/s | times the first | of the bandwidth |",
        "|---|---|---|---|---|",
    ]
    for c in record["contestants"]:
        cells = [c["name"], f"{c['weight_bytes'] / 1e6:,.0f} MB", _spread(c["tokens_per_second"], 1)]
        cells += [_spread(c["ratio"]), _spread(c["of_bandwidth"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", default="f32", help="how our weights are kept, the first being the base")
    parser.add_argument("--batch", default="1", help="numbers of rows, the first being 1")
    parser.add_argument("--transformers", action="store_true", help="also run transformers on torch")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    record = measure(options)
    print(json.dumps(record) if options.json else table(record))


if __name__ == "__main__":
    main()
