"""A Llama from scratch, for one token: no cache, no mask, no batch. Run: python examples/llama.py"""

from __future__ import annotations

import numpy as np

import systolic as sy

VOCABULARY, WIDTH, HIDDEN, LAYERS = 256, 64, 128, 2
KEY_HEADS, GROUP, SIZE = 2, 2, 16  # each key head serves a group of query heads


def linear(x, name, size):
    return sy.einsum("d,nd->n", x, sy.parameter(name, (size, *x.shape)))


def norm(x, name):
    return x * sy.rsqrt(sy.mean(x * x) + 1e-5) * sy.parameter(name, x.shape)


def rotate(x):
    angle = sy.position().cast("f32") * np.float32(1e4) ** (-np.arange(0, SIZE, 2, np.float32) / SIZE)
    (a, b), c, s = sy.split(x, [SIZE // 2] * 2), sy.cos(angle), sy.sin(angle)
    return sy.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def attention(x, name):
    q = rotate(linear(x, f"{name}.q", KEY_HEADS * GROUP * SIZE).reshape(KEY_HEADS, GROUP, SIZE))
    k = rotate(linear(x, f"{name}.k", KEY_HEADS * SIZE).reshape(KEY_HEADS, SIZE))
    v = linear(x, f"{name}.v", KEY_HEADS * SIZE).reshape(KEY_HEADS, SIZE)
    scores = sy.einsum("hgd,phd->hgp", q, sy.history(k)) * SIZE**-0.5  # p: the positions up to now
    mixed = sy.einsum("hgp,phd->hgd", sy.softmax(scores), sy.history(v))
    return linear(mixed.reshape(-1), f"{name}.o", WIDTH)


def mlp(x, name):
    gate, up = linear(x, f"{name}.gate", HIDDEN), linear(x, f"{name}.up", HIDDEN)
    return linear(gate * sy.sigmoid(gate) * up, f"{name}.down", WIDTH)


def llama(token):
    table = sy.parameter("embedding", (VOCABULARY, WIDTH))
    x = sy.take(table, token)
    for i in range(LAYERS):
        with sy.scope(f"layers.{i}"):
            x = x + attention(norm(x, f"{i}.norm1"), f"{i}.attention")
            x = x + mlp(norm(x, f"{i}.norm2"), f"{i}.mlp")
    return {"logits": table @ norm(x, "norm")}


def random_weights(graph, seed=0):
    """A value for each parameter: small matrices, norms near one."""
    random = np.random.default_rng(seed)
    shapes = {node.name: node.type.shape for node in graph.parameters}
    return {
        name: (random.normal(0, shape[-1] ** -0.5, shape) + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def main():
    graph = sy.trace(llama)
    print(graph.certificate())
    program = sy.compile(graph, random_weights(graph), backend="numpy", capacity=64)
    print(program.generate([1, 2, 3], max_new_tokens=8, temperature=0))


if __name__ == "__main__":
    main()
