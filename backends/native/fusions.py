"""Small operations between products as one call of a kernel: norms, residuals, rotations, gates.

XLA starts a kernel of its own for each sum, for each result and for each shape, and in a step of one token
every such start takes longer than its numbers do. What lies between two products becomes one call here,
whatever it computes: the operations are found by what they need and what needs them, and their order, sizes
and places in memory are instructions that ``fuse.h`` carries out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ...ir.graph import Node
from ...ir.types import TensorType
from ..contractions.products import scalar
from ..stablehlo_text import Block, Results, Value
from . import Kernels
from .calls import Selected, call_kernel_for_many
from .instructions import OPERATIONS, REDUCTIONS, Code

COSTLY = {"exp", "log1p", "tanh", "sigmoid", "erf"}  # of which XLA makes scalar code, or slower one
FEWEST_COSTLY = 1 << 10  # elements
LONGER_SUMS = 8  # values that are only added up, or compared, may be so many times as large
VIEWS = {"reshape", "slice", "transpose", "broadcast_to"}  # the elements of another value, in place


@dataclass(frozen=True, eq=False)
class Fusion:
    """What lies between the same products: nodes that are computed, what they read, and what others read."""

    nodes: tuple[Node, ...]
    operands: tuple[Node, ...]
    outputs: tuple[Node, ...]


def select_fusions(
    nodes: Sequence[Node], ends: Collection[Node], chosen: Mapping[Node, Selected], kernels: Kernels
) -> dict[Node, Selected]:
    """The nodes that fusions yield, of ``nodes``, which are what ``ends`` need beside what is ``chosen``."""
    selected: dict[Node, Selected] = {}
    for fusion in find_fusions(nodes, ends, chosen, kernels.largest_fused):
        selected |= dict.fromkeys(fusion.outputs, _call(fusion, kernels))
    return selected


def find_fusions(
    nodes: Sequence[Node], ends: Collection[Node], chosen: Mapping[Node, Selected], largest: int
) -> list[Fusion]:
    """What lies between the same products, where one call is faster than what XLA makes of it. No value
    that is read or computed has more than ``largest`` elements."""
    small = {node for node in nodes if node not in chosen and _is_small(node, largest)}
    parts = {node for node in nodes if node not in chosen and _is_part(node, largest)}
    steps = _steps(nodes, chosen, small)
    members = {node: step for node, step in steps.items() if node in small}
    while True:
        fusions = _joined(nodes, ends, chosen, steps, members, parts)
        lost = [node for fusion in fusions if not _pays(fusion) for node in fusion.nodes]
        if not lost:
            return fusions
        for node in lost:
            del members[node]


def _steps(
    nodes: Sequence[Node], chosen: Mapping[Node, Selected], small: Collection[Node]
) -> dict[Node, int]:
    """How many other computations lie in front of each node on the longest way: small ones in front of which
    there are as many never need each other through another one."""
    steps: dict[Node, int] = {}
    behind: dict[Node, int] = {}  # the same for what reads a node
    for node in nodes:
        sources = chosen[node].operands if node in chosen else node.sources
        steps[node] = behind[node] = max(
            (behind[source] for source in sources if source in behind), default=0
        )
        is_view = node.op.name in VIEWS and node not in chosen
        if node.op.kind != "source" and node not in small and not is_view:
            behind[node] += 1
    return steps


def _joined(
    nodes: Sequence[Node],
    ends: Collection[Node],
    chosen: Mapping[Node, Selected],
    steps: Mapping[Node, int],
    members: Mapping[Node, int],
    parts: Collection[Node],
) -> list[Fusion]:
    computed, yielded = defaultdict(list), defaultdict(set)
    for node, step in members.items():
        computed[step].append(node)

    def give(node: Node) -> None:
        """What someone outside reads, or a member of another fusion."""
        while node.op.name == "reshape":
            (node,) = node.sources
        if node in members or node in parts:
            yielded[steps[node]].add(node)

    for node in nodes:
        if node in members:
            for root in map(root_of, node.sources):
                if members.get(root) not in (None, members[node]):
                    give(root)
        elif node in chosen or node.op.name not in VIEWS:
            for source in chosen[node].operands if node in chosen else node.sources:
                give(source)
    for node in ends:
        give(node)
    order = {node: at for at, node in enumerate(nodes)}
    fusions = []
    for step, inside in computed.items():
        outputs = sorted(yielded[step], key=order.__getitem__)
        read = dict.fromkeys(root_of(source) for node in (*inside, *outputs) for source in node.sources)
        own = set(inside)
        operands = tuple(node for node in read if node not in own and scalar(node) is None)
        fusions.append(Fusion(tuple(inside), operands, tuple(outputs)))
    return fusions


def root_of(node: Node) -> Node:
    """The node whose elements a node shows, all or a part of them."""
    while node.op.name in VIEWS:
        (node,) = node.sources
    return node


def _is_small(node: Node, largest: int) -> bool:
    """Whether instructions can compute the node, and it is not too large for them."""
    if node.op.name not in OPERATIONS or not isinstance(node.type, TensorType):
        return False
    roots = [root_of(source) for source in node.sources]
    kinds = ["bool", "f32", "f32"] if node.op.name == "where" else ["f32"] * len(roots)
    if node.op.name == "cast":
        kinds = ["bf16"]
    return (
        node.type.dtype == "f32"
        and _axes(node) <= 4
        and all(root.tensor.dtype == kind for root, kind in zip(roots, kinds, strict=True))
        and max(x.tensor.size for x in (node, *node.sources, *roots))
        <= largest * (LONGER_SUMS if node.op.name in REDUCTIONS else 1)
    )


def _is_part(node: Node, largest: int) -> bool:
    """Whether a node shows some elements of a small value that was computed, or all in another order."""
    if node.op.name not in VIEWS or node.op.name == "reshape" or _axes(node) > 4:
        return False
    root = root_of(node)
    sizes = (root.tensor.size, *(source.tensor.size for source in (node, *node.sources)))
    return root.op.kind != "source" and root.tensor.dtype == "f32" and max(sizes) <= largest


def _axes(node: Node) -> int:
    shape = node.sources[0].tensor.static_shape if node.op.name in REDUCTIONS else node.tensor.static_shape
    return sum(size > 1 for size in shape)


def _pays(fusion: Fusion) -> bool:
    """XLA makes one kernel of operations on each element that have one result."""
    sums = any(node.op.name in REDUCTIONS for node in fusion.nodes)
    costly = sum(node.tensor.size for node in fusion.nodes if node.op.name in COSTLY)
    return bool(fusion.outputs) and (sums or len(fusion.outputs) > 1 or costly >= FEWEST_COSTLY)


def _call(fusion: Fusion, kernels: Kernels) -> Selected:
    code = Code(fusion.operands, fusion.outputs)
    for node in fusion.nodes:
        code.compute(node)
    code.finish()
    attributes = code.attributes
    types = [node.tensor for node in fusion.outputs]

    def lower(block: Block, node: Node, *operands: Value) -> Results:
        return call_kernel_for_many(block, kernels.target("fuse"), operands, types, attributes)

    return Selected(fusion.operands, lower, fusion.outputs)
