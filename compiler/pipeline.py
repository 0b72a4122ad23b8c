"""The passes in the order in which they run, and the driver that verifies, times and counts them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from ..ir.errors import GraphError
from ..ir.graph import Graph
from ..ir.interpret import interpret
from ..ir.types import DTYPES, FLOATS
from ..ir.verify import verify
from .collection import paused_collection
from .derive import choose_forms
from .passes.fold_constants import fold_constants
from .passes.gather_kept import gather_kept
from .passes.narrow_states import narrow_states
from .passes.route import route
from .passes.share import share
from .passes.simplify import simplify
from .passes.transpose_weights import transpose_weights

Pass = Callable[[Graph], Graph]

PASSES: tuple[Pass, ...] = (
    fold_constants,
    simplify,  # after folding: a folded constant may turn out to be neutral
    route,  # after simplify, which brings transposed weights into the letters of contractions
    gather_kept,  # after route, which finds the matrices of experts as what is taken of a wide stack
    share,  # last: what was simplified is more often equal
)


def passes_with(
    state_dtype: str, strategy: str = "auto", transposed: Collection[str] = ()
) -> tuple[Pass, ...]:
    """The passes for a model whose states, chosen by ``strategy``, are kept as ``state_dtype``, and of whose
    matrices some are kept ``transposed``."""

    def transpose(graph: Graph) -> Graph:
        return transpose_weights(graph, transposed)

    transpose.__name__ = transpose_weights.__name__
    passes = (transpose, *PASSES) if transposed else PASSES
    if state_dtype == "f32":
        return passes

    def narrow(graph: Graph) -> Graph:
        reads_past = any(node.op.name == "history" for node in graph.nodes)
        kept = choose_forms(graph, strategy)[0].plan.histories if reads_past else ()
        return narrow_states(graph, {node.name for node in kept}, state_dtype)

    narrow.__name__ = narrow_states.__name__
    return (*passes, narrow)


@dataclass(frozen=True)
class Stage:
    """A graph on its way: the name of what made it, and what that changed and took."""

    name: str
    graph: Graph
    seconds: float
    added: int
    removed: int


@paused_collection()
def run_passes(graph: Graph, passes: tuple[Pass, ...] = PASSES, *, check: bool = False) -> tuple[Stage, ...]:
    """All stages from ``traced`` on; the last one is what programs are derived from.

    Every stage is verified. With ``check`` each pass is also run before and after on small random
    inputs, and must not change a value; raises ``GraphError`` naming the pass.
    """
    verify(graph, "traced")
    stages = [Stage("traced", graph, 0.0, len(graph), 0)]
    for change in passes:
        before, start = stages[-1].graph, time.perf_counter()
        after = change(before)
        seconds = time.perf_counter() - start
        verify(after, "traced", known=frozenset(before.nodes))
        if check:
            _check_values(change.__name__, before, after)
        stages.append(stage_between(change.__name__, before, after, seconds))
    return tuple(stages)


def stage_between(name: str, before: Graph, after: Graph, seconds: float) -> Stage:
    """What made ``after`` of ``before``, with the streams counted that came and went."""
    names_before, names_after = set(before.by_name), set(after.by_name)
    return Stage(name, after, seconds, len(names_after - names_before), len(names_before - names_after))


def _check_values(name: str, before: Graph, after: Graph, steps: int = 5) -> None:
    random = np.random.default_rng(0)

    def draw(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if dtype in FLOATS:
            return random.normal(size=shape).astype(DTYPES[dtype])
        return random.integers(0, 2, size=shape).astype(DTYPES[dtype])

    lead = {n: () if n.clock is None else (steps,) for n in before.inputs}
    inputs = {n.name: draw((*lead[n], *n.tensor.static_shape), n.tensor.dtype) for n in before.inputs}
    weights = {n.name: draw(n.tensor.static_shape, n.tensor.dtype) for n in before.parameters}
    old, new = interpret(before, inputs, weights), interpret(after, inputs, weights)
    for output, value in old.items():
        if value.dtype != object and not np.allclose(
            value, new[output], rtol=1e-4, atol=1e-5, equal_nan=True
        ):
            raise GraphError(f"pass {name} changes the output {output}")
