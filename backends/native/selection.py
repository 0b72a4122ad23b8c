"""Which nodes native kernels compute, beside products: attention, recurrences, experts, angles, choices.

Attention is found by its shape, whatever model it is from: scores of queries with a state, scaled, maybe
bounded, hidden by a mask, normalised, and mixed with another state. Its kernel reads only what the mask lets
a position see, so that time depends on how much of a state is used and not on its capacity.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from ...ir.graph import Node
from ...ir.ops.linear import split_subscripts
from ...ir.types import TensorType
from ..contractions.products import scalar
from ..stablehlo_text import Block, Value
from . import Kernels
from .calls import Selected, call_kernel
from .fusions import select_fusions
from .recurrences import select_recurrence

ANGLES = {"cos": "cosine", "sin": "sine"}  # kernels of ops
LONG_ROW = 1 << 10  # numbers


def select(
    nodes: Sequence[Node], outputs: Collection[Node], products: Mapping[Node, Selected], kernels: Kernels
) -> dict[Node, Selected]:
    """The nodes that kernels compute, ``products`` among them, and in the end what lies between all these.
    What only they needed need not be computed any more."""
    users: dict[Node, list[Node]] = {}
    for node in nodes:
        for source in dict.fromkeys(node.sources):
            users.setdefault(source, []).append(node)
    shown = set(outputs)
    chosen = dict(products)
    for node in nodes:
        found = None
        if node.op.name == "contraction":
            found = _attention(node, users, shown, kernels)
        elif node.op.name in ("loop", "linear_scan", "add"):
            found = select_recurrence(node, kernels)
        elif node.op.name == "routed_contraction":
            found = _route(node, kernels)
        elif node.op.name in ANGLES and node.tensor.dtype == "f32":
            found = _of_angles(node, kernels)
        elif node.op.name == "argmax":
            found = _argmax(node, kernels)
        elif node.op.name == "cut":
            found = _cut(node, kernels)
        if found is not None:
            chosen[node] = found
    return chosen | select_fusions(needed_nodes(nodes, outputs, chosen), outputs, chosen, kernels)


def _of_angles(node: Node, kernels: Kernels) -> Selected:
    """A cosine or sine, which XLA would compute again for each user."""
    target = kernels.target(ANGLES[node.op.name])

    def lower(block: Block, node: Node, angles: Value) -> Value:
        return call_kernel(block, target, (angles,), node.tensor, "")

    return Selected(node.sources, lower)


def _argmax(node: Node, kernels: Kernels) -> Selected | None:
    """The place of the largest number in long rows, which XLA goes through four times."""
    (source,) = node.sources
    is_long = node.params["axis"] == source.tensor.rank - 1 and source.tensor.static_shape[-1] >= LONG_ROW
    if source.tensor.dtype != "f32" or not is_long:
        return None

    def lower(block: Block, node: Node, x: Value) -> Value:
        return call_kernel(block, kernels.target("argmax"), (x,), node.tensor, "")

    return Selected(node.sources, lower)


def _cut(node: Node, kernels: Kernels) -> Selected | None:
    """The last of the best elements in long rows, which XLA goes through 32 times, number by number."""
    x, weights, limit = node.sources
    if x.tensor.static_shape[-1] < LONG_ROW:
        return None
    are_ranks = _is_one(weights) and limit.tensor.dtype == "i32"
    if not are_ranks and weights.tensor.dtype != "f32":
        return None
    target = kernels.target("rank" if are_ranks else "cut")

    def lower(block: Block, node: Node, *values: Value) -> Value:
        return call_kernel(block, target, values, node.tensor, "")

    return Selected((x, limit) if are_ranks else node.sources, lower)


def _is_one(node: Node) -> bool:
    """Whether all elements are the constant 1."""
    while node.op.name in ("broadcast_to", "reshape"):
        (node,) = node.sources
    return scalar(node) == 1


def _route(node: Node, kernels: Kernels) -> Selected | None:
    """Products with chosen matrices of a stack, which is read as it is kept."""
    x, weights, index = node.sources
    kinds = x.tensor.dtype, weights.tensor.dtype, index.tensor.dtype
    if kinds not in (("f32", "f32", "i32"), ("f32", "bf16", "i32")):
        return None
    target, turned = kernels.target("route"), str(node.params["axes"] == "dn").lower()

    def lower(block: Block, node: Node, x: Value, weights: Value, index: Value) -> Value:
        width = x.type.static_shape[-1]
        x = block.reshape(x, (x.type.size // width, width))
        index = block.reshape(index, (index.type.size,))
        result = TensorType((index.type.size, node.tensor.static_shape[-1]), "f32")
        made = call_kernel(block, target, (x, weights, index), result, f"turned = {turned}")
        return block.reshape(made, node.tensor.static_shape)

    return Selected(node.sources, lower)


def needed_nodes(
    nodes: Sequence[Node], outputs: Iterable[Node], chosen: Mapping[Node, Selected]
) -> list[Node]:
    """The nodes that outputs need when the chosen ones are computed by kernels, in their order as far as that
    is possible: what is computed together comes behind all that it is computed from."""
    needed = set(outputs)
    for node in reversed(nodes):
        if node in needed:
            needed.update(chosen[node].operands if node in chosen else node.sources)
    kept = [node for node in nodes if node in needed or node.op.kind == "source"]
    place = {node: at for at, node in enumerate(kept)}
    first = {member: node for node in reversed(kept) if node in chosen for member in chosen[node].members}
    groups: dict[Node, list[Node]] = {}
    for node in kept:
        groups.setdefault(first.get(node, node), []).append(node)
    users: dict[Node, list[Node]] = {}
    missing: dict[Node, int] = {}
    for node in groups:
        sources = chosen[node].operands if node in chosen else node.sources
        before = {first.get(source, source) for source in sources if source in place}
        missing[node] = len(before)
        for source in before:
            users.setdefault(source, []).append(node)
    ready = [place[node] for node in groups if not missing[node]]
    heapify(ready)
    ordered: list[Node] = []
    while ready:
        node = kept[heappop(ready)]
        ordered += groups[node]
        for user in users.get(node, ()):
            missing[user] -= 1
            if not missing[user]:
                heappush(ready, place[user])
    return ordered


# ---- attention ----


@dataclass(frozen=True)
class _Scores:
    """Softmax of scores: the product that they are made from, the mask, and what is done in between."""

    product: Node
    mask: Node
    scale: float
    cap: float


def _attention(
    mix: Node, users: Mapping[Node, list[Node]], shown: set[Node], kernels: Kernels
) -> Selected | None:
    probabilities, values = mix.sources
    scores = _scores(probabilities, users, shown)
    if scores is None:
        return None
    q, keys = scores.product.sources
    q_term, k_term, s_term = split_subscripts(scores.product.params["subscripts"])
    p_term, v_term, o_term = split_subscripts(mix.params["subscripts"])
    past, heads = k_term[-2:-1], k_term[1:-2]
    group = q_term[2 + len(heads) : -1]
    fits = (
        len(k_term) >= 3
        and q_term == q_term[:2] + heads + group + k_term[-1]
        and k_term[0] == q_term[0]
        and s_term == q_term[:-1] + past
        and len(v_term) == len(k_term)
        and p_term[-1] == v_term[-2]
        and v_term[1:-2] == p_term[2 : 2 + len(heads)]
        and v_term[0] == p_term[0]
        and o_term == p_term[:-1] + v_term[-1]
    )
    mask_shape = scores.mask.tensor.static_shape
    rows, positions = q.tensor.static_shape[:2]
    fits = fits and q.tensor.dtype == values.tensor.dtype == "f32" and len(mask_shape) == len(s_term)
    if not fits or mask_shape[1] != positions or math.prod(mask_shape[2:-1]) != 1:
        return None
    attributes = f"cap = {scores.cap:e} : f32, scale = {scores.scale:e} : f32"
    count = math.prod(q.tensor.static_shape[2 : 2 + len(heads)])
    (keys, *scaled_keys), (values, *scaled_values) = _kept_alike(keys, values)
    name = "attend_scaled" if scaled_keys else "attend"

    def lower(
        block: Block, node: Node, q: Value, keys: Value, values: Value, mask: Value, *scales: Value
    ) -> Value:
        size, slots = keys.type.static_shape[-1], keys.type.static_shape[-2]
        width = values.type.static_shape[-1]
        per_head = q.type.size // (rows * positions * count * size)
        q = block.reshape(q, (rows, positions, count, per_head, size))
        keys = block.reshape(keys, (rows, count, slots, size))
        values = block.reshape(values, (rows, count, slots, width))
        mask = block.reshape(mask, (mask_shape[0], positions, slots))
        result = TensorType((rows, positions, count, per_head, width), "f32")
        columns = (block.reshape(scale, (rows, count, slots)) for scale in scales)
        operands = (q, keys, values, mask, *columns)
        mixed = call_kernel(block, kernels.target(name), operands, result, attributes)
        return block.reshape(mixed, node.tensor.static_shape)

    return Selected((q, keys, values, scores.mask, *scaled_keys, *scaled_values), lower)


def _kept_alike(keys: Node, values: Node) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Keys and values as they are kept, if that is in the same kind of numbers, else as they are read."""
    kept = _kept(keys), _kept(values)
    kinds = {tuple(part.tensor.dtype for part in parts) for parts in kept}
    return kept if len(kinds) == 1 else ((keys,), (values,))


