"""Layers that repeat as one loop body, where kernels read their weights and states.

Weights and states of all layers are operands of each call, and the number of the layer says whose are meant
(``layers.h``): nothing is stacked or copied, and weights that are mapped from a file stay there. States are
carried and written in place. What plain operations read of a layer's own is copied for it and must be small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...compiler.repetition import Repetition, find_repetition
from ...ir.graph import Graph, Node
from ..contractions.selection import choose_forms, near_inputs, near_parameters, select_forms
from ..contractions.table import FormTable
from ..stablehlo_control import COUNTER, advanced, repeat_while
from ..stablehlo_text import Block, PerLayer, Results, Value
from . import Kernels
from .calls import Selected, call_kernel_for_many
from .selection import needed_nodes, select

# Nodes. By `python -m benchmarks.rolling` XLA takes about 2 ms for one, so these take 0.25 s. Calls
# take no longer than those of layers one by one, so nothing but what is spared decides.
LEAST_SPARED = 128
SMALL = 1 << 16  # bytes of a layer that may be copied at each step
SMALL_PART = 32  # or as a part of what its kernels read

LowerNode = Callable[..., Results]  # (block, node, *operand values)
Values = Mapping[Node, Results]


@dataclass(frozen=True, eq=False)
class LayerLoop:
    """A repetition as a loop: the ``nodes`` of its body in order, which of them kernels compute, the sources
    that are ``copied`` for each layer, and the new states that are ``written`` slot by slot."""

    repetition: Repetition
    nodes: tuple[Node, ...]
    chosen: Mapping[Node, Selected]
    copied: tuple[Node, ...]
    written: frozenset[Node]

    @property
    def spared(self) -> int:
        """How many nodes fewer XLA compiles."""
        return (len(self.repetition.units) - 1) * len(self.nodes)

    def __str__(self) -> str:
        found = self.repetition
        return (
            f"one loop over {len(found.units)} times {len(self.nodes)} nodes, {self.spared} fewer to compile"
        )


def plan_loop(
    graph: Graph, kernels: Kernels, forms: FormTable | None = None, near: frozenset[str] = frozenset()
) -> LayerLoop | str:
    """The layers of a program as a loop, or why there is none: only kernels can choose a layer's weights, so
    that products must not be faster in another of the ``forms``."""
    found = find_repetition(graph)
    if found is None:
        return "no layers repeat"
    unit = found.unit
    constants = dict.fromkeys(
        source for node in unit for source in node.sources if source.op.name in ("constant", "arange")
    )
    ends = [unit[place] for place in (*found.carried, *found.kept)]
    nodes = [*constants, *unit]
    for choice in choose_forms(unit, True, forms, near):
        if choice.form != "kernel":
            return f"{choice.products[0].node.name} is faster as {choice.form} than by a kernel"
    chosen = select(nodes, ends, select_forms(nodes, kernels, None, near), kernels)
    if not chosen:
        return "no kernel computes anything in a layer"
    needed = needed_nodes(nodes, ends, chosen)
    states = {unit[place]: state for place, state in found.kept.items()}
    written = frozenset(
        node for node, state in states.items() if node.op.name == "write_rows" and node.sources[0] is state
    )
    plain = [
        source
        for node in needed
        if node not in chosen
        for source in (node.sources[1:] if node in written else node.sources)
    ]
    whole = next((node for node in plain if node in written), None)
    if whole is not None:
        return f"{whole.name} is read whole"
    copied = tuple(dict.fromkeys(source for source in plain if source in found.own))
    read = {source for selected in chosen.values() for source in selected.operands if source in found.own}
    size, beside = (sum(node.tensor.bytes for node in part) for part in (copied, read))
    if size > max(SMALL, beside // SMALL_PART):
        largest = max(copied, key=lambda node: node.tensor.bytes)
        return f"{largest.name} would be copied for each layer"
    return LayerLoop(found, tuple(needed), chosen, copied, written)


def choose_loop(
    graph: Graph,
    kernels: object,
    roll: str,
    forms: FormTable | None = None,
    near: frozenset[str] = frozenset(),
) -> LayerLoop | str:
    """The loop that the layers of a program become, or why they do not. ``roll`` is ``always`` where that is
    possible, ``never``, or ``auto`` where it spares XLA enough and no product is slower for it."""
    if roll == "never" or not isinstance(kernels, Kernels):
        return "layers are to stay apart" if roll == "never" else "no kernels of ours run here"
    if roll == "auto" and len(graph.nodes) < LEAST_SPARED:
        return f"fewer than {LEAST_SPARED} nodes"
    loop = plan_loop(graph, kernels, forms, near) if roll == "auto" else plan_loop(graph, kernels)
    if roll == "auto" and isinstance(loop, LayerLoop) and loop.spared < LEAST_SPARED:
        return f"a loop would spare XLA {loop.spared} nodes of at least {LEAST_SPARED}"
    return loop


def describe_layers(graph: Graph, kernels: object, roll: str, forms: FormTable | None = None) -> str:
    """How ``choose_loop`` has layers written, and why; a decode loop has them in its body."""
    places = [(graph, near_parameters(graph, forms))]
    for node in graph.nodes:
        if node.op.name == "loop":
            body, behind = node.params["body"], node.params["carries"] + node.params["scanned"]
            places.append((body, near_inputs(body.inputs[behind:], forms)))
    largest, near = max(places, key=lambda place: len(place[0].nodes))
    chosen = choose_loop(largest, kernels, roll, forms, near)
    return str(chosen) if isinstance(chosen, LayerLoop) else f"one by one: {chosen}"


def lower_loop(block: Block, loop: LayerLoop, outside: Values, lower_node: LowerNode) -> dict[Node, Value]:
    """Writes the loop; the values that it yields. ``outside`` are those of what its layers read."""
    found = loop.repetition
    count, replaced = len(found.units), [found.own[state] for state in found.kept.values()]
    handed = [_one(outside, node) for node in found.carried.values()]
    states = [_one(outside, state) for each in replaced for state in each]

    def going_on(region: Block, carried: Sequence[Value]) -> Value:
        return region.compare("LT", carried[0], region.number(count, COUNTER))

    def step(region: Block, carried: Sequence[Value]) -> Sequence[Value]:
        index, behind = carried[0], 1 + len(handed)
        region.finish(())
        own = {
            node: PerLayer.of(index, [_one(outside, each) for each in all_])
            for node, all_ in found.own.items()
        }
        for at, state in enumerate(found.kept.values()):
            own[state] = PerLayer.of(index, carried[behind + at * count : behind + (at + 1) * count])
        before = [found.units[0][place] for place in found.carried]
        values = {**outside, **own, **dict(zip(before, carried[1:behind], strict=True))}
        _lower_layer(region, loop, index, values, lower_node)
        region.begin(found.unit[-1])
        after = [_replaced(region, loop, index, values, place) for place in found.kept]
        results = [_one(values, found.unit[place]) for place in found.carried]
        return [advanced(region, index), *results, *(member for state in after for member in state.members)]

    block.begin(found.unit[0])
    initial = (block.number(0, COUNTER), *handed, *states)
    results = block.finish(repeat_while(block, found.unit[0], initial, going_on, step))
    assert isinstance(results, tuple)
    lasting = iter(results[1:])
    yielded = {found.units[-1][place]: next(lasting) for place in found.carried}
    return yielded | {unit[place]: next(lasting) for place in found.kept for unit in found.units}


def _one(values: Values, node: Node) -> Value:
    value = values[node]
    assert isinstance(value, Value)
    return value


def _lower_layer(
    region: Block, loop: LayerLoop, index: Value, values: dict[Node, Results], lower_node: LowerNode
) -> None:
    """Writes the nodes of one layer, and adds their values to ``values``."""
    region.begin(loop.nodes[0])
    copies = _copies(region, loop, index, values)
    region.finish(())
    done: set[Node] = set()
    for node in loop.nodes:
        if node in done:  # computed beside another
            continue
        region.begin(node)
        selected = loop.chosen.get(node, Selected(node.sources, lower_node))
        if node in loop.written:
            state, new, slots = (_one(values, source) for source in node.sources)
            attributes = f"axis = {node.params.get('axis', 1)} : i64"
            result: Results = _changed(region, "write_layer", index, state, (new, slots), attributes)
        elif node in loop.chosen:
            result = selected.lower(region, node, *(values[source] for source in selected.operands))
        else:
            operands = (copies.get(source, values[source]) for source in node.sources)
            result = lower_node(region, node, *operands)
        result = region.finish(result)
        if isinstance(result, tuple) and selected.members:
            values |= zip(selected.members, result, strict=True)
            done |= set(selected.members)
        else:
            values[node] = result


def _copies(region: Block, loop: LayerLoop, index: Value, values: Values) -> dict[Node, Value]:
    """What plain operations read of the layer's own: one call copies it."""
    if not loop.copied:
        return {}
    each = [_one(values, source) for source in loop.copied]
    operands = [index, *(member for value in each for member in _members(value))]
    types = [value.type for value in each]
    taken = call_kernel_for_many(region, _kernel(region, "take_layer"), operands, types)
    return dict(zip(loop.copied, taken, strict=True))


def _replaced(region: Block, loop: LayerLoop, index: Value, values: Values, place: int) -> PerLayer:
    """The states of all layers, of which that of this one is new."""
    node = loop.repetition.unit[place]
    value, state = _one(values, node), _one(values, loop.repetition.kept[place])
    if isinstance(value, PerLayer):
        return value
    return _changed(region, "put_layer", index, state, (value,), "")


def _changed(
    region: Block, name: str, index: Value, state: Value, operands: Sequence[Value], attributes: str
) -> PerLayer:
    """The states of all layers, in place, when a kernel has changed that of this one."""
    members, first = _members(state), 1 + len(operands)
    given, types = (index, *operands, *members), [member.type for member in members]
    aliases = [first + at for at in range(len(members))]
    changed = call_kernel_for_many(region, _kernel(region, name), given, types, attributes, aliases)
    return PerLayer.of(index, changed)


def _members(value: Value) -> tuple[Value, ...]:
    assert isinstance(value, PerLayer)
    return value.members


def _kernel(block: Block, name: str) -> str:
    assert isinstance(block.kernels, Kernels)
    return block.kernels.target(name)
