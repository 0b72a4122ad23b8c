"""A program as regions: what can run as one kernel, and what each moves to and from main memory.

A contraction, a gather, a scan or a loop opens a region. Whatever is computed element by element joins the
region that makes its latest operand: biases, activations, residual sums and norms are epilogues of the
matmul before them. What comes behind a reduction (a norm's scaled vector) is not written but computed again
by whoever reads it, from the vector itself and the reduced number: a prologue of the next matmul. So is a
state that is kept in fewer bits made wider by whoever reads it.

All amounts are linear in the number of rows, so that one derived program tells the cost of every batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ...ir.graph import Graph, Node
from ...ir.op import Work
from ...ir.ops.linear import letter_sizes, split_subscripts
from ...ir.types import DTYPES, FLOATS, TensorType
from ..program import STATE_PREFIX, Program
from .targets import DTYPE_BYTES

ROWS = "B"  # the letter that contractions of programs have for their rows: derive.rules
_VIEWS = frozenset(("reshape", "transpose", "slice", "broadcast_to", "part"))
_REDUCTIONS = frozenset(("sum", "max", "min", "argmax", "cumulative_sum"))
_PRODUCTS = frozenset(("contraction", "routed_contraction"))
_JOINING = _REDUCTIONS | {"softmax", "concatenate", "write_rows"}


def counted_bytes(type_: TensorType, float_bytes: int) -> int:
    """Bytes of a value where floats are counted as ``float_bytes`` each, unless they are narrower."""
    if type_.dtype not in FLOATS:
        return type_.bytes
    return type_.size * min(float_bytes, DTYPES[type_.dtype].itemsize)


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes or operations: ``fixed``, and ``per_row`` for each row."""

    fixed: float = 0.0
    per_row: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.fixed + other.fixed, self.per_row + other.per_row)

    def at(self, rows: int) -> float:
        return self.fixed + self.per_row * rows