def _kept(state: Node) -> tuple[Node, ...]:
    """What a state [..., slots, size] is kept as: itself, f16, the bits of bf16, or i8 and its scales
    [..., slots, 1]; see ``compiler.passes.narrow_states``."""
    if state.op.name == "multiply":
        wide, scales = state.sources
        is_column = scales.tensor.shape == (*wide.tensor.shape[:-1], 1) and scales.tensor.dtype == "f32"
        if is_column and wide.op.name == "cast" and wide.sources[0].tensor.dtype == "i8":
            return wide.sources[0], scales
    if state.op.name != "cast" or state.tensor.dtype != "f32":
        return (state,)
    (narrow,) = state.sources
    if narrow.op.name == "bitcast" and (narrow.tensor.dtype, narrow.sources[0].tensor.dtype) == (
        "bf16",
        "u16",
    ):
        return narrow.sources
    return (narrow,) if narrow.tensor.dtype == "f16" else (state,)


def _scores(node: Node, users: Mapping[Node, list[Node]], shown: set[Node]) -> _Scores | None:
    """Goes back from a softmax to the product of its scores; None where anything else is on the way."""

    def is_private(node: Node) -> bool:
        return len(users.get(node, ())) == 1 and node not in shown

    if node.op.name != "softmax" or node.params["axis"] != node.tensor.rank - 1 or not is_private(node):
        return None
    hidden = node.sources[0]
    if hidden.op.name != "where" or not is_private(hidden) or not _is_lowest(hidden.sources[2]):
        return None
    mask, current, _ = hidden.sources
    scale, cap = 1.0, 0.0
    while current.op.name != "contraction":
        if not is_private(current):
            return None
        factor = scalar(current.sources[1]) if len(current.sources) == 2 else None
        bounded = current.sources[0]
        if current.op.name == "multiply" and factor is not None and bounded.op.name == "tanh":
            inner = bounded.sources[0]
            divisor = scalar(inner.sources[1]) if inner.op.name in ("divide", "multiply") else None
            if divisor is None or cap or scale != 1.0 or not (is_private(bounded) and is_private(inner)):
                return None
            if not math.isclose(divisor if inner.op.name == "divide" else 1 / divisor, factor, rel_tol=1e-6):
                return None
            cap, current = factor, inner.sources[0]
        elif current.op.name in ("multiply", "divide") and factor is not None:
            scale *= factor if current.op.name == "multiply" else 1 / factor
            current = bounded
        else:
            return None
    return _Scores(current, mask, scale, cap) if is_private(current) else None


def _is_lowest(node: Node) -> bool:
    value = scalar(node)
    return value is not None and value <= float(np.finfo(np.float32).min)
