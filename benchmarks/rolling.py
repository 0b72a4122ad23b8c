"""What one loop body for all layers would gain and cost, on this machine.

    python -m benchmarks.rolling [--depths 8 16 32 80] [--layers 16] [--positions 1 16 128 512]

The same Llama layers in JAX, unrolled and as a scan over stacked weights and states, which are donated. For
each number of positions: seconds that XLA compiles at each depth, then how long a run of ``--layers`` layers
takes, both forms in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CAPACITY = 1024
HEAD = 64
Shapes = Mapping[str, tuple[int, ...]]


def layer_shapes(hidden: int) -> Shapes:
    """The weights of one layer, [out, in], and its two states [heads, capacity, size]."""
    inner, keys = hidden * 8 // 3 // 64 * 64, hidden // 4
    weights = {"q": (hidden, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, hidden)}
    weights |= {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    state = (keys // HEAD, CAPACITY, HEAD)
    return {**weights, "keys": state, "values": state}


def layer(x: jax.Array, w: Mapping[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer over f32[positions, hidden] from the start of a text; the states after it."""
    positions = x.shape[0]

    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)

    h, groups = norm(x), w["keys"].shape[0]
    q = jnp.einsum("pd,nd->pn", h, w["q"]).reshape(positions, groups, -1, HEAD)
    new = [jnp.einsum("pd,nd->pn", h, w[name]).reshape(positions, groups, HEAD) for name in ("k", "v")]
    keys, values = (
        jax.lax.dynamic_update_slice(w[name], part.transpose(1, 0, 2), (0, 0, 0))
        for name, part in zip(("keys", "values"), new, strict=True)
    )
    scores = jnp.einsum("phgd,hsd->phgs", q, keys) * HEAD**-0.5
    seen = jnp.arange(CAPACITY)[None] <= jnp.arange(positions)[:, None]
    chances = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
    x = x + jnp.einsum("phgs,hsd->phgd", chances, values).reshape(positions, -1) @ w["o"].T
    h = norm(x)
    gate = jax.nn.silu(jnp.einsum("pd,nd->pn", h, w["gate"]))
    return x + (gate * jnp.einsum("pd,nd->pn", h, w["up"])) @ w["down"].T, (keys, values)


def unrolled(weights: list[Any], states: list[Any], x: jax.Array) -> Any:
    after = []
    for own, (keys, values) in zip(weights, states, strict=True):
        x, state = layer(x, {**own, "keys": keys, "values": values})
        after.append(state)
    return x, after


def rolled(weights: Any, states: Any, x: jax.Array) -> Any:
    def step(x: jax.Array, own: Any) -> Any:
        w, (keys, values) = own
        return layer(x, {**w, "keys": keys, "values": values})

    return jax.lax.scan(step, x, (weights, states))


def arguments(shapes: Shapes, layers: int, positions: int, *, is_rolled: bool, make: Callable) -> tuple:
    """What either form takes, each array made by ``make`` from its shape."""
    states = ("keys", "values")

    def one(lead: tuple[int, ...]) -> tuple[dict, tuple]:
        weights = {name: make((*lead, *shape)) for name, shape in shapes.items() if name not in states}
        return weights, tuple(make((*lead, *shapes[name])) for name in states)

    x = make((positions, shapes["q"][1]))
    if is_rolled:
        return (*one((layers,)), x)
    each = [one(()) for _ in range(layers)]
    return [weights for weights, _ in each], [state for _, state in each], x


def compiled(shapes: Shapes, layers: int, positions: int, *, is_rolled: bool) -> tuple[Any, float]:
    """The executable, and the seconds that XLA took."""

    def described(shape: tuple[int, ...]) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    run = jax.jit(rolled if is_rolled else unrolled, donate_argnums=1)
    given = arguments(shapes, layers, positions, is_rolled=is_rolled, make=described)
    lowered = run.lower(*given)
    started = time.perf_counter()
    executable = lowered.compile()
    return executable, time.perf_counter() - started


def run_seconds(shapes: Shapes, layers: int, positions: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each run, unrolled and rolled in turn; the first of each is not counted."""
    random = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape, dtype=np.float32) * np.float32(0.03))

    forms = [False, True]
    runs = [compiled(shapes, layers, positions, is_rolled=form)[0] for form in forms]
    given = [list(arguments(shapes, layers, positions, is_rolled=form, make=draw)) for form in forms]
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):
        for run, own, took in zip(runs, given, seconds, strict=True):
            started = time.perf_counter()
            _, own[1] = jax.block_until_ready(run(*own))
            if round_:
                took.append(time.perf_counter() - started)
    return seconds


def _spread(values: list[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--depths", type=int, nargs="*", default=[8, 16, 32, 80])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--positions", type=int, nargs="+", default=[1, 16, 128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shapes = layer_shapes(options.hidden)
    for positions in options.positions:
        for layers in options.depths:
            took = [compiled(shapes, layers, positions, is_rolled=form)[1] for form in (False, True)]
            shown = f"{took[0]:.1f} s unrolled, {took[1]:.1f} s rolled"
            print(f"{positions:4d} positions, {layers:2d} layers: compiled in {shown}", flush=True)
        plain, loop = run_seconds(shapes, options.layers, positions, options.rounds)
        ratios = [b / a for a, b in zip(plain, loop, strict=True)]
        print(
            f"{positions:4d} positions, {options.layers} layers: rolled takes {_spread(ratios)} of unrolled"
        )


if __name__ == "__main__":
    main()
