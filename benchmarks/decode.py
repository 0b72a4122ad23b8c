"""Decode speed, f32, batch 1: our derived program beside a hand-written JAX one, in one interleaved run.

    python -m benchmarks.decode [--layers 12] [--hidden 768] [--capacity 1024] [--tokens 64] [--rounds 7]

Both run the same random weights on the same threads and must choose the same tokens. Printed are the
medians of the rounds with their range, the ratio, and the machine's read bandwidth as measured here, which
bounds what is possible: tokens/s ≤ bandwidth / (bytes of weights + bytes of states read per token).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import systolic as sy

from .jax_llama import empty_cache, make_step


def llama_config(hidden: int, layers: int, capacity: int) -> dict[str, Any]:
    heads = max(1, hidden // 64)
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3 // 32 * 32,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads,
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


def time_ours(exe: sy.Executable, tokens: int) -> tuple[float, list[int]]:
    """Seconds per token after the first one, and the tokens."""
    steps = exe.steps([1], max_new_tokens=tokens, ignore_eos=True)
    chosen = [next(steps).token]
    start = time.perf_counter()
    chosen += [step.token for step in steps]
    return (time.perf_counter() - start) / (tokens - 1), chosen


def time_jax(
    step: Callable, weights: Any, config: dict, capacity: int, tokens: int
) -> tuple[float, list[int]]:
    """Seconds per token after the first one, and the tokens."""
    cache, token, chosen, start = empty_cache(config, capacity), 1, [], 0.0
    for position in range(tokens):
        logits, cache = step(weights, cache, jnp.int32(token), jnp.int32(position))
        token = int(np.argmax(np.asarray(logits)))
        chosen.append(token)
        if position == 0:
            start = time.perf_counter()
    return (time.perf_counter() - start) / (tokens - 1), chosen


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements as one JSON-able record."""
    config = llama_config(options.hidden, options.layers, options.capacity)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        graph = sy.load(path).graph
    weights = random_weights(graph)
    exe = sy.compile(graph, weights, capacity=options.capacity, chunk=16)
    step, placed = make_step(config), {name: jnp.asarray(array) for name, array in weights.items()}
    ours, peer = [], []
    for _ in range(options.rounds + 1):
        seconds, chosen = time_ours(exe, options.tokens)
        peer_seconds, expected = time_jax(step, placed, config, options.capacity, options.tokens)
        assert chosen == expected, "the two programs chose different tokens"
        ours.append(seconds)
        peer.append(peer_seconds)
    ours, peer = ours[1:], peer[1:]  # the first round compiles
    bytes_of_weights = sum(array.nbytes for array in weights.values())
    bandwidth = read_bandwidth()
    return {
        "config": config,
        "bytes_of_weights": bytes_of_weights,
        "bytes_of_states": sum(state.bytes for state in exe.states),
        "read_bandwidth": bandwidth,
        "tokens_per_second": {"systolic": [1 / s for s in ours], "jax": [1 / s for s in peer]},
        "ratio": [p / s for s, p in zip(ours, peer, strict=True)],
        "of_bandwidth": [bytes_of_weights / s / bandwidth for s in ours],
    }


def _spread(values: list[float]) -> str:
    return f"{np.median(values):6.2f}  ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    record = run(options)
    if options.json:
        print(json.dumps(record))
        return
    print(
        f"weights {record['bytes_of_weights'] / 1e6:.0f} MB, states {record['bytes_of_states'] / 1e6:.0f} MB"
    )
    print(f"read bandwidth        {record['read_bandwidth'] / 1e9:6.1f} GB/s")
    for name, rates in record["tokens_per_second"].items():
        print(f"{name:12s} tokens/s {_spread(rates)}")
    print(f"systolic / jax        {_spread(record['ratio'])}")
    print(f"weights / bandwidth   {_spread(record['of_bandwidth'])}")


if __name__ == "__main__":
    main()
