"""Random small graphs with every kind of time in them, and how to run their programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import strategies as st

import systolic as sy
from systolic.compiler.derive import derive_chunk, derive_score
from systolic.compiler.program import STATE_PREFIX
from systolic.ir.evaluate import evaluate
from systolic.ir.graph import Graph
from systolic.ir.types import DTYPES

WIDTH = 3

# Each step makes a new stream f32[WIDTH] from earlier ones, chosen by number.
KINDS = (
    "linear", "add", "multiply", "tanh", "delay", "prefix_attention", "window_attention", "window_max",
    "prefix_mean", "distance", "repeat_window", "decay", "self_history", "self_delay",
    "running_total", "running_maximum", "memory", "linear_attention", "outer_products", "log_attention",
    "two_pasts", "corrected_memory", "selective",
)  # fmt: skip
steps = st.tuples(st.sampled_from(KINDS), st.integers(0, 7), st.integers(0, 7), st.integers(1, 4))
Recipe = Sequence[tuple[str, int, int, int]]
recipes = st.lists(steps, min_size=1, max_size=6)


def build(recipe: Recipe) -> Graph:
    """The graph of a recipe: one input ``x: f32[WIDTH]`` and one output."""
    return sy.trace(lambda x: follow(recipe, x, "w"), name="random", x=f"f32[{WIDTH}]")


def build_two_clocks(source_recipe: Recipe, target_recipe: Recipe) -> Graph:
    """An encoder after one recipe, and a decoder after another that reads all of it."""

    def model(source: sy.Stream, x: sy.Stream) -> sy.Stream:
        with sy.scope("source"):
            memory = sy.whole(sy.tanh(follow(source_recipe, source, "source.w")))
        keys = sy.einsum("pd,de->pe", memory, sy.parameter("k", (WIDTH, WIDTH)))
        read = sy.softmax(sy.einsum("d,pd->p", x, keys)) @ memory
        return follow(target_recipe, x + read, "w") + sy.max(memory, 0)

    return sy.trace(model, source=f"f32[{WIDTH}]@source", x=f"f32[{WIDTH}]@target")


def follow(recipe: Recipe, x: sy.Stream, weights: str) -> sy.Stream:
    """The sum of the streams that the steps of a recipe make, from ``x`` on."""
    streams = [x]
    for i, (kind, a, b, n) in enumerate(recipe):
        with sy.scope(f"step.{i}"):
            weight = sy.parameter(f"{weights}{i}", (WIDTH, WIDTH))
            streams.append(apply(kind, streams[a % len(streams)], streams[b % len(streams)], n, weight))
    return sum(streams[1:], streams[0])


def apply(kind: str, x: sy.Stream, y: sy.Stream, n: int, weight: sy.Stream) -> sy.Stream:
    """One step of a recipe."""
    clock = str(x.node.clock)
    match kind:
        case "linear":
            return x @ weight
        case "add":
            return x + y
        case "multiply":
            return x * y * 0.3
        case "tanh":
            return sy.tanh(x)
        case "delay":
            return sy.delay(x, n, 0.25)
        case "prefix_attention":
            return attention(x, sy.history(y @ weight))
        case "window_attention":
            return attention(x, sy.history(y, window=n))
        case "window_max":
            return sy.max(sy.history(sy.exp(y * 0.1), window=n), 0)
        case "prefix_mean":
            return sy.mean(sy.history(x), 0)
        case "distance":
            distance = (sy.position(clock) - sy.history(sy.position(clock), window=n + 1)).cast("f32")
            return x * sy.sum(sy.rsqrt(distance + 1.0))
        case "repeat_window":
            pair = sy.broadcast_to(y.reshape(1, WIDTH), (2, WIDTH))
            return sy.sum(sy.history(pair, window=n), (0, 1)) * 0.2
        case "decay":
            state = sy.feedback(sy.zeros((WIDTH,)) + 0.5, clock)
            return state.close(state * 0.5 + sy.tanh(x))
        case "self_history":
            state = sy.feedback(sy.zeros((WIDTH,)), clock)
            return state.close(sy.tanh(attention(x, sy.history(state + y, window=n + 1))))
        case "self_delay":
            state = sy.feedback(sy.zeros((WIDTH,)), clock)
            return state.close(sy.tanh(sy.delay(state, n, 0.1) + x))
        case "running_total":  # read by itself, by its own past, and by its value before
            total = sy.feedback(sy.zeros((WIDTH,)) - 0.5, clock)
            total.close(x * 0.2 + total)
            return total + sy.sum(sy.history(total, window=n), 0) * 0.1 + sy.delay(total, n)
        case "running_maximum":
            highest = sy.feedback(sy.zeros((WIDTH,)) - 1e30, clock)
            highest.close(sy.maximum(highest + sy.tanh(x) * 0.1 - 0.2, y))
            return sy.maximum(highest, -5.0) * 0.5 + sy.tanh(highest)  # what 1e30 meets has no digits left
        case "memory":  # large enough to be read in blocks; a decay for each head, or for all
            fade = sy.sigmoid(x)[:, None, None] if n > 2 else sy.constant(0.5 + 0.1 * n)
            return memory(x, y, n, lambda before: fade * before)
        case "corrected_memory":
            return memory(x, y, n, lambda before: before * sy.sigmoid(y)[:, None, None], corrected=True)
        case "selective":
            return selective(x, y, n)
        case "linear_attention":
            keys = sy.history(y, window=n)
            return sy.einsum("p,pd->d", sy.einsum("d,pd->p", x, keys), keys) * 0.1
        case "outer_products":
            past = sy.history(y)
            return x @ sy.einsum("pd,pe->de", past, past) * 0.05
        case "log_attention":  # the logarithm of a slot that was never written is no number
            past = sy.log(sy.history(sy.absolute(y) + 1.0))
            return attention(x, past)
        case "two_pasts":
            left, right = sy.history(x, window=n), sy.history(y)
            scores = sy.softmax(sy.einsum("pd,qd->pq", left, right))
            return sy.sum(sy.einsum("pq,qd->pd", scores, right), 0) * 0.3
    raise AssertionError(kind)


def memory(
    x: sy.Stream, y: sy.Stream, n: int, fade: Callable[[sy.Stream], sy.Stream], *, corrected: bool = False
) -> sy.Stream:
    """What is read of a sum of outer products; with ``n`` odd, also of the sum before this position."""
    keys = sy.stack([sy.tanh(y), sy.tanh(x), sy.sin(y * x), sy.sin(y)], axis=1) * 0.5
    values = sy.tanh(sy.concatenate([x, y, x * 0.3, sy.sin(y)]))
    values = sy.broadcast_to(values, (WIDTH, 4 * WIDTH))
    before = sy.feedback(sy.zeros((WIDTH, 4, 4 * WIDTH)) + 0.1, str(x.node.clock))
    faded = fade(before)
    if corrected:
        values = sy.sigmoid(x)[:, None] * (values - sy.einsum("hkv,hk->hv", faded, keys))
    after = before.close(faded + sy.einsum("hk,hv->hkv", keys, values))
    read = sy.sum(sy.einsum("kh,hkv->hv", sy.transpose(keys), after), 1) * 0.1
    return read + sy.sum(before * 0.01, (1, 2)) if n % 2 else read


def selective(x: sy.Stream, y: sy.Stream, n: int) -> sy.Stream:
    """What is read of 8 numbers for each element, which decay each at a rate of its own; with ``n`` odd also
    of those before this position, with ``n`` above 2 in two steps, and by what the first one read."""
    rate = sy.constant(-0.1 * np.arange(1, 9, dtype=np.float32))
    enter, leave = sy.sin(sy.arange(8).cast("f32") * y[0]), sy.cos(sy.arange(8).cast("f32") * y[1])
    before = sy.feedback(sy.zeros((WIDTH, 8)) + 0.1, str(x.node.clock))
    after = before.close(sy.exp(sy.sigmoid(x)[:, None] * rate) * before + sy.tanh(x)[:, None] * enter)
    read = sy.einsum("cn,n->c", after, leave)
    if n % 2:
        read = read + sy.sum(before * leave, 1) * 0.1
    return read + sy.sum(sy.tanh(after) * read[:, None], 1) * 0.1 if n == 4 else read


def attention(x: sy.Stream, keys: sy.Stream) -> sy.Stream:
    return sy.softmax(sy.einsum("d,pd->p", x, keys)) @ keys


def draw_parameters(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        node.name: (0.6 * random.normal(size=node.tensor.static_shape)).astype(np.float32)
        for node in graph.parameters
    }


def run_in_chunks(
    graph: Graph,
    plan: object,
    values: np.ndarray,
    parameters: dict[str, np.ndarray],
    lengths: Sequence[Sequence[int]],
    capacity: int,
) -> list[np.ndarray]:
    """The output at every real position of each row.

    ``values`` [B, T, …]; ``lengths[i][b]`` is how many positions row b takes in call i. The chunk of a
    call is its longest row; what lies behind a shorter row is garbage that must stay invisible.
    """
    rows = len(values)
    reserve = max(max(call) for call in lengths)
    offset = np.zeros(rows, np.int32)
    states: dict[str, np.ndarray] | None = None
    outputs: list[list[np.ndarray]] = [[] for _ in range(rows)]
    for call in lengths:
        chunk = max(*call, 1)
        program = derive_chunk(
            graph, plan, rows=rows, chunk=chunk, capacity=capacity, reserve=max(reserve, 1), last=False
        )
        if states is None:
            states = {
                STATE_PREFIX + s.name: np.zeros(s.type.static_shape, DTYPES[s.type.dtype])
                for s in program.states
            }
        taken = np.full((rows, chunk, *values.shape[2:]), 7.0, np.float32)
        for row, count in enumerate(call):
            taken[row, :count] = values[row, offset[row] : offset[row] + count]
        given = {"x": taken, "offset": offset, "length": np.array(call, np.int32)}
        results = evaluate(program.graph, {**parameters, **states, **given})
        states = {name: results[name] for name in states}
        for row, count in enumerate(call):
            outputs[row].extend(results["output"][row, :count])
        offset = offset + np.array(call, np.int32)
    return [np.array(rows_of) for rows_of in outputs]


def run_at_once(graph: Graph, values: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
    rows, length = values.shape[:2]
    program = derive_score(graph, rows=rows, length=length)
    given = {"x": values, "offset": np.zeros(rows, np.int32), "length": np.full(rows, length, np.int32)}
    return evaluate(program.graph, {**parameters, **given})["output"]
