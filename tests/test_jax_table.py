"""Programs as JAX functions: gradients, mapping, scans."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs_by_hand import (
    TOLERANCE,
    apply,
    attention_graph,
    attention_values,
    expected,
    input_node,
    recurrence_body,
    weight,
)
from random_graphs import WIDTH, build, draw_parameters

from systolic.backends.jax_table import to_jax
from systolic.compiler.derive import derive_score
from systolic.ir.graph import Graph

pytestmark = pytest.mark.usefixtures("quick_jax")


def test_gradients_are_those_of_finite_differences() -> None:
    graph = build([("prefix_attention", 0, 0, 1), ("window_attention", 1, 0, 2), ("decay", 2, 0, 1)])
    function = to_jax(derive_score(graph, rows=1, length=4))
    parameters = draw_parameters(graph)
    inputs = {
        "x": np.random.default_rng(0).normal(size=(1, 4, WIDTH)).astype(np.float32),
        "offset": np.zeros(1, np.int32),
        "length": np.full(1, 4, np.int32),
    }

    def loss(weights: dict) -> jax.Array:
        return jnp.sum(jnp.sin(function(weights, inputs, {})[0]["output"]))

    compiled, gradients = jax.jit(loss), jax.jit(jax.grad(loss))(parameters)
    assert any(np.abs(gradient).max() > 0.01 for gradient in gradients.values())
    for name, array in parameters.items():
        step = np.zeros_like(array)
        step[0, 1] = 1e-2
        up, down = (compiled({**parameters, name: array + sign * step}) for sign in (1, -1))
        # float32 losses of about 1 divided by 2e-2: some 1e-5 of rounding, 1e-4 of curvature
        np.testing.assert_allclose(gradients[name][0, 1], (up - down) / 2e-2, rtol=1e-2, atol=1e-3)


def test_a_program_can_be_mapped_over_weights() -> None:
    graph = attention_graph()
    parameters, inputs, states = attention_values(graph)
    function = to_jax(graph)
    stacked = {name: np.stack([array, 2 * array]) for name, array in parameters.items()}
    results, _ = jax.jit(jax.vmap(function, in_axes=(0, None, None)))(stacked, inputs, states)
    for i, scale in enumerate((1, 2)):
        scaled = {name: scale * array for name, array in parameters.items()}
        want = expected(graph, scaled, inputs, states)
        np.testing.assert_allclose(results["output"][i], want["output"], **TOLERANCE)


def test_a_loop_is_a_scan_with_gradients() -> None:
    body = recurrence_body()
    h, n, x, u = (
        input_node(name, type_)
        for name, type_ in (("h", "f32[2,3]"), ("n", "i32[]"), ("x", "f32[2,5,3]"), ("u", "i32[2,5]"))
    )
    w = weight("w", "f32[3,3]")
    loop = apply("loop", h, n, x, u, w, body=body, carries=2, scanned=2, length=5)
    graph = Graph("g", (h, n, x, u), (w,), {"y": apply("part", loop, index=2)})
    random = np.random.default_rng(0)
    inputs = {
        "h": random.normal(size=(2, 3)).astype(np.float32),
        "n": np.array(0, np.int32),
        "x": random.normal(size=(2, 5, 3)).astype(np.float32),
        "u": np.ones((2, 5), np.int32),
    }
    parameters = {"w": random.normal(size=(3, 3)).astype(np.float32)}
    function = to_jax(graph)
    assert "scan[" in str(jax.make_jaxpr(function)(parameters, inputs, {}))

    def by_hand(weights: dict) -> jax.Array:
        carried, outputs = inputs["h"], []
        for i in range(5):
            carried = jnp.tanh(carried @ weights["w"] + inputs["x"][:, i])
            outputs.append(carried)
        return jnp.stack(outputs, 1)

    got = jax.jit(jax.grad(lambda weights: jnp.sum(function(weights, inputs, {})[0]["y"] ** 2)))(parameters)
    want = jax.jit(jax.grad(lambda weights: jnp.sum(by_hand(weights) ** 2)))(parameters)
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-4, atol=1e-5)
