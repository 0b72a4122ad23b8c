"""Emits a program as StableHLO text: one function, states donated, a location on every operation.

Arguments come in the order parameters, inputs (the states are among them); results in the order of the
graph's outputs. A state that the program updates is donated: its argument says which result may take its
memory. There is one lowering for each op: ``LOWERINGS``, keyed by op name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..compiler.program import Program
from ..ir.graph import Node
from ..ir.types import TensorType
from .stablehlo_elementwise import ELEMENTWISE
from .stablehlo_linear import LINEAR
from .stablehlo_order import ORDER
from .stablehlo_routing import ROUTING
from .stablehlo_scan import linear_scan
from .stablehlo_text import (
    Block,
    Lowering,
    Names,
    Results,
    Value,
    identifier,
    mlir_type,
    mlir_types,
    quoted,
)


def emit_stablehlo(program: Program) -> str:
    """The program as an MLIR module in text form; the same program always gives the same text."""
    graph, names = program.graph, Names()
    arguments = {
        node.name: Value(names.unique(identifier(node.name)), node.tensor)
        for node in (*graph.parameters, *graph.inputs)
    }
    block = Block("    ", arguments, names)
    values = lower_nodes(block, graph.nodes)
    block.leave("return", [values[node] for node in graph.outputs.values()])  # type: ignore[misc]
    module = identifier(program.name).replace("%", "@")
    return f"module {module} {{\n{_signature(program, arguments)}\n{block.text}\n  }}\n}}\n"


def _signature(program: Program, arguments: dict[str, Value]) -> str:
    donated = set(program.donated)
    places = {name: place for place, name in enumerate(program.graph.outputs)}
    lines = []
    for name, value in arguments.items():
        attribute = f" {{tf.aliasing_output = {places[name]} : i32}}" if name in donated else ""
        lines.append(f"      {value}: {mlir_type(value.type)}{attribute} loc({quoted(name)})")
    results = [
        f"      {mlir_type(node.tensor)} {{jax.result_info = {quoted(name)}}}"
        for name, node in program.graph.outputs.items()
    ]
    joined = (",\n".join(lines), ",\n".join(results))
    return f"  func.func public @main(\n{joined[0]}\n  ) -> (\n{joined[1]}\n  ) {{"


def lower_nodes(block: Block, nodes: Iterable[Node]) -> dict[Node, Results]:
    """Writes the nodes, given in topological order, into the block; the values of all of them."""
    values: dict[Node, Results] = {}
    for node in nodes:
        block.begin(node)
        operands = [values[source] for source in node.sources]
        values[node] = block.finish(LOWERINGS[node.op.name](block, node, *operands))
    return values


# ---- sources ----


def _argument(block: Block, node: Node) -> Value:
    return block.arguments[node.name]


def _constant(block: Block, node: Node) -> Value:
    return block.constant(node.params["value"], node.tensor)


def _arange(block: Block, node: Node) -> Value:
    return block.emit(f"stablehlo.iota dim = 0 : {mlir_type(node.tensor)}", node.tensor)


# ---- loops ----


def _loop(block: Block, node: Node, *operands: Value) -> tuple[Value, ...]:
    """A while over i, the operands, and the results that are joined position by position."""
    carries, counter = node.params["carries"], TensorType((), "i32")
    assert isinstance(node.type, tuple)
    joined = [block.number(0, type_) for type_ in node.type[carries:]]
    initial = (block.number(0, counter), *operands, *joined)
    inside = tuple(Value(block.fresh(), value.type) for value in initial)
    pairs = ", ".join(f"{name} = {value}" for name, value in zip(inside, initial, strict=True))
    regions = (
        f"{block.indent}  cond {{\n{_condition(block, node, inside[0]).text}\n"
        f"{block.indent}  }} do {{\n{_step(block, node, inside).text}\n{block.indent}  }}"
    )
    text = f"stablehlo.while({pairs}) : {mlir_types(initial)}\n{regions}"
    values = block.emit_many(text, [value.type for value in initial])
    return (*values[1 : carries + 1], *values[len(operands) + 1 :])


def _condition(block: Block, node: Node, i: Value) -> Block:
    """The region that says whether there is another position."""
    region = block.nested()
    region.begin(node)
    going_on = region.compare("LT", i, region.number(node.params["length"], i.type))
    region.finish(())
    region.leave("stablehlo.return", [going_on])
    return region


def _step(block: Block, node: Node, inside: Sequence[Value]) -> Block:
    """The region that computes one position: the loop's body between slices and updates."""
    body, carries, scanned = node.params["body"], node.params["carries"], node.params["scanned"]
    i, arguments = inside[0], inside[1 : len(node.inputs) + 1]
    region = block.nested()
    region.begin(node)
    region.arguments = {
        source.name: _position(region, value, i) if carries <= at < carries + scanned else value
        for at, (source, value) in enumerate(zip(body.inputs, arguments, strict=True))
    }
    following = region.same("add", i, region.number(1, i.type))
    region.finish(())
    values = lower_nodes(region, body.nodes)
    results: list[Value] = [values[output] for output in body.outputs.values()]  # type: ignore[misc]
    region.begin(node)
    joined = zip(inside[len(arguments) + 1 :], results[carries:], strict=True)
    updated = [_put(region, whole, part, i) for whole, part in joined]
    region.finish(())
    region.leave("stablehlo.return", [following, *results[:carries], *arguments[carries:], *updated])
    return region


def _starts(step: Block, rank: int, i: Value) -> str:
    zero = step.number(0, i.type)
    return ", ".join((i if axis == 1 else zero).name for axis in range(rank))


def _position(step: Block, x: Value, i: Value) -> Value:
    """Position i of ``[B, length, …]``, as ``[B, 1, …]``."""
    type_ = x.type.with_shape((x.type.shape[0], 1, *x.type.shape[2:]))
    text = f"stablehlo.dynamic_slice {x}, {_starts(step, x.type.rank, i)}, sizes = {list(type_.static_shape)}"
    signature = ", ".join([mlir_type(x.type), *[mlir_type(i.type)] * x.type.rank])
    return step.emit(f"{text} : ({signature}) -> {mlir_type(type_)}", type_)


def _put(step: Block, x: Value, part: Value, i: Value) -> Value:
    """``x`` with position i replaced by ``part``."""
    text = f"stablehlo.dynamic_update_slice {x}, {part}, {_starts(step, x.type.rank, i)}"
    signature = ", ".join([mlir_type(x.type), mlir_type(part.type), *[mlir_type(i.type)] * x.type.rank])
    return step.emit(f"{text} : ({signature}) -> {mlir_type(x.type)}", x.type)


def _part(block: Block, node: Node, x: tuple[Value, ...]) -> Value:
    return x[node.params["index"]]


LOWERINGS: dict[str, Lowering] = {
    "input": _argument,
    "parameter": _argument,
    "constant": _constant,
    "arange": _arange,
    **ELEMENTWISE,
    **LINEAR,
    **ORDER,
    **ROUTING,
    "linear_scan": linear_scan,
    "loop": _loop,
    "part": _part,
}
