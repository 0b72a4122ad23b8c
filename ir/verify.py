"""The rules that every graph keeps, checked again with the rules that tracing used.

It runs after each pass. An error names the node, its operands and the user's source line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Literal

from .errors import GraphError
from .graph import Graph, Node, make_node
from .signature import operand_count
from .time import NOW
from .types import TensorType, show_type

Stage = Literal["traced", "program"]


def verify(graph: Graph, stage: Stage = "traced", *, known: Collection[Node] = ()) -> None:
    """Raises ``GraphError`` where a graph breaks a rule.

    In both stages every type, clock and access is the inferred one, names are unique, inputs and
    parameters are declared, and feedback is closed once. A ``traced`` graph has no ops of programs.
    A ``program`` has no ops of time, reads only *now*, and has only numbers for sizes, in the
    bodies of its loops as well. ``known`` nodes were found to keep the rules of a node in the same stage;
    since nothing changes a node, they still do.
    """
    pending = [graph]
    for current in pending:  # grows while bodies are found
        _check_names(current)
        _check_declared(current)
        _check_feedback(current)
        for node in current.nodes:
            if node in known:
                continue
            _check_inferred(node)
            _check_clock(node)
            if stage == "program":
                _check_program(node)
            elif node.op.kind == "program":
                raise _broken(node, "a traced graph cannot contain an op of programs")
            pending.extend(value for value in node.params.values() if isinstance(value, Graph))


def _check_names(graph: Graph) -> None:
    seen: dict[str, Node] = {}
    for node in graph.nodes:
        if not node.name:
            raise _broken(node, "a node has no name")
        if node.name in seen:
            raise _broken(node, f"the name {node.name} is also that of {_describe(seen[node.name])}")
        seen[node.name] = node


def _check_declared(graph: Graph) -> None:
    declared = (("input", graph.inputs), ("parameter", graph.parameters))
    for op_name, nodes in declared:
        for node in nodes:
            if node.op.name != op_name:
                raise _broken(node, f"declared as {op_name}, but it is computed")
    allowed = {*graph.inputs, *graph.parameters}
    for node in graph.nodes:
        if node.op.name in ("input", "parameter") and node not in allowed:
            raise _broken(node, f"this {node.op.name} is not declared by graph {graph.name}")


def _check_feedback(graph: Graph) -> None:
    closed: set[Node] = set()
    for previous, value in graph.feedback:
        if previous.op.name != "feedback":
            raise _broken(previous, "only a feedback can be closed")
        if previous in closed:
            raise _broken(previous, "this feedback is closed twice")
        closed.add(previous)
        if value.type != previous.type or value.clock not in (previous.clock, None):
            problem = f"this feedback of clock {previous.clock} cannot carry {_describe(value)}"
            raise _broken(previous, f"{problem} of clock {value.clock}")
    for node in graph.nodes:
        if node.op.name == "feedback" and node not in closed:
            raise _broken(node, "this feedback is never closed")


def _check_inferred(node: Node) -> None:
    if operand_count(node.op) not in (None, len(node.inputs)):
        raise _broken(node, f"{node.op.name} takes {operand_count(node.op)} operands, not {len(node.inputs)}")
    try:
        inferred = make_node(node.op, node.sources, node.params)
    except GraphError as error:
        raise _broken(node, error.message) from None
    accesses = [str(edge.access) for edge in node.inputs]
    expected = [str(edge.access) for edge in inferred.inputs]
    if inferred.type != node.type:
        raise _broken(node, f"the type should be {show_type(inferred.type)}")
    if inferred.clock != node.clock:
        raise _broken(node, f"the clock should be {inferred.clock}, not {node.clock}")
    if accesses != expected:
        raise _broken(node, f"its edges should read [{', '.join(expected)}], not [{', '.join(accesses)}]")


def _check_clock(node: Node) -> None:
    if node.clock is None:
        if node.op.name in ("feedback", "position"):
            raise _broken(node, f"a {node.op.name} needs a clock")
    elif not re.fullmatch(r"\w+", node.clock):
        raise _broken(node, f"a clock has a name of letters and digits, not {node.clock!r}")


def _check_program(node: Node) -> None:
    if node.op.kind == "time":
        raise _broken(node, "a program cannot contain an op of time")
    if any(edge.access != NOW for edge in node.inputs):
        raise _broken(node, "a program reads nothing but now")
    if not all(type_.is_static for type_ in _types(node)):
        raise _broken(node, "a program has only numbers for sizes")


def _types(node: Node) -> Iterator[TensorType]:
    yield from (node.type,) if isinstance(node.type, TensorType) else node.type


def _broken(node: Node, problem: str) -> GraphError:
    return GraphError(f"{problem}, in {_describe(node)}", node.location)


def _describe(node: Node) -> str:
    operands = []
    for edge in node.inputs:
        access = "" if edge.access == NOW else f"[{edge.access}]"
        operands.append(f"{edge.source.name or edge.source.op}{access}: {show_type(edge.source.type)}")
    return f"{node.name or '?'}: {show_type(node.type)} = {node.op.name}({', '.join(operands)})"
