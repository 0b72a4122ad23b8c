"""Which loops over tiles a program's contractions run as on a target: found regions, chosen schedules.

A nest of loops is one region of ``regions``: a matmul with what is computed element by element from its
result while a tile of it is on chip, several matmuls of one operand whose weights are laid side by side, or
attention whose scores never leave the chip. What is joined is what ``prediction`` joins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from ...ir.graph import Graph, Node
from ...ir.ops.linear import letter_sizes, split_subscripts
from ..program import Program
from .attention_schedule import AttentionSchedule, choose_attention_schedule
from .prediction import join_regions
from .region_cost import Machine
from .regions import Region, regions_of
from .schedule import Schedule, choose_schedule
from .targets import DTYPE_BYTES, Target


@dataclass(frozen=True)
class Layout:
    """A contraction as matmuls: the letters that count matmuls, and those of m, k and n.

    ``lhs`` and ``rhs``: which operand is which (0 or 1), and their letters; ``sizes``: of every letter.
    """

    lhs: tuple[int, str]
    rhs: tuple[int, str]
    result: str
    batch: str
    m: str
    k: str
    n: str
    sizes: Mapping[str, int]

    def size(self, letters: str) -> int:
        return math.prod(self.sizes[letter] for letter in letters)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size(self.m), self.size(self.k), self.size(self.n)

    @property
    def order(self) -> str:
        """The letters of the result as matrices: batch, then m, then n."""
        return self.batch + self.m + self.n


@dataclass(frozen=True)
class MatmulNest:
    """Contractions of one lhs that run as one matmul, and what follows on each tile of the result.

    ``epilogue``: nodes of the result's shape, the last of which is all that is written; only after one
    contraction.
    """

    products: tuple[Node, ...]
    layout: Layout
    schedule: Schedule
    epilogue: tuple[Node, ...] = ()

    @property
    def covered(self) -> tuple[Node, ...]:
        return (*self.products, *self.epilogue)

    @property
    def place(self) -> Node:
        """The node in whose place the loops stand: by then everything that they read is there."""
        return self.epilogue[-1] if self.epilogue else self.products[0]


@dataclass(frozen=True)
class AttentionNest:
    """Scores, what is computed of them element by element, their softmax, and the mix of values by it."""

    scores: Node
    between: tuple[Node, ...]
    softmax: Node
    mix: Node
    scores_layout: Layout
    mix_layout: Layout
    schedule: AttentionSchedule

    @property
    def covered(self) -> tuple[Node, ...]:
        return (self.scores, *self.between, self.softmax, self.mix)

    @property
    def place(self) -> Node:
        return self.mix


Nest = MatmulNest | AttentionNest


def schedule_program(program: Program, target: Target) -> tuple[Nest, ...]:
    """The nests of a program's contractions, also in loops, each with the fastest schedule on ``target``.

    What is no matmul (products without a sum, gathers) has none. Raises ``SystolicError`` where the target
    has no arrays, or no room for a tile.
    """

    @cache
    def choose(m: int, k: int, n: int, dtype: str) -> Schedule:
        return choose_schedule(m, k, n, dtype, target)

    nests: list[Nest] = []
    for graph, held in _graphs_of(program):
        named = {node.name: node for node in graph.nodes}
        users, weights = users_of(graph), _from_weights_alone(graph, held)
        for region in _joined(replace(program, graph=graph), held, target):
            nodes = [named[name] for name in region.nodes]
            attention = _attention(nodes, users, target) if region.kind == "attention" else None
            found = _matmuls(nodes, users, weights, choose) if attention is None else (attention,)
            nests.extend(found)
    return tuple(nests)


def _graphs_of(program: Program) -> Iterator[tuple[Graph, frozenset[Node]]]:
    """The graph of a program and the bodies of its loops, with the inputs of each that are weights."""
    pending = [(program.graph, frozenset[Node]())]
    while pending:
        graph, held = pending.pop()
        yield graph, held
        fixed = {*graph.parameters, *held}
        for node in graph.nodes:
            if node.op.name == "loop":
                given = zip(node.params["body"].inputs, node.sources, strict=True)
                inside = frozenset(inner for inner, outer in given if outer in fixed)
                pending.append((node.params["body"], inside))


def _joined(program: Program, held: frozenset[Node], target: Target) -> Iterable[Region]:
    """The regions as they run on the target, at the precision of most of the program's products."""
    dtypes = [node.tensor.dtype for node in program.graph.nodes if node.op.name == "contraction"]
    known = [dtype for dtype in dtypes if dtype in DTYPE_BYTES]
    dtype = max(known, key=known.count, default="f32")
    return join_regions(regions_of(program, dtype, held), Machine(target, dtype), program.rows)[0]


def users_of(graph: Graph) -> dict[Node, set[Node | None]]:
    """Who reads each node; None stands for the outside."""
    users: dict[Node, set[Node | None]] = {node: set() for node in graph.nodes}
    for node in graph.nodes:
        for source in node.sources:
            users[source].add(node)
    for node in graph.outputs.values():
        users[node].add(None)
    return users


def _from_weights_alone(graph: Graph, held: frozenset[Node]) -> set[Node]:
    """Nodes that no input reaches but weights."""
    fixed = set(held)
    for node in graph.nodes:
        if node.op.name != "input" and all(source in fixed for source in node.sources):
            fixed.add(node)
    return fixed


# ---- matmuls ----


def is_matmul(node: Node) -> bool:
    """Whether a contraction sums over letters of both operands, and over no others."""
    x, y, result = split_subscripts(node.params["subscripts"])
    summed = set(x + y) - set(result)
    return bool(summed) and summed <= set(x) & set(y) and node.tensor.dtype in DTYPE_BYTES


