"""Which recurrences the native kernels compute: linear ones, and those of Mamba without their states.

The latter are found by the shape of a loop over blocks of positions (``compiler.derive.selective``): a state
that decays by exp(step * rate), to which an outer product is added, and a contraction that reads it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...ir.graph import Graph, Node
from ...ir.ops.linear import split_subscripts
from ...ir.types import TensorType
from ..stablehlo_text import Block, Value
from . import Kernels
from .calls import Selected, call_kernel, call_kernel_for_many

_LEAST_ELEMENTS = 1 << 12  # of all positions: below it, a call costs more than it saves


def select_recurrence(node: Node, kernels: Kernels) -> Selected | None:
    """The kernel for a linear scan, for a loop over blocks, or for one step, if there is one."""
    kinds = {"linear_scan": _linear, "loop": _selective, "add": _step}
    return kinds[node.op.name](node, kernels)


def _linear(node: Node, kernels: Kernels) -> Selected | None:
    if node.tensor.dtype != "f32" or node.tensor.size < _LEAST_ELEMENTS:
        return None
    maximum = str(node.params.get("join", "add") == "maximum").lower()

    def lower(block: Block, node: Node, decay: Value, inflow: Value, start: Value) -> Value:
        rows, positions, *own = node.tensor.static_shape
        flat, line = (rows, positions, math.prod(own)), (rows, math.prod(own))
        operands = (block.reshape(decay, flat), block.reshape(inflow, flat), block.reshape(start, line))
        type_ = node.tensor.with_shape(flat)
        states = call_kernel(block, kernels.target("recur"), operands, type_, f"maximum = {maximum}")
        return block.reshape(states, node.tensor.static_shape)

    return Selected(node.sources, lower)


# ---- one step ----


def _step(node: Node, kernels: Kernels) -> Selected | None:
    """exp(step * rate) * state + inflow * enter, where a state is [*groups, *channels, size]."""
    if node.tensor.dtype != "f32" or node.tensor.size < _LEAST_ELEMENTS or node.tensor.rank < 4:
        return None
    rows, positions, *own, size = node.tensor.static_shape
    channels = (rows, positions, *own, 1)
    for faded, inflow in (node.sources, node.sources[::-1]):
        if faded.op.name != "multiply" or "exp" not in [source.op.name for source in faded.sources]:
            continue
        decay, state = sorted(faded.sources, key=lambda source: source.op.name != "exp")
        step, rate = _factors(decay.sources[0], channels, (*own, size))
        for rank in range(len(own)):
            groups = (rows, positions, *own[:rank], *(1 for _ in own[rank:]), size)
            flow, enter = _factors(inflow, channels, groups)
            if flow is not enter and step is not rate and state.type == node.type:
                return _advance(kernels, (state, step, rate, flow, enter), math.prod(own[:rank]))
    return None


def _advance(kernels: Kernels, operands: tuple[Node, ...], groups: int) -> Selected:
    def lower(block: Block, node: Node, *operands: Value) -> Value:
        rows, positions, *own, size = node.tensor.static_shape
        state = (rows * positions, groups, math.prod(own) // groups, size)
        shapes = (state, state[:3], state[1:], state[:3], (*state[:2], size))
        given = [block.reshape(value, shape) for value, shape in zip(operands, shapes, strict=True)]
        after = call_kernel(block, kernels.target("advance"), given, node.tensor.with_shape(state), "")
        return block.reshape(after, node.tensor.static_shape)

    return Selected(operands, lower)


# ---- selective scans ----


@dataclass(frozen=True)
class _Parts:
    """What a block of a selective scan is made from, as inputs of the body: the state in front of it, which
    positions are real, steps, rates, what flows in, enters and leaves; see ``recur.h``.

    A state is [groups, width, size]; what enters and leaves is the same for all channels of a group.
    """

    inputs: tuple[Node, ...]
    groups: int
    width: int
    size: int


def _selective(loop: Node, kernels: Kernels) -> Selected | None:
    body: Graph = loop.params["body"]
    parts = _find_parts(body) if loop.params["carries"] == 1 and len(body.outputs) == 2 else None
    if parts is None:
        return None
    outside = dict(zip(body.inputs, loop.sources, strict=True))

    def lower(block: Block, node: Node, *operands: Value) -> tuple[Value, ...]:
        end, y = node.type  # type: ignore[misc]
        rows, blocks, length = y.static_shape[:3]
        line, own = (rows, blocks * length), (parts.groups, parts.width, parts.size)
        channels, sizes = (*line, *own[:2]), (*line, parts.groups, parts.size)
        shapes = ((rows, *own), line, channels, own, channels, sizes, sizes)
        given = [block.reshape(value, shape) for value, shape in zip(operands, shapes, strict=True)]
        types = (TensorType((rows, *own), "f32"), TensorType(channels, "f32"))
        results = call_kernel_for_many(block, kernels.target("select"), given, types)
        shown = (
            block.reshape(value, type_.static_shape) for value, type_ in zip(results, (end, y), strict=True)
        )
        return tuple(shown)

    return Selected(tuple(outside[node] for node in parts.inputs), lower)


def _find_parts(body: Graph) -> _Parts | None:
    """The parts of a block of a selective scan, if that is what the body of a loop is."""
    end, read = body.outputs.values()
    reading = _unshaped(read)
    if reading.op.name != "contraction" or reading.tensor.dtype != "f32":
        return None
    states = next((source for source in reading.sources if source.op.name == "linear_scan"), None)
    if states is None or "join" in states.params or not _is_last(end, states):
        return None
    (query,) = (source for source in reading.sources if source is not states)
    decay, inflow, start = states.sources
    valid, decay = _masked(decay, 1.0)
    same, inflow = _masked(inflow, 0.0)
    rank = _grouped_axes(reading, states)
    if valid is None or valid is not same or decay.op.name != "exp" or rank is None:
        return None
    rows, positions, *own, size = states.tensor.static_shape
    channels = (rows, positions, *own, 1)
    groups = (rows, positions, *own[:rank], *(1 for _ in own[rank:]), size)
    step, rate = _factors(decay.sources[0], channels, (*own, size))
    flow, enter = _factors(inflow, channels, groups)
    inputs = [_unshaped(node) for node in (start, valid, step, rate, flow, enter, query)]
    if inputs[0] is not body.inputs[0] or any(node.op.name != "input" for node in inputs):
        return None
    count = math.prod(own[:rank])
    return _Parts(tuple(inputs), count, math.prod(own) // count, size)


def _unshaped(node: Node) -> Node:
    """What a node was reshaped from: the same elements in the same order."""
    while node.op.name == "reshape":
        node = node.sources[0]
    return node


def _is_last(node: Node, states: Node) -> bool:
    """Whether a node is the last position of ``states`` [B, S, …]."""
    node = _unshaped(node)
    last = states.tensor.static_shape[1] - 1
    return node.op.name == "slice" and node.sources[0] is states and node.params["starts"][1] == last


def _masked(node: Node, fill: float) -> tuple[Node | None, Node]:
    """Where a node is not just ``fill``, and what it is there."""
    if node.op.name != "where":
        return None, node
    valid, value, other = node.sources
    is_fill = other.op.name == "constant" and bool((other.params["value"] == fill).all())
    return (_unshaped(valid), value) if is_fill else (None, node)


def _factors(node: Node, *shapes: tuple[int, ...]) -> tuple[Node, ...]:
    """The two factors of a product, in the order of their shapes; the node itself where it is none."""
    for factors in (node.sources, node.sources[::-1]):
        if node.op.name == "multiply" and tuple(factor.tensor.shape for factor in factors) == shapes:
            return factors
    return (node, node)


def _grouped_axes(reading: Node, states: Node) -> int | None:
    """Along how many of a state's axes, behind rows and positions, the query of a reading differs.

    None unless it sums over the last axis of a state alone.
    """
    *terms, result = split_subscripts(reading.params["subscripts"])
    at = reading.sources.index(states)
    held, query = terms[at], terms[1 - at]
    rank = len(query) - 3
    fits = result == held[:-1] and query == held[: len(query) - 1] + held[-1]
    return rank if fits and 0 <= rank <= len(held) - 3 else None
