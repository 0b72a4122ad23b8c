"""Good hand-written JAX programs for recurrent models: Mamba by an associative scan, and LSTM by a scan.

A prompt of Mamba is read in blocks of 16 positions, each an associative scan, in a ``lax.scan`` that carries
the states: on a CPU ten times as fast as one associative scan over all positions, whose states fit into no
cache. Layers are unrolled, states donated, and up to 64 tokens are chosen and fed back in one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..subjects import Subject
from . import Setting
from .jax_products import Products
from .jax_steps import TOKENS_PER_CALL, looped

BLOCK = 16
States = list[tuple[jax.Array, jax.Array]]
Weights = Mapping[str, Any]


class JaxRecurrent:
    """The jitted programs of a model: ``read`` tokens [B, T] from states on, for prompts and steps alike."""

    def __init__(self, subject: Subject, setting: Setting, program: Mamba | Lstm) -> None:
        self.name = f"JAX by hand, {setting.dtype}"
        self._weights = program.arrange(subject.weights)
        tables = {"table", "embedding.weight"}  # of which a step takes a row
        read = {name: part for name, part in self._weights.items() if name not in tables}
        self.weight_bytes = sum(array.nbytes for array in jax.tree.leaves(read))
        self._program = program
        self._read = jax.jit(program.read, donate_argnums=1)
        self._steps = looped(self._step)
        self._states: States = []
        self._token = jnp.zeros(0, jnp.int32)

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        self._states = self._program.empty_states(len(prompts))
        self._token, self._states = self._read(self._weights, self._states, jnp.asarray(prompts))
        return np.asarray(self._token)

    def decode(self, count: int) -> np.ndarray:
        parts = []
        for start in range(0, count, TOKENS_PER_CALL):
            size = min(TOKENS_PER_CALL, count - start)
            chosen, self._token, _, self._states = self._steps(
                self._weights, self._states, self._token, jnp.int32(0), size
            )
            parts.append(chosen[:size].T)
        return np.concatenate([np.asarray(part) for part in parts], axis=1)

    def _step(self, weights: Any, states: States, token: jax.Array, position: jax.Array) -> Any:
        token, states = self._program.read(weights, states, token[:, None])
        return token, position, states


class Mamba:
    """Tail of the convolution [B, K - 1, C] and state [B, C, N] of each layer."""

    def __init__(self, config: Mapping[str, Any], products: Products) -> None:
        self._products = products
        self._layers, self._epsilon = config["num_hidden_layers"], config["layer_norm_epsilon"]
        self._width = config["expand"] * config["hidden_size"]
        self._size, self._rank, self._kernel = (
            config["state_size"],
            config["time_step_rank"],
            config["conv_kernel"],
        )

    def empty_states(self, rows: int) -> States:
        shapes = (rows, self._kernel - 1, self._width), (rows, self._width, self._size)
        return [(jnp.zeros(shapes[0]), jnp.zeros(shapes[1])) for _ in range(self._layers)]

    def arrange(self, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """By layer; matrices as products want them. What decays (A, D, the convolution) stays f32."""
        layers: list[dict[str, Any]] = [{} for _ in range(self._layers)]
        for name, array in weights.items():
            if name.startswith("backbone.layers."):
                number, _, inner = name.removeprefix("backbone.layers.").partition(".")
                is_matrix = inner.endswith("proj.weight")
                layers[int(number)][inner] = self._products.matrix(array) if is_matrix else jnp.asarray(array)
        embedding = self._products.embedding(weights["backbone.embeddings.weight"], None)
        return {"layers": layers, "norm": jnp.asarray(weights["backbone.norm_f.weight"]), **embedding}

    def read(self, weights: Weights, states: States, tokens: jax.Array) -> tuple[jax.Array, States]:
        x, after = self._products.taken(weights.get("table", weights["head"]), tokens), []
        for w, (tail, state) in zip(weights["layers"], states, strict=True):
            branch, *kept = self._mix(self._norm(x, w["norm.weight"]), w, tail, state)
            x = x + branch
            after.append(tuple(kept))
        logits = self._products.apply(weights["head"], self._norm(x[:, -1], weights["norm"]))
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), after  # type: ignore[return-value]

    def _norm(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self._epsilon) * weight

    def _mix(self, x: jax.Array, w: Weights, tail: jax.Array, state: jax.Array) -> tuple[jax.Array, ...]:
        count, product = x.shape[1], self._products.apply
        inner, gate = jnp.split(product(w["mixer.in_proj.weight"], x), 2, axis=-1)
        joined = jnp.concatenate([tail, inner], axis=1)
        kernel = w["mixer.conv1d.weight"][:, 0]
        taps = (joined[:, k : k + count] * kernel[:, k] for k in range(self._kernel))
        x = jax.nn.silu(sum(taps) + w["mixer.conv1d.bias"])
        low, enter, leave = jnp.split(
            product(w["mixer.x_proj.weight"], x), [self._rank, self._rank + self._size], axis=-1
        )
        step = jax.nn.softplus(product(w["mixer.dt_proj.weight"], low) + w["mixer.dt_proj.bias"])
        scan = self._scan if count % BLOCK == 0 else self._step
        state, y = scan(-jnp.exp(w["mixer.A_log"]), state, (step, step * x, enter, leave))
        y = (y + w["mixer.D"] * x) * jax.nn.silu(gate)
        return product(w["mixer.out_proj.weight"], y), joined[:, count:], state

    def _step(self, rate: jax.Array, state: jax.Array, streams: Any) -> tuple[jax.Array, jax.Array]:
        """All positions one behind the other; one, in a step."""

        def one(state: jax.Array, position: Any) -> tuple[jax.Array, jax.Array]:
            step, flow, enter, leave = position
            state = jnp.exp(step[..., None] * rate) * state + flow[..., None] * enter[:, None]
            return state, jnp.sum(state * leave[:, None], axis=-1)

        if streams[0].shape[1] == 1:
            state, y = one(state, [stream[:, 0] for stream in streams])
            return state, y[:, None]
        state, y = jax.lax.scan(one, state, [jnp.moveaxis(stream, 1, 0) for stream in streams])
        return state, jnp.moveaxis(y, 0, 1)

    def _scan(self, rate: jax.Array, state: jax.Array, streams: Any) -> tuple[jax.Array, jax.Array]:
        """Blocks one behind the other, positions of a block by an associative scan."""

        def compose(first: Any, then: Any) -> Any:
            return then[0] * first[0], then[0] * first[1] + then[1]

        def block(state: jax.Array, positions: Any) -> tuple[jax.Array, jax.Array]:
            step, flow, enter, leave = positions  # [BLOCK, B, …]
            decay = jnp.exp(step[..., None] * rate)
            inflow = flow[..., None] * enter[:, :, None]
            inflow = inflow.at[0].add(decay[0] * state)
            states = jax.lax.associative_scan(compose, (decay, inflow))[1]
            return states[-1], jnp.einsum("tbcn,tbn->tbc", states, leave)

        blocks = [jnp.moveaxis(s, 1, 0).reshape(-1, BLOCK, s.shape[0], s.shape[2]) for s in streams]
        state, y = jax.lax.scan(block, state, blocks)
        return state, jnp.moveaxis(y.reshape(-1, *y.shape[2:]), 0, 1)


class Lstm:
    """Output and cell [B, H] of each layer."""

    def __init__(self, config: Mapping[str, Any], products: Products) -> None:
        self._products = products
        self._layers, self._size = config["num_layers"], config["hidden_size"]

    def arrange(self, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Matrices as products want them, but the table, from which rows are taken."""
        return {
            name: self._products.matrix(array)
            if array.ndim == 2 and name != "embedding.weight"
            else jnp.asarray(array)
            for name, array in weights.items()
        }

    def empty_states(self, rows: int) -> States:
        zeros = (jnp.zeros((rows, self._size)) for _ in range(2 * self._layers))
        return list(zip(zeros, zeros, strict=True))

    def read(self, weights: Weights, states: States, tokens: jax.Array) -> tuple[jax.Array, States]:
        product = self._products.apply
        x, after = weights["embedding.weight"][tokens], []
        for i, state in enumerate(states):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            w_in, w_own, b_in, b_own = (weights[f"lstm.{name}_l{i}"] for name in names)

            def step(state: Any, entering: jax.Array, w_own: Any = w_own) -> Any:
                gates = entering + product(w_own, state[0])
                enter, keep, new, leave = jnp.split(gates, 4, axis=-1)
                cell = jax.nn.sigmoid(keep) * state[1] + jax.nn.sigmoid(enter) * jnp.tanh(new)
                h = jax.nn.sigmoid(leave) * jnp.tanh(cell)
                return (h, cell), h

            entering = jnp.moveaxis(product(w_in, x) + b_in + b_own, 1, 0)
            state, outputs = jax.lax.scan(step, state, entering)
            x = jnp.moveaxis(outputs, 0, 1)
            after.append(state)
        logits = product(weights["head.weight"], x[:, -1]) + weights["head.bias"]
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), after


PROGRAMS = {"mamba": Mamba, "lstm_lm": Lstm}


def prepare(subject: Subject, setting: Setting, products: Products) -> JaxRecurrent:
    program = PROGRAMS[subject.config["model_type"]](subject.config, products)
    return JaxRecurrent(subject, setting, program)