def layout_of(node: Node, weights: set[Node]) -> Layout:
    """A contraction as matmuls; weights are the right operand."""
    x, y, result = split_subscripts(node.params["subscripts"])
    lhs, rhs = (0, x), (1, y)
    if node.sources[0] in weights and node.sources[1] not in weights:
        lhs, rhs = rhs, lhs
    sizes = letter_sizes(node.params["subscripts"], *(source.tensor for source in node.sources))
    return Layout(
        lhs,
        rhs,
        result,
        batch="".join(c for c in result if c in x and c in y),
        m="".join(c for c in lhs[1] if c not in rhs[1]),
        k="".join(c for c in lhs[1] if c in rhs[1] and c not in result),
        n="".join(c for c in rhs[1] if c not in lhs[1]),
        sizes={letter: int(size) for letter, size in sizes.items()},  # type: ignore[arg-type]
    )


def _matmuls(
    nodes: list[Node],
    users: dict[Node, set[Node | None]],
    weights: set[Node],
    choose: Callable[[int, int, int, str], Schedule],
) -> Iterator[MatmulNest]:
    """The matmuls of a region: as one where their weights can be laid side by side, else one by one."""
    products = [node for node in nodes if node.op.name == "contraction" and is_matmul(node)]
    layouts = [layout_of(node, weights) for node in products]
    if len(products) > 1 and _share_lhs(products, layouts):
        m, k, _ = layouts[0].shape
        columns = sum(layout.shape[2] for layout in layouts)
        schedule = choose(m, k, columns, products[0].tensor.dtype)
        yield MatmulNest(tuple(products), layouts[0], schedule)
        return
    free = nodes
    for node, layout in zip(products, layouts, strict=True):
        schedule = choose(*layout.shape, node.tensor.dtype)
        epilogue = () if schedule.spills else epilogue_of(node, layout, free, users)
        free = [other for other in free if other not in epilogue]
        yield MatmulNest((node,), layout, schedule, epilogue)


def _share_lhs(products: list[Node], layouts: list[Layout]) -> bool:
    """Whether contractions multiply one value by weights as they are kept, as plain matmuls of equal form."""
    first = layouts[0]
    return all(
        node.sources[layout.lhs[0]] is products[0].sources[first.lhs[0]]
        and node.sources[layout.rhs[0]].op.kind == "source"
        and (layout.lhs[1], layout.k, layout.batch) == (first.lhs[1], first.k, "")
        and layout.result == layout.m + layout.n
        for node, layout in zip(products, layouts, strict=True)
    )


def epilogue_of(
    product: Node, layout: Layout, nodes: Iterable[Node], users: dict[Node, set[Node | None]]
) -> tuple[Node, ...]:
    """What a region computes from tiles of the result: as far as only its last value is read elsewhere."""
    chain: list[Node] = [product]
    for node in nodes:
        if node.op.kind == "elementwise" and node not in chain and set(node.sources) & set(chain):
            rest = [source for source in node.sources if source not in chain]
            same = node.tensor.shape == product.tensor.shape
            if not same or not all(tile_axes(source, layout) for source in rest):
                break
            chain.append(node)
    while len(chain) > 1 and any(users[node] - set(chain) for node in chain[:-1]):
        chain.pop()
    return tuple(chain[1:])


def tile_axes(operand: Node, layout: Layout) -> str | None:
    """Which of the result's groups (of "bmn") a value changes with, if it fits tiles: "n" for a bias.

    None where it changes with a part of a group.
    """
    shape = operand.tensor.static_shape
    padded = dict(zip(layout.result, (1,) * (len(layout.result) - len(shape)) + shape, strict=True))
    found = ""
    for name, letters in (("b", layout.batch), ("m", layout.m), ("n", layout.n)):
        full = [padded[letter] == layout.sizes[letter] for letter in letters if layout.sizes[letter] > 1]
        if any(full) and not all(full):
            return None
        found += name if any(full) else ""
    return found or "-"


# ---- attention ----


def _attention(
    nodes: list[Node], users: dict[Node, set[Node | None]], target: Target
) -> AttentionNest | None:
    """The parts of a joined region of attention, if its loops can run over positions of the past."""
    products = [node for node in nodes if node.op.name == "contraction" and is_matmul(node)]
    normal = [node for node in nodes if node.op.name == "softmax"]
    if len(products) != 2 or len(normal) != 1:
        return None
    (scores, mix), (softmax,) = products, normal
    first, last = layout_of(scores, set()), layout_of(mix, set())
    chain = [scores]
    for node in nodes[nodes.index(scores) + 1 : nodes.index(softmax)]:
        if set(node.sources) & set(chain):
            chain.append(node)
    between = tuple(chain[1:])
    is_closed = all(users[node] <= {*chain, softmax} for node in chain) and users[softmax] == {mix}
    has_form = (
        mix.sources[0] is softmax
        and (first.result, first.batch + first.m) == (last.lhs[1], last.batch + last.m)
        and len(first.n) == len(first.k) == len(last.n) == 1
        and softmax.params["axis"] == len(first.result) - 1
        and _without(first.result, first.batch) == first.m + first.n
        and _without(last.result, last.batch) == last.m + last.n
        and scores.tensor.dtype == "f32"
    )
    same = all(n.op.kind == "elementwise" and n.tensor.shape == scores.tensor.shape for n in between)
    if not is_closed or not has_form or not same:
        return None
    inner = first.size(first.m[1:])
    schedule = choose_attention_schedule(
        first.size(first.batch), first.size(first.m[:1]), inner, *first.shape[1:][::-1], last.shape[2],
        scores.tensor.dtype, target,
    )  # fmt: skip
    return AttentionNest(scores, between, softmax, mix, first, last, schedule)


def _without(letters: str, removed: str) -> str:
    return "".join(letter for letter in letters if letter not in removed)
