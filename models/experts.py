"""Mixtures of experts, for one token: a router chooses some of many MLPs, and only these are computed.

A router turns one score per expert, f32[E], into a ``Routing``. Weights of all experts are stacked in one
parameter [E, …]; a ``*`` in its name stands for the number of an expert where files keep them apart.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..compiler.language import (
    arange,
    broadcast_to,
    einsum,
    parameter,
    reshape,
    sigmoid,
    softmax,
    sum,
    take,
    top_k,
    where,
)
from ..compiler.stream import Stream
from .blocks import activation, linear


class Routing(NamedTuple):
    """The experts that a token is sent to, i32[k], and what each one's result is multiplied by, f32[k]."""

    chosen: Stream
    shares: Stream


# ---- routers ----


def choose(scores: Stream, k: int, *, by: Stream | None = None) -> Routing:
    """The ``k`` experts with the best scores, or the best of ``by`` [E]; their scores are the shares."""
    best, chosen = top_k(scores if by is None else by, k)
    return Routing(chosen, best if by is None else take(scores, chosen))


def normalised(routing: Routing, eps: float = 0.0) -> Routing:
    """Shares divided by their sum, to which ``eps`` is added."""
    total = sum(routing.shares, keepdims=True)
    return routing._replace(shares=routing.shares / (total + eps if eps else total))


def scaled(routing: Routing, factor: float) -> Routing:
    """Shares times ``factor``."""
    return routing if factor == 1.0 else routing._replace(shares=routing.shares * factor)


def keep_best_groups(
    scores: Stream, groups: int, kept: int, *, best: int, others: float = -math.inf
) -> Stream:
    """Scores [E], with ``others`` in place of those outside the ``kept`` best of ``groups`` equal parts.

    A group is as good as the sum of its ``best`` best scores.
    """
    if groups == kept:
        return scores
    grouped = reshape(scores, groups, -1)
    _, winners = top_k(sum(top_k(grouped, best)[0], axis=-1), kept)
    is_kept = sum((reshape(winners, kept, 1) == arange(groups)).cast("i32"), axis=0) > 0
    mask = broadcast_to(reshape(is_kept, groups, 1), grouped.shape)
    return reshape(where(mask, grouped, others), *scores.shape)


def softmax_routing(logits: Stream, k: int, *, normalise: bool) -> Routing:
    """The most probable ``k`` of a softmax over all experts; ``normalise`` makes their shares sum to 1."""
    routing = choose(softmax(logits), k)
    return normalised(routing) if normalise else routing


def softmax_of_chosen(logits: Stream, k: int) -> Routing:
    """The ``k`` best experts, with a softmax over these alone."""
    routing = choose(logits, k)
    return routing._replace(shares=softmax(routing.shares))


def corrected_sigmoid_routing(
    logits: Stream, correction: Stream, k: int, *, groups: int, kept: int, normalise: bool, scale: float
) -> Routing:
    """DeepSeek-V3's: experts are chosen by sigmoid + ``correction`` [E], within the ``kept`` best groups by
    their two best; shares are the sigmoids alone, normalised if asked for, times ``scale``."""
    scores = sigmoid(logits)
    routing = choose(scores, k, by=keep_best_groups(scores + correction, groups, kept, best=2))
    return scaled(normalised(routing, 1e-20) if normalise else routing, scale)


# ---- experts ----


def routed_linear(
    x: Stream, weight: Stream, chosen: Stream, *, bias: Stream | None = None, axes: str = "nd"
) -> Stream:
    """``x`` [d], or [k, d] with a row for each, times the weights of the ``chosen`` experts: [k, n].

    ``weight`` is [E, n, d] where ``axes`` is ``nd``, [E, d, n] where it is ``dn``; ``bias`` is [E, n].
    """
    y = einsum(f"{'kd'[-x.ndim :]},k{axes}->kn", x, take(weight, chosen))
    return y if bias is None else y + take(bias, chosen)


class ExpertNames(NamedTuple):
    """What the three matrices of an expert are called."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


def routed_mlp(
    x: Stream,
    name: str,
    routing: Routing,
    *,
    experts: int,
    width: int,
    act: str,
    names: ExpertNames = ExpertNames(),  # noqa: B008 (immutable)
) -> Stream:
    """The sum of share * down(act(gate(x)) * up(x)) over the chosen experts: [d].

    Files keep expert N as ``name``.N.gate_proj.weight [width, d] and so on.
    """
    (size,) = x.node.tensor.static_shape
    chosen, shares = routing
    gate, up = (parameter(f"{name}.*.{n}.weight", (experts, width, size)) for n in (names.gate, names.up))
    down = parameter(f"{name}.*.{names.down}.weight", (experts, size, width))
    hidden = activation(act)(routed_linear(x, gate, chosen)) * routed_linear(x, up, chosen)
    return mix_experts(routed_linear(hidden, down, chosen), shares)


def mix_experts(results: Stream, shares: Stream) -> Stream:
    """The results [k, d] of the chosen experts, weighted by their shares [k]: [d]."""
    return einsum("k,kd->d", shares, results)


def router_logits(x: Stream, name: str, experts: int, *, bias: bool = False) -> Stream:
    """One score per expert, f32[E]."""
    return linear(x, name, experts, bias=bias).named("router")
