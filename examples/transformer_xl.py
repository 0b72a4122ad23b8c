"""Transformer-XL (Dai et al., 2019) for one token: the memory of past segments is a window like any other.

A segment reads itself and MEMORY positions in front of it, which training holds fixed. Positions enter the
scores as distances only, so they mean the same in every segment. Run: python examples/transformer_xl.py
"""

from __future__ import annotations

import numpy as np

import systolic as sy

VOCABULARY, WIDTH, HIDDEN, LAYERS = 64, 32, 48, 2
HEADS, SIZE = 4, 8
SEGMENT, MEMORY = 6, 4
WINDOW = SEGMENT + MEMORY  # what the last position of a segment sees
FREQUENCIES = np.float32(1e4) ** (-np.arange(0, WIDTH, 2, np.float32) / WIDTH)


def linear(x, name, size):
    return sy.einsum("d,nd->n", x, sy.parameter(name, (size, *x.shape)))


def norm(x, name):
    centred = x - sy.mean(x)
    return centred * sy.rsqrt(sy.mean(centred * centred) + 1e-5) * sy.parameter(name, x.shape)


def distances():
    """f32[window, WIDTH]: sines and cosines of how far back each position is, the oldest first."""
    back = (sy.position() - sy.history(sy.position(), WINDOW)).cast("f32")
    angles = sy.einsum("p,f->pf", back, sy.constant(FREQUENCIES))
    return sy.concatenate([sy.sin(angles), sy.cos(angles)], axis=1)


def is_remembered():
    """bool[window]: the positions of this segment, and of the memory in front of it."""
    start = sy.position() - sy.position() % SEGMENT
    return sy.history(sy.position(), WINDOW) >= start - MEMORY


def attention(x, name):
    q, k, v = (linear(x, f"{name}.{p}", HEADS * SIZE).reshape(HEADS, SIZE).named(p) for p in "qkv")
    by_content = q + sy.parameter(f"{name}.content", (HEADS, SIZE))
    by_distance = q + sy.parameter(f"{name}.distance", (HEADS, SIZE))
    places = sy.einsum("hd,hdw->hw", by_distance, sy.parameter(f"{name}.r", (HEADS, SIZE, WIDTH)))
    scores = sy.einsum("hd,phd->hp", by_content, sy.history(k, WINDOW))
    scores = (scores + sy.einsum("hw,pw->hp", places, distances())) * SIZE**-0.5
    scores = sy.where(is_remembered(), scores, -1e30)
    mixed = sy.einsum("hp,phd->hd", sy.softmax(scores), sy.history(v, WINDOW))
    return linear(mixed.reshape(-1), f"{name}.o", WIDTH)


def mlp(x, name):
    return linear(sy.maximum(linear(x, f"{name}.up", HIDDEN), 0.0), f"{name}.down", WIDTH)


def transformer_xl(token):
    x = sy.take(sy.parameter("embedding", (VOCABULARY, WIDTH)), token) * WIDTH**0.5
    for i in range(LAYERS):
        with sy.scope(f"layers.{i}"):
            x = norm(x + attention(x, f"{i}.attention"), f"{i}.norm1")
            x = norm(x + mlp(x, f"{i}.mlp"), f"{i}.norm2")
    return {"logits": sy.parameter("head", (VOCABULARY, WIDTH)) @ x}


def random_weights(graph, seed=0):
    """A value for each parameter: small matrices, norms near one."""
    random = np.random.default_rng(seed)
    shapes = {node.name: node.type.shape for node in graph.parameters}
    return {
        name: (random.normal(0, shape[-1] ** -0.5, shape) + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def main():
    graph = sy.trace(transformer_xl)
    print(graph.certificate())
    program = sy.compile(graph, random_weights(graph), backend="numpy", capacity=64, chunk=8)
    print(program.generate([1, 2, 3], max_new_tokens=20, temperature=0))
    for state in program.states:  # rings of WINDOW + chunk - 1 values, however long the text is
        print(state.name, state.kind, state.type)


if __name__ == "__main__":
    main()
