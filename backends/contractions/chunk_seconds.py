"""How long a CPU reads a chunk of a prompt, predicted from what products were measured to take.

No program is derived for that. The graph of one token tells which products there are, and which of them are
wanted at every position (whatever a past is made of), only behind the last, or one position after the other
(in a loop through a feedback); what attention multiplies for each position before; and how many bytes are
handed on between them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from ...compiler.chunks import ChunkSeconds
from ...compiler.derive.derivation import find_cycles
from ...ir.graph import Graph, Node
from ...ir.time import NOW
from ...ir.types import Past, TensorType, is_ragged
from .products import find_product
from .selection import choose_forms, near_parameters
from .table import FormTable, Setting

CALL = 8e-5  # seconds around a program
OP_OF_STEP = 2e-6  # seconds to begin with an op of a step
OP = 5e-6  # of a chunk, where fewer are joined; weights that come from memory leave the caches cold
OP_NEAR = 1e-6  # where all weights stay in the caches
POSITION_OF_OP = 2e-8  # seconds around its loop over one position
ELEMENT = 5e-11  # seconds of an operation in it
NEAR_SPEED = 3.0  # times as fast as memory: what one op leaves in the caches for the next
ATTENTION_SHARE = 0.5  # of the speed of products of many f32 rows: between two of them there are exponentials
_MANY = 512
_ONE = Setting("f32", False, False, 1, 2048, 2048)  # one vector, and weights from memory
_ONE_BYTES = 4 * _ONE.width * _ONE.columns
_VIEWS = frozenset(("reshape", "broadcast_to", "slice", "constant", "history", "delay", "feedback"))


@dataclass
class _Amounts:
    """What a position asks for. ``products``: how many of each setting, as if for one row; ``experts``: the
    same of matrices that are chosen from so many, and how often; ``past``: multiply-adds for each position
    that is read, by the windows in which they are; ``others``: multiply-adds without weights or a past;
    ``handed_on``: bytes that ops read and write, ``widest`` of which one does; ``ops``, and ``operations`` of
    those that are no products."""

    products: Counter[Setting] = field(default_factory=Counter)
    experts: Counter[tuple[Setting, int, int]] = field(default_factory=Counter)
    past: Counter[int | None] = field(default_factory=Counter)
    others: int = 0
    handed_on: int = 0
    widest: int = 0
    ops: int = 0
    operations: int = 0


@dataclass(frozen=True)
class _Costs:
    """Seconds of chunks, from what is asked for ``everywhere``, behind the ``last`` position alone, and at
    one position after the other (``in_turn``)."""

    table: FormTable
    has_kernels: bool
    rows: int
    capacity: int
    is_near: bool
    everywhere: _Amounts
    last: _Amounts
    in_turn: _Amounts

    def __call__(self, size: int, behind: int) -> float:
        vectors, found = self.rows * size, self.everywhere
        total = self._products(found, vectors) + self._products(self.last, self.rows)
        total += size * self._products(self.in_turn, self.rows)
        total += self._attention(size, behind) + self._handing_on(vectors)
        total += vectors * (found.ops * POSITION_OF_OP + found.operations * ELEMENT)
        begun = found.ops + self.last.ops + size * self.in_turn.ops
        return CALL + total + begun * (OP_NEAR if self.is_near else OP if size > 1 else OP_OF_STEP)

    def _products(self, found: _Amounts, vectors: int) -> float:
        total = found.others * vectors * self._multiply
        for setting, count in found.products.items():
            total += count * self._product(setting, vectors)
        for (setting, experts, choices), count in found.experts.items():
            chosen = max(1, round(experts * (1 - (1 - 1 / experts) ** (choices * vectors))))
            total += count * chosen * self._product(setting, -(-choices * vectors // chosen))
        return total

    def _product(self, setting: Setting, vectors: int) -> float:
        return self.table.seconds(replace(setting, rows=vectors), has_kernels=self.has_kernels)

    def _attention(self, size: int, behind: int) -> float:
        """Kernels read what is used of a state, other programs all of it."""
        seen = behind + (size + 1) / 2 if self.has_kernels else self.capacity
        pairs = sum(each * min(seen, window or seen) for window, each in self.everywhere.past.items())
        return self.rows * size * pairs * self._multiply / ATTENTION_SHARE

    def _handing_on(self, vectors: int) -> float:
        """What is too large for the caches is written to memory, and read again."""
        is_near = vectors * self.everywhere.widest <= self.table.near_bytes
        seconds = vectors * self.everywhere.handed_on * self._product(_ONE, 1) / _ONE_BYTES
        return seconds / NEAR_SPEED if is_near else seconds

    @property
    def _multiply(self) -> float:
        """Seconds of a multiplication and an addition beside many others."""
        return self._product(_ONE, _MANY) / (_MANY * _ONE.width * _ONE.columns)


def chunk_seconds(
    graph: Graph, table: FormTable, *, rows: int, capacity: int, has_kernels: bool
) -> ChunkSeconds:
    """What chunks of a per-token graph take for ``rows`` rows with states of ``capacity`` positions."""
    clock = next(iter(graph.outputs.values())).clock
    wanted, looped = _read_by_the_future(graph), _run_in_turn(graph)
    near = near_parameters(graph, table)
    everywhere: list[Node] = []
    last: list[Node] = []
    in_turn: list[Node] = []
    for node in graph.nodes:
        if node.clock == clock and node.op.kind != "source":
            place = last if node not in wanted else in_turn if node in looped else everywhere
            place.append(node)
    amounts = (_amounts(nodes, has_kernels, table, near) for nodes in (everywhere, last, in_turn))
    weights = sum(node.tensor.bytes for node in graph.parameters)
    return _Costs(table, has_kernels, rows, capacity, weights <= table.near_bytes, *amounts)


def _read_by_the_future(graph: Graph) -> frozenset[Node]:
    """The nodes that are wanted at every position: what a later one reads, and what that is made of."""
    wanted = {value for _, value in graph.feedback}
    wanted |= {edge.source for node in graph.nodes for edge in node.inputs if edge.access != NOW}
    for node in reversed(graph.nodes):
        if node in wanted:
            wanted.update(node.sources)
    return frozenset(wanted)


def _run_in_turn(graph: Graph) -> frozenset[Node]:
    """The nodes that one position after the other computes: a product with what they yielded for the last one
    is among them. Other recurrences are scanned for all positions at once."""
    if not graph.feedback:
        return frozenset()
    cycles = find_cycles(graph)
    return frozenset(
        node for node, members in cycles.items() if any(find_product(member) for member in members)
    )


def _amounts(nodes: list[Node], has_kernels: bool, table: FormTable, near: frozenset[str]) -> _Amounts:
    found = _Amounts()
    inside: set[Node] = set()
    for choice in choose_forms(nodes, has_kernels, table, near):
        found.products[choice.setting] += 1
        inside.update(product.node for product in choice.products)
    for node in nodes:
        if node.op.name in _VIEWS:
            continue
        found.ops += 1
        if node.op.name == "routed_contraction":
            found.experts[_expert(node)] += 1
        elif node not in inside:
            _count_others(found, node)
        if node.op.kind != "elementwise":
            streams = [node, *(source for source in node.sources if source.clock is not None)]
            moved = sum(one.tensor.bytes for one in streams if not any(map(is_ragged, one.tensor.shape)))
            found.handed_on += moved
            found.widest = max(found.widest, moved)
    return found


def _count_others(found: _Amounts, node: Node) -> None:
    """What is no product with a matrix: multiplied by a past, for each of its positions, or element by
    element; of what reads a past only its products count, since attention is one kernel."""
    pasts = [dim for one in (node, *node.sources) for dim in one.tensor.shape if is_ragged(dim)]
    operands = tuple(_of_one_position(source.tensor) for source in node.sources)
    work = node.op.work(operands, _of_one_position(node.tensor), node.params)
    if pasts:
        found.past[pasts[0].window if isinstance(pasts[0], Past) else None] += work.multiply_adds
    else:
        found.others += work.multiply_adds
        found.operations += work.elementwise


def _of_one_position(tensor: TensorType) -> TensorType:
    return tensor.with_shape(tuple(1 if is_ragged(dim) else dim for dim in tensor.shape))


def _expert(node: Node) -> tuple[Setting, int, int]:
    """One matrix of a stack, of how many, and how often one is chosen for a position."""
    _, weights, index = (source.tensor for source in node.sources)
    experts, *matrix = weights.static_shape
    columns, width = matrix if node.params["axes"] == "nd" else matrix[::-1]
    kept = weights.dtype if weights.dtype in ("f32", "bf16") else "f32"
    return Setting(kept, node.params["axes"] != "nd", False, 1, width, columns), experts, index.size
