"""A layer of routed experts beside the same layer that computes all of them, on XLA, f32, interleaved.

    python -m benchmarks.experts [--hidden 1024] [--width 3584] [--experts 8] [--chosen 2] [--rounds 7]

Both are traced for one token and derived for several numbers of positions; both must say the same. Printed
are medians, the ratio, and the share of the multiplications that routing leaves (chosen / experts).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import systolic as sy
from systolic.backends.xla import XlaBackend
from systolic.compiler.derive import derive_score
from systolic.compiler.pipeline import run_passes
from systolic.models.blocks import silu
from systolic.models.experts import routed_mlp, router_logits, softmax_routing

Model = Callable[[sy.Stream], sy.Stream]


def layers(hidden: int, width: int, experts: int, chosen: int) -> dict[str, Model]:
    """The layer in both forms, over the same weights."""

    def routing(x: sy.Stream) -> Any:
        return softmax_routing(router_logits(x, "gate", experts), chosen, normalise=True)

    def routed(x: sy.Stream) -> sy.Stream:
        return routed_mlp(x, "experts", routing(x), experts=experts, width=width, act="silu")

    def dense(x: sy.Stream) -> sy.Stream:
        gate, up = (
            sy.parameter(f"experts.*.{name}_proj.weight", (experts, width, hidden)) for name in ("gate", "up")
        )
        down = sy.parameter("experts.*.down_proj.weight", (experts, hidden, width))
        inner = silu(sy.einsum("d,efd->ef", x, gate)) * sy.einsum("d,efd->ef", x, up)
        chosen, shares = routing(x)
        is_chosen = (chosen.reshape(-1, 1) == sy.arange(experts)).cast("f32")
        weighted = inner * sy.einsum("k,ke->e", shares, is_chosen).reshape(experts, 1)
        return sy.einsum("ef,edf->d", weighted, down)

    return {"routed": routed, "dense": dense}


def prepare(model: Model, hidden: int, positions: int, cache: Path) -> Callable[[], np.ndarray]:
    """A call of the layer for ``positions`` positions, with random weights that the layers share."""
    graph = run_passes(sy.trace(model, x=f"f32[{hidden}]"))[-1].graph
    backend = XlaBackend("cpu", cache)
    program = backend.prepare(derive_score(graph, rows=1, length=positions))
    random = np.random.default_rng(0)
    draw = {
        node.name: random.standard_normal(node.tensor.static_shape, dtype=np.float32) * np.float32(0.03)
        for node in sorted(graph.parameters, key=lambda node: node.name)
    }
    weights = {name: backend.place(array) for name, array in draw.items()}
    x = np.random.default_rng(1).standard_normal((1, positions, hidden), dtype=np.float32)
    inputs = {"x": x, "offset": np.zeros(1, np.int32), "length": np.full(1, positions, np.int32)}
    placed = {name: backend.place(array) for name, array in inputs.items()}
    return lambda: backend.fetch(program.run(weights, placed, {})[0]["output"])


def compare(calls: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, float]:
    """Median seconds of each, called in turn; what they say must agree."""
    routed, dense = (call() for call in calls.values())
    np.testing.assert_allclose(routed, dense, rtol=1e-3, atol=1e-3 * np.abs(dense).max())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("hidden", 1024), ("width", 3584), ("experts", 8), ("chosen", 2), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--positions", type=int, nargs="+", default=[1, 4, 16, 64, 256, 512])
    options = parser.parse_args()
    models = layers(options.hidden, options.width, options.experts, options.chosen)
    print(f"{options.chosen} of {options.experts} experts, {options.hidden} x {options.width} x 3, f32")
    print(f"{'positions':>9} {'routed ms':>10} {'dense ms':>10} {'ratio':>6}")
    with TemporaryDirectory() as folder:
        for positions in options.positions:
            calls = {n: prepare(m, options.hidden, positions, Path(folder)) for n, m in models.items()}
            took = compare(calls, options.rounds)
            ratio = took["routed"] / took["dense"]
            shown = "".join(f"{1e3 * took[name]:>11.2f}" for name in models)
            print(f"{positions:>9}{shown} {ratio:>6.2f}")
    print(f"routed multiplications: {options.chosen / options.experts:.2f} of all")


if __name__ == "__main__":
    main()
