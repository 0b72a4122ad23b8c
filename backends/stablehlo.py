"""Emits a program as StableHLO text: one function, states donated, a location on every operation.

Arguments come in the order parameters, inputs (the states are among them); results in the order of the
graph's outputs. A state that the program updates is donated: its argument says which result may take its
memory. There is one lowering for each op: ``LOWERINGS``, keyed by op name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..compiler.collection import paused_collection
from ..compiler.program import Program
from ..ir.graph import Graph, Node
from ..ir.types import TensorType
from .contractions.selection import near_inputs, near_parameters, select_forms
from .contractions.table import FormTable
from .native import Kernels
from .native.layers import choose_loop, lower_loop
from .native.selection import Selected, needed_nodes, select
from .stablehlo_control import COUNTER, dynamic_slice, dynamic_update, repeat_while
from .stablehlo_elementwise import ELEMENTWISE
from .stablehlo_linear import LINEAR
from .stablehlo_order import ORDER
from .stablehlo_packing import PACKING
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
    quoted,
)
from .tpu_selection import TpuKernels, select_products


@paused_collection()
def emit_stablehlo(
    program: Program,
    kernels: Kernels | TpuKernels | None = None,
    forms: FormTable | None = None,
    *,
    states_row_major: bool = False,
    roll: str = "never",
) -> str:
    """The program as an MLIR module in text form; the same program always gives the same text.

    With ``kernels`` it calls them, and runs only where they are registered. With ``forms`` each product is
    written in the form that is the fastest in that table, which may be a kernel or not. ``roll``: whether
    layers that repeat become a loop where kernels compute them: ``always``, ``never``, or ``auto``, where
    that is measured to pay.
    ``states_row_major`` fixes the layout of the states that are updated, so that a compiler that chooses
    layouts (XLA for TPU) cannot choose one in which every update is a copy.
    """
    graph, names = program.graph, Names()
    arguments = {
        node.name: Value(names.unique(identifier(node.name)), node.tensor)
        for node in (*graph.parameters, *graph.inputs)
    }
    block = Block("    ", arguments, names, kernels, roll, forms, near_parameters(graph, forms))
    values = lower_nodes(block, graph)
    block.leave("return", [values[node] for node in graph.outputs.values()])  # type: ignore[misc]
    module = identifier(program.name).replace("%", "@")
    return f"module {module} {{\n{_signature(program, arguments, states_row_major)}\n{block.text}\n  }}\n}}\n"


def _signature(program: Program, arguments: dict[str, Value], states_row_major: bool) -> str:
    donated = set(program.donated)
    layouts = {
        name: f", mhlo.layout_mode = {quoted(_row_major(node.tensor))}"
        for name, node in program.graph.outputs.items()
        if states_row_major and name in donated
    }
    places = {name: place for place, name in enumerate(program.graph.outputs)}
    lines = []
    for name, value in arguments.items():
        attribute = ""
        if name in donated:
            attribute = f" {{tf.aliasing_output = {places[name]} : i32{layouts.get(name, '')}}}"
        lines.append(f"      {value}: {mlir_type(value.type)}{attribute} loc({quoted(name)})")
    results = [
        f"      {mlir_type(node.tensor)} {{jax.result_info = {quoted(name)}{layouts.get(name, '')}}}"
        for name, node in program.graph.outputs.items()
    ]
    joined = (",\n".join(lines), ",\n".join(results))
    return f"  func.func public @main(\n{joined[0]}\n  ) -> (\n{joined[1]}\n  ) {{"


def _row_major(type_: TensorType) -> str:
    """A layout as XLA writes it, the fastest axis first: ``{3,2,1,0}``."""
    return f"{{{','.join(map(str, reversed(range(type_.rank))))}}}"


def lower_nodes(block: Block, graph: Graph) -> dict[Node, Results]:
    """Writes the nodes of a graph into the block; the values of all that its outputs need."""
    outputs = tuple(graph.outputs.values())
    loop = choose_loop(graph, block.kernels, block.roll, block.forms, block.near)
    values: dict[Node, Results] = {}
    if isinstance(loop, str):
        _lower(block, graph.nodes, outputs, values)
        return values
    found = loop.repetition
    around = {source for node in (*found.before, *found.after) for source in node.sources}
    around |= {*outputs, *found.carried.values()}
    sources = (node for node in graph.nodes if node.op.kind == "source")
    first = [node for node in sources if node.op.name in ("input", "parameter") or node in around]
    read = (source for unit in found.units for node in unit for source in node.sources)
    _lower(block, [*first, *found.before], [*around, *read], values)
    values |= lower_loop(block, loop, values, _lower_plainly)
    _lower(block, found.after, outputs, values)
    return values


def _lower(block: Block, nodes: Sequence[Node], ends: Collection[Node], values: dict[Node, Results]) -> None:
    """Writes the nodes that ``ends`` need, and adds their values to ``values``."""
    chosen = _chosen(nodes, ends, block)
    for node in needed_nodes(nodes, ends, chosen) if chosen else nodes:
        if node in values:  # computed beside another
            continue
        block.begin(node)
        selected = chosen.get(node, Selected(node.sources, _lower_plainly))
        operands = [values[source] for source in selected.operands]
        results = block.finish(selected.lower(block, node, *operands))
        if isinstance(results, tuple) and selected.members:
            values |= zip(selected.members, results, strict=True)
        else:
            values[node] = results


def _lower_plainly(block: Block, node: Node, *operands: Value) -> Results:
    return LOWERINGS[node.op.name](block, node, *operands)


def _chosen(nodes: Sequence[Node], outputs: Collection[Node], block: Block) -> dict[Node, Selected]:
    kernels = block.kernels
    if isinstance(kernels, TpuKernels):
        return select_products(nodes, kernels)
    if kernels is None and block.forms is None:
        return {}
    products = select_forms(nodes, kernels, block.forms, block.near)
    return select(nodes, outputs, products, kernels) if kernels else products


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
    carries, length = node.params["carries"], node.params["length"]
    assert isinstance(node.type, tuple)
    joined = [block.number(0, type_) for type_ in node.type[carries:]]

    def going_on(region: Block, carried: Sequence[Value]) -> Value:
        inside = region.compare("LT", carried[0], region.number(length, COUNTER))
        if not node.params.get("early"):
            return inside
        first = region.compare("EQ", carried[0], region.number(0, COUNTER))
        return region.same("and", inside, region.same("or", first, carried[1]))

    values = repeat_while(
        block,
        node,
        (block.number(0, COUNTER), *operands, *joined),
        going_on,
        lambda region, carried: _step(region, node, carried),
    )
    return (*values[1 : carries + 1], *values[len(operands) + 1 :])


def _step(region: Block, node: Node, inside: Sequence[Value]) -> list[Value]:
    """One position: the loop's body between slices and updates."""
    body, carries, scanned = node.params["body"], node.params["carries"], node.params["scanned"]
    i, arguments = inside[0], inside[1 : len(node.inputs) + 1]
    region.arguments = {
        source.name: _position(region, value, i) if carries <= at < carries + scanned else value
        for at, (source, value) in enumerate(zip(body.inputs, arguments, strict=True))
    }
    following = region.same("add", i, region.number(1, i.type))
    region.finish(())
    region.near = near_inputs(body.inputs[carries + scanned :], region.forms)
    values = lower_nodes(region, body)
    results: list[Value] = [values[output] for output in body.outputs.values()]  # type: ignore[misc]
    region.begin(node)
    joined = zip(inside[len(arguments) + 1 :], results[carries:], strict=True)
    updated = [dynamic_update(region, whole, part, _at(whole, i)) for whole, part in joined]
    return [following, *results[:carries], *arguments[carries:], *updated]


def _at(x: Value, i: Value) -> list[Value | int]:
    """Where position i of ``[B, length, …]`` begins."""
    return [i if axis == 1 else 0 for axis in range(x.type.rank)]


def _position(region: Block, x: Value, i: Value) -> Value:
    """Position i of ``[B, length, …]``, as ``[B, 1, …]``."""
    rows, _, *rest = x.type.static_shape
    return dynamic_slice(region, x, _at(x, i), (rows, 1, *rest))


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
    **PACKING,
    **ROUTING,
    "linear_scan": linear_scan,
    "loop": _loop,
    "part": _part,
}
