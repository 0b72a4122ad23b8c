"""What a node costs, in columns of a dump: bytes of its value, bytes of state, operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..ir.errors import SystolicError
from ..ir.graph import Graph, Node
from ..ir.op import Work
from ..ir.types import Past, TensorType, ValueType, Whole
from .program import State

Measure = Callable[[Node], int]
MEASURES = ("bytes", "state", "work", "cost")
OPERATIONS_PER_BYTE = 4.0  # f32 operations that a CPU core does while memory delivers one byte


def measures(
    names: Iterable[str],
    graph: Graph,
    capacity: int,
    states: Callable[[], Iterable[State]],
    cost: Callable[[], Measure] | None = None,
) -> dict[str, Measure]:
    """The measures of those names, for the last of ``capacity`` positions, where the past is longest.

    ``bytes`` of one value; ``state``: bytes that each further position adds, or, of what does not
    grow, all of it; ``work``: operations for one value, a multiply-add being two; ``cost``: what that
    yields, predicted for a target. ``SystolicError`` for another name, and for a cost without a target.
    """
    names = tuple(names)
    for name in names:
        if name not in MEASURES:
            raise SystolicError(f"a column must be one of {', '.join(MEASURES)}, not {name!r}")
    if "cost" in names and cost is None:
        raise SystolicError("the column cost is predicted for a target: name it with --target")
    kept = state_bytes(graph, states()) if "state" in names else {}
    known: dict[str, Measure] = {
        "bytes": lambda node: value_bytes(node.type, capacity),
        "state": lambda node: kept.get(node.name, 0),
        "work": lambda node: operations(node, capacity),
    }
    predicted = {"cost": cost()} if cost is not None and "cost" in names else {}
    return {name: (known | predicted)[name] for name in names}


def value_bytes(type_: ValueType, capacity: int) -> int:
    """Bytes of a value at the last position; 0 where a size is still open."""
    types = [type_] if isinstance(type_, TensorType) else type_
    bound = [_bound(each, capacity) for each in types]
    return sum(each.bytes for each in bound if each.is_static)


def operations(node: Node, capacity: int) -> int:
    """Operations for one value at the last position; 0 where a size is still open."""
    work = work_of(node, capacity)
    return 0 if work is None else 2 * work.multiply_adds + work.elementwise


def work_of(node: Node, capacity: int) -> Work | None:
    """What one value costs at the last position; None where a size is still open."""
    types = [s.type for s in node.sources]
    if not all(isinstance(each, TensorType) for each in (*types, node.type)):
        return None  # a loop, whose body is a graph of its own
    bound = [_bound(each, capacity) for each in (*types, node.type) if isinstance(each, TensorType)]
    if not all(each.is_static for each in bound):
        return None
    return node.op.work(tuple(bound[:-1]), bound[-1], node.params)


def program_operations(graph: Graph) -> int:
    """Operations of one run of a program, whose types are all numbers; a multiply-add is two."""
    total = Work()
    for node in graph.nodes:
        if node.op.kind != "source":
            total = total + node.op.work(tuple(s.type for s in node.sources), node.type, node.params)  # type: ignore[misc]
    return 2 * total.multiply_adds + total.elementwise


def state_bytes(graph: Graph, states: Iterable[State]) -> Mapping[str, int]:
    """Bytes of state by the name of the stream that is kept."""
    kept: dict[str, int] = {}
    for state in states:
        stream = state.name if state.name in graph.by_name else state.name.rpartition(".")[0]
        kept[stream] = kept.get(stream, 0) + (state.bytes_per_token or state.bytes)
    return kept


def _bound(type_: TensorType, capacity: int) -> TensorType:
    """The type at the last position, where the past is as long as it can be."""
    shape = []
    for dim in type_.shape:
        if isinstance(dim, Past):
            shape.append(min(dim.window or capacity, capacity))
        else:
            shape.append(capacity if isinstance(dim, Whole) else dim)  # type: ignore[arg-type]
    return type_.with_shape(tuple(shape))
