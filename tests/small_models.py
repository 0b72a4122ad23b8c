"""Small random language models, one for each way of keeping the past."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import systolic as sy

V, D = 23, 8


def attention(token):
    """Sees everything before it: ``append``."""
    x = sy.take(sy.parameter("embedding", (V, D)), token)
    return {"logits": _attend(x, None) @ sy.parameter("head", (D, V))}


def window(token):
    """Sees the last four: ``ring``."""
    x = sy.take(sy.parameter("embedding", (V, D)), token)
    return {"logits": _attend(x, 4) @ sy.parameter("head", (D, V))}


def recurrent(token):
    """Sees what it was and a delayed value: ``carry`` and ``tail``."""
    x = sy.take(sy.parameter("embedding", (V, D)), token)
    return {"logits": _remember(x) @ sy.parameter("head", (D, V))}


def hybrid(token):
    """All four."""
    x = sy.take(sy.parameter("embedding", (V, D)), token)
    x = _remember(_attend(x, 4)) + _attend(x, None)
    return {"logits": x @ sy.parameter("head", (D, V))}


def _attend(x: sy.Stream, past: int | None) -> sy.Stream:
    q, k, v = (x @ sy.parameter(f"{name}.{past}", (D, D)) for name in "qkv")
    k, v = (sy.history(stream, window=past) for stream in (k, v))
    return x + sy.softmax(sy.einsum("d,pd->p", q, k)) @ v


def _remember(x: sy.Stream) -> sy.Stream:
    before = sy.feedback(sy.zeros((D,)))
    # Halved often enough to forget: larger weights would be chaotic, and no two programs agree for long.
    x = before.close(sy.tanh(x + before @ sy.parameter("recurrent", (D, D)) * 0.2))
    return x + sy.delay(x, 2, sy.zeros((D,)))


def tiny(step: Callable = attention, **options) -> sy.Executable:
    """A model with random weights, on NumPy with room for 64 positions unless ``options`` differ."""
    graph = sy.trace(step)
    random = np.random.default_rng(5)
    weights = {n.name: random.normal(size=n.tensor.static_shape) for n in graph.parameters}
    options = {"backend": "numpy", "capacity": 64, "chunk": 16, **options}
    return sy.compile(graph, {name: w.astype(np.float32) for name, w in weights.items()}, **options)