@dataclass(frozen=True, slots=True)
class Product:
    """A contraction as ``batch`` matmuls [m, k] · [k, n], as if there were one row.

    ``grows`` is the size that is multiplied by the number of rows (None: none is). ``left`` names the
    value that is the left operand, ``right`` says what the right one is: weights, state or activations.
    Of ``experts`` (0: it is no mixture), each of the m rows chooses one, any with equal chances.
    """

    batch: int
    m: int
    k: int
    n: int
    grows: str | None
    left: str
    right: str
    experts: int = 0

    def chosen_experts(self, rows: int) -> float:
        """How many different experts are expected to be chosen."""
        choices = self.m * (rows if self.grows == "m" else 1)
        return self.experts * (1 - (1 - 1 / self.experts) ** choices) if self.experts else 0.0

    def at(self, rows: int) -> tuple[int, int, int, int]:
        """batch, m, k, n for a number of rows; of a mixture, the experts that are chosen are a batch."""
        sizes = {"batch": self.batch, "m": self.m, "k": self.k, "n": self.n}
        if self.grows is not None:
            sizes[self.grows] *= rows
        if self.experts:
            sizes["batch"] = max(round(self.chosen_experts(rows)), 1)
            sizes["m"] = -(-sizes["m"] // sizes["batch"])
        return sizes["batch"], sizes["m"], sizes["k"], sizes["n"]

    def multiply_adds(self, rows: int) -> int:
        grown = rows if self.grows is not None else 1
        return self.batch * self.m * self.k * self.n * grown


@dataclass(frozen=True, slots=True)
class Value:
    """Bytes that one region leaves for others: in main memory, or on chip if they are few."""

    name: str
    bytes: Amount


@dataclass(frozen=True, slots=True)
class Prologue:
    """What makes weights of what is kept, such as scaled integers: ``operations`` of the vector unit, the
    bytes that are ``kept``, and those that are ``made`` of them."""

    operations: float = 0.0
    kept: float = 0.0
    made: float = 0.0

    def __add__(self, other: Prologue) -> Prologue:
        return Prologue(self.operations + other.operations, self.kept + other.kept, self.made + other.made)


@dataclass(frozen=True)
class Region:
    """Nodes that run as one. ``weights`` (without experts) and ``state``: bytes read of each, and of states
    also written; ``inputs`` and ``results``: values of other regions, and for them; ``spilled``: values
    that a reduction has to see before they are read a second time, unless they fit on chip. ``prologue``: its
    operations are a part of ``elementwise``, what it keeps a part of ``weights``."""

    name: str
    scope: str
    kind: str
    nodes: tuple[str, ...] = ()
    products: tuple[Product, ...] = ()
    elementwise: Amount = Amount()
    prologue: Prologue = Prologue()
    weights: Amount = Amount()
    state: Amount = Amount()
    inputs: tuple[Value, ...] = ()
    results: tuple[Value, ...] = ()
    spilled: tuple[Value, ...] = ()


@dataclass
class _Draft:
    """A region while it is put together; the first has no anchor: positions and masks."""

    anchor: Node | None
    kind: str
    nodes: list[Node] = field(default_factory=list)


def regions_of(program: Program, dtype: str, held: Collection[Node] = ()) -> tuple[Region, ...]:
    """The regions of a program in the order in which they run; floats are counted as ``dtype``.

    ``held``: inputs that are weights, as the body of a loop has them."""
    return _Partition(program, dtype, held).regions()


class _Partition:
    def __init__(self, program: Program, dtype: str, held: Collection[Node]) -> None:
        self._graph: Graph = program.graph
        self._rows = program.rows
        self._float_bytes = DTYPE_BYTES[dtype]
        self._drafts = [_Draft(None, "elementwise")]
        self._home: dict[Node, int] = {}  # the draft that makes a node's value
        self._base: dict[Node, Node] = {}  # what a view shows
        self._weights_read = {*self._graph.parameters, *held}
        self._varying: set[Node] = set(self._graph.inputs) - self._weights_read
        self._again: set[Node] = set()  # computed again by whoever reads it
        self._widened: dict[Node, tuple[Node, ...]] = {}  # made of states alone: these, and what it takes
        for node in self._graph.nodes:
            self._place(node)

    # ---- which node goes where ----

    def _place(self, node: Node) -> None:
        bases = [self._base[source] for source in node.sources]
        if any(source in self._varying for source in node.sources):
            self._varying.add(node)
        is_view = node.op.name in _VIEWS
        self._base[node] = bases[0] if is_view else node
        if node.op.kind == "source" or is_view or node not in self._varying:
            return
        changing = [base for base in bases if base in self._varying]
        if node.op.kind == "elementwise" and all(self._widening(base) for base in changing):
            before = dict.fromkeys(n for base in changing for n in self._widening(base))
            self._widened[node] = (*before, node)
            return
        makers = [self._home[base] for base in bases if base in self._home]
        if node.op.kind != "elementwise" and node.op.name not in _JOINING:
            self._drafts.append(_Draft(node, _kind(node)))
            makers = [len(self._drafts) - 1]
        home = max(makers, default=0)
        self._home[node] = home
        self._drafts[home].nodes.append(node)
        if node.op.kind == "elementwise":
            behind = [b for b in bases if self._home.get(b) == home]
            if any(b in self._again or b.op.name in _REDUCTIONS for b in behind):
                self._again.add(node)

    def _widening(self, base: Node) -> tuple[Node, ...]:
        """The states that are read where ``base`` is, and what makes it of them; none if it is no state."""
        return (base,) if _is_state(base) else self._widened.get(base, ())

    # ---- what moves ----

    def regions(self) -> tuple[Region, ...]:
        needed = self._read_by_others()
        return tuple(self._region(i, draft, needed) for i, draft in enumerate(self._drafts) if draft.nodes)

    def _read_by_others(self) -> set[Node]:
        needed = {self._base[node] for node in self._graph.outputs.values()}
        for i, draft in enumerate(self._drafts):
            needed.update(self._foreign(i, draft))
        return needed

    def _foreign(self, index: int, draft: _Draft) -> Iterator[Node]:
        """The values of other regions that a region reads; what is computed again, through its operands."""
        seen: set[Node] = set()
        pending = [self._base[s] for node in draft.nodes for s in node.sources]
        while pending:
            node = pending.pop()
            if node in seen or self._home.get(node, index) == index:
                continue
            seen.add(node)
            if node in self._again:
                pending += [self._base[s] for s in node.sources]
            elif not self._widening(node):
                yield node

    def _region(self, index: int, draft: _Draft, needed: set[Node]) -> Region:
        made = [n for n in draft.nodes if n in needed and not _is_state(n) and n not in self._again]
        operands = [self._base[s] for node in draft.nodes for s in node.sources]
        prologue = self._prologue(operands)
        return Region(
            name=draft.anchor.name if draft.anchor else "positions",
            scope=draft.anchor.scope if draft.anchor else "",
            kind=draft.kind,
            nodes=tuple(node.name for node in draft.nodes),
            products=tuple(self._product(n) for n in draft.nodes if n.op.name in _PRODUCTS),
            elementwise=self._work(draft) + Amount(prologue.operations),
            prologue=prologue,
            weights=self._weights(draft, operands),
            state=self._state(draft),
            inputs=tuple(self._value(n) for n in self._foreign(index, draft)),
            results=tuple(self._value(n) for n in made),
            spilled=tuple(self._value(n) for n in draft.nodes if n.op.name == "softmax"),
        )

    def _bytes(self, type_: TensorType) -> int:
        return counted_bytes(type_, self._float_bytes)

    def _amount(self, node: Node, total: float) -> Amount:
        return Amount(per_row=total / self._rows) if node in self._varying else Amount(fixed=total)

    def _value(self, node: Node) -> Value:
        types = [node.type] if isinstance(node.type, TensorType) else list(node.type)
        return Value(node.name, self._amount(node, sum(map(self._bytes, types))))

    def _work(self, draft: _Draft) -> Amount:
        total = Amount()
        bases = (self._base[source] for node in draft.nodes for source in node.sources)
        widening = (node for base in bases for node in self._widening(base) if not _is_state(node))
        for node in (*draft.nodes, *widening):
            work = _work_of(node)
            operations = work.elementwise
            if node.op.name not in _PRODUCTS:
                operations += 2 * work.multiply_adds  # a loop's, which run one after the other
            total += self._amount(node, operations)
        return total

    def _made_of(self, operands: list[Node]) -> tuple[set[Node], set[Node]]:
        """The weights that fixed operands are made of, and the nodes that make them."""
        kept: set[Node] = set()
        made: set[Node] = set()
        pending = [base for base in operands if base not in self._varying]
        while pending:
            node = pending.pop()
            if node in self._weights_read:
                kept.add(node)
            elif node.op.kind != "source" and node not in made:
                made.add(node)
                pending += node.sources
        return kept, made

    def _prologue(self, operands: list[Node]) -> Prologue:
        """What a region computes of weights alone; of a vector or a table it is nothing to speak of."""
        wide = dict.fromkeys(b for b in operands if b.op.kind != "source" and b not in self._varying)
        kept, made = self._made_of(list(wide))
        return Prologue(
            float(sum(_work_of(node).elementwise for node in made)),
            float(sum(self._bytes(node.tensor) for node in kept)),
            float(sum(self._bytes(node.tensor) for node in wide)),
        )

    def _weights(self, draft: _Draft, operands: list[Node]) -> Amount:
        if draft.kind == "gather" and draft.anchor and draft.anchor.sources[0] not in self._varying:
            return self._amount(draft.anchor, self._bytes(draft.anchor.tensor))
        routed = {n.sources[1] for n in draft.nodes if n.op.name == "routed_contraction"}
        read = self._made_of(operands)[0] - routed
        return Amount(fixed=float(sum(self._bytes(base.tensor) for base in read)))

    def _state(self, draft: _Draft) -> Amount:
        total = Amount()
        for node in draft.nodes:
            for source in node.sources:
                base = self._base[source]
                if node.op.name == "write_rows":
                    continue
                read = filter(_is_state, self._widening(base))
                total += self._amount(node, sum(self._bytes(state.tensor) for state in read))
            if node.op.name == "write_rows":
                total += self._amount(node, self._bytes(node.sources[1].tensor))
        return total

    def _product(self, node: Node) -> Product:
        if node.op.name == "routed_contraction":
            return self._routed(node)
        left, right, result = split_subscripts(node.params["subscripts"])
        sizes = letter_sizes(node.params["subscripts"], *(s.tensor for s in node.sources))
        bases = [self._base[source] for source in node.sources]
        kinds = [self._class(base) for base in bases]
        if kinds[0] != "activations" and kinds[1] == "activations":
            left, right, kinds, bases = right, left, kinds[::-1], bases[::-1]
        groups = {
            "batch": [x for x in left if x in right and x in result],
            "m": [x for x in left if x not in right],
            "n": [x for x in right if x not in left],
            "k": [x for x in left if x in right and x not in result],
        }
        counts, grows = {}, None
        for name, letters in groups.items():
            counts[name] = 1
            for letter in letters:
                if letter == ROWS:
                    grows = name
                else:
                    counts[name] *= int(sizes[letter])  # type: ignore[arg-type]
        return Product(**counts, grows=grows, left=bases[0].name, right=kinds[1])

    def _routed(self, node: Node) -> Product:
        """Each choice of an expert is one row of a matmul; which experts are read depends on the rows."""
        _, weights, index = (source.tensor for source in node.sources)
        experts, *matrix = weights.static_shape
        n, k = matrix if node.params["axes"] == "nd" else matrix[::-1]
        choices = index.size // self._rows
        return Product(1, choices, k, n, "m", self._base[node.sources[0]].name, "weights", experts)

    def _class(self, base: Node) -> str:
        if base not in self._varying:
            return "weights"
        return "state" if self._widening(base) else "activations"


def _is_state(node: Node) -> bool:
    is_input = node.op.name == "input" and node.name.startswith(STATE_PREFIX)
    return is_input or node.op.name == "write_rows"


def _kind(node: Node) -> str:
    if node.op.name in _PRODUCTS:
        return "matmul" if node.op.name == "contraction" else "experts"
    if node.op.name in ("take", "read_rows"):
        return "gather"
    return node.op.name


def _work_of(node: Node) -> Work:
    return node.op.work(tuple(s.type for s in node.sources), node.type, node.params)  # type: ignore[misc]
