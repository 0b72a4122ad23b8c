"""Nodes and graphs: immutable values. A node is a stream; its edges say which positions they read.

Nodes compare by identity. A graph is a set of named outputs and what they need; it iterates in
topological order, and no traversal is recursive, so a thousand layers are no deeper than one.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

from .causality import Certificate, certify
from .dumps.text import print_graph
from .errors import GraphError, Location
from .op import Op, Params, TypeMismatch
from .ops import OPS
from .ports import Port, Signature
from .time import NOW, Access
from .types import Past, Size, TensorType, ValueType, show_type

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False, slots=True)
class Edge:
    """One operand: the stream it comes from, and which positions of it are read."""

    source: Node
    access: Access = NOW


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One stream: an op applied to other streams. ``clock`` is None for what never changes."""

    op: Op
    inputs: tuple[Edge, ...]
    params: Params
    type: ValueType
    clock: str | None
    name: str = ""
    scope: str = ""
    location: Location | None = None
    sources: tuple[Node, ...] = field(init=False)  # of the edges: read far more often than nodes are made

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple([edge.source for edge in self.inputs]))

    @property
    def tensor(self) -> TensorType:
        """The type of a node that yields one value; only a loop yields several."""
        if not isinstance(self.type, TensorType):
            raise TypeError(f"{self.name or self.op} yields several values: {show_type(self.type)}")
        return self.type

    def __repr__(self) -> str:
        return f"<{self.name or self.op.name}: {show_type(self.type)}>"


def make_node(
    op: Op,
    sources: Iterable[Node] = (),
    params: Params | None = None,
    *,
    name: str = "",
    scope: str = "",
    location: Location | None = None,
) -> Node:
    """A node whose type, clock and accesses follow from its op and operands.

    Raises ``GraphError`` with ``location`` when the operands do not fit or mix two clocks.
    """
    sources, params = tuple(sources), dict(params or {})
    try:
        type_ = op.infer(*(source.type for source in sources), **params)
        clock = _infer_clock(op, sources, params, type_)
    except TypeMismatch as mismatch:
        raise GraphError(f"{op.name}: {mismatch}", location) from None
    accesses = op.accesses(**params) if op.accesses else (NOW,) * len(sources)
    edges = tuple(Edge(s, a) for s, a in zip(sources, accesses, strict=True))
    return Node(op, edges, params, type_, clock, name, scope, location)


def _infer_clock(op: Op, sources: tuple[Node, ...], params: Params, type_: ValueType) -> str | None:
    clocks = {source.clock for source in sources if source.clock is not None}
    if isinstance(type_, TensorType):  # whatever is as long as the past changes with it
        clocks |= {dim.clock for dim in type_.shape if isinstance(dim, Past)}
    if len(clocks) > 1:
        shown = " and ".join(sorted(clocks))
        raise TypeMismatch(f"mixes the clocks {shown}; read the other one through whole()")
    clock = clocks.pop() if clocks else None
    if op.name in ("history", "delay", "whole"):
        if sources[0].clock is None:
            raise TypeMismatch("needs a value that changes over time, and this one is constant")
        if params.get("clock", sources[0].clock) != sources[0].clock:
            raise TypeMismatch(f"a {op.name} of clock {params['clock']} cannot read clock {clock}")
        # Seen from any other clock, a whole sequence is a constant.
        return None if op.name == "whole" else clock
    if op.name in ("feedback", "position", "input"):
        if clock is not None:
            raise TypeMismatch("the initial value must be a constant")
        return params.get("clock")
    return clock


def postorder(roots: Iterable[Key], dependencies: Callable[[Key], Iterable[Key]]) -> list[Key]:
    """Every key that the roots need, each after what it depends on; iterative, first come first."""
    order: list[Key] = []
    done: set[Key] = set()
    for root in roots:
        stack: list[tuple[Key, Iterator[Key]]] = []
        if root not in done:
            done.add(root)
            stack.append((root, iter(dependencies(root))))
        while stack:
            key, pending = stack[-1]
            for dependency in pending:
                if dependency not in done:
                    done.add(dependency)
                    stack.append((dependency, iter(dependencies(dependency))))
                    break
            else:
                stack.pop()
                order.append(key)
    return order


@dataclass(frozen=True, eq=False)
class Graph:
    """Named outputs and everything they need.

    ``feedback`` pairs a feedback node with the stream whose previous value it is. ``inputs`` and
    ``parameters`` keep the signature, also of what no output uses. A graph that comes out of a pickle has its
    name and its ``signature``; its nodes are made when anything else is asked for.
    """

    name: str
    inputs: tuple[Node, ...]
    parameters: tuple[Node, ...]
    outputs: Mapping[str, Node]
    feedback: tuple[tuple[Node, Node], ...] = field(default=())

    if not TYPE_CHECKING:  # to the type checker, what is no field stays a mistake

        def __getattr__(self, name: str) -> Any:
            kept = self.__dict__.get("_kept")
            if kept is None or name not in ("inputs", "parameters", "outputs", "feedback"):
                raise AttributeError(f"a graph has no {name}")
            with kept.lock:
                if name not in self.__dict__:
                    self.__dict__.update(_fields_of_rows(*pickle.loads(kept.rows)))
            return self.__dict__[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __str__(self) -> str:
        return print_graph(self)

    @property
    def _rows(self) -> bytes:
        """All but the name: nodes in a row that name what they read by number, however deep it is."""
        kept = self.__dict__.get("_kept")
        if kept is not None:
            return kept.rows
        number = {node: i for i, node in enumerate(self.nodes)}
        rows = [
            (
                node.op.name,
                [(number[edge.source], edge.access) for edge in node.inputs],
                *(node.params, node.type, node.clock, node.name, node.scope, node.location),
            )
            for node in self.nodes
        ]
        places = [number[node] for node in (*self.inputs, *self.parameters, *self.outputs.values())]
        pairs = [(number[previous], number[value]) for previous, value in self.feedback]
        counts = (len(self.inputs), len(self.parameters), tuple(self.outputs))
        return pickle.dumps((rows, places, counts, pairs), pickle.HIGHEST_PROTOCOL)

    def __reduce__(self) -> tuple[Any, ...]:
        return _kept_graph, (self.name, self.signature, self._rows)

    @property
    def digest(self) -> str:
        """What tells the graph from any other."""
        return hashlib.sha256(self.name.encode() + b"\n" + self._rows).hexdigest()

    @cached_property
    def signature(self) -> Signature:
        """What it takes and yields."""
        inputs, parameters = (
            tuple(Port(node.name, node.type, node.clock) for node in nodes)
            for nodes in (self.inputs, self.parameters)
        )
        outputs = tuple(Port(name, node.type, node.clock) for name, node in self.outputs.items())
        return Signature(inputs, parameters, outputs)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes in topological order: inputs and parameters first, feedback edges cut."""
        roots = [*self.inputs, *self.parameters, *self.outputs.values()]
        roots += [node for pair in self.feedback for node in pair]
        order = postorder(roots, lambda node: node.sources)
        first = {id(node) for node in (*self.inputs, *self.parameters)}
        return (*self.inputs, *self.parameters, *(n for n in order if id(n) not in first))

    @cached_property
    def users(self) -> Mapping[Node, tuple[Node, ...]]:
        """For each node, the nodes that read it."""
        users: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.sources):
                users[source].append(node)
        return {node: tuple(readers) for node, readers in users.items()}

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}

    @property
    def clocks(self) -> tuple[str, ...]:
        """The clocks that tick, in order of appearance."""
        return tuple(dict.fromkeys(n.clock for n in self.nodes if n.clock is not None))

    def certificate(self) -> Certificate:
        """The proof that no output sees the future, or the path that leaks: see ``ir.causality``."""
        return self._certificate

    @cached_property
    def _certificate(self) -> Certificate:
        return certify(self)

    def with_unique_names(self) -> Graph:
        """The same graph with a name of its own for every node; see ``name_nodes``."""
        return name_nodes(self)

    def bind(self, **sizes: int) -> Graph:
        """The same graph with named sizes replaced by numbers; every type is inferred again."""
        return bind_sizes(self, sizes)


@dataclass(frozen=True)
class _Kept:
    """What the nodes of a graph are made from, once, whoever asks for them first."""

    rows: bytes
    lock: RLock = field(default_factory=RLock)


def _kept_graph(name: str, signature: Signature, rows: bytes) -> Graph:
    """The inverse of ``Graph.__reduce__``."""
    graph = object.__new__(Graph)
    graph.__dict__.update(name=name, signature=signature, _kept=_Kept(rows))
    return graph


def _fields_of_rows(rows: list, places: list, counts: tuple, pairs: list) -> dict[str, Any]:
    """The fields of a graph whose nodes ``Graph._rows`` wrote down."""
    nodes: list[Node] = []
    for op, inputs, *rest in rows:
        nodes.append(Node(OPS[op], tuple(Edge(nodes[i], access) for i, access in inputs), *rest))
    found = [nodes[i] for i in places]
    inputs, parameters, names = counts
    behind = inputs + parameters
    return {
        "inputs": tuple(found[:inputs]),
        "parameters": tuple(found[inputs:behind]),
        "outputs": dict(zip(names, found[behind:], strict=True)),
        "feedback": tuple((nodes[previous], nodes[value]) for previous, value in pairs),
    }


# ---- building a graph anew from an old one: the only way in which a pass changes anything ----

Visit = Callable[[Node, tuple[Node, ...]], Node]


def copy_node(node: Node, sources: tuple[Node, ...]) -> Node:
    """The node over new operands; the node itself where they are its own."""
    return rename(node, sources, node.name)


def infer_again(node: Node, sources: tuple[Node, ...]) -> Node:
    """The node over new operands, with its type and clock inferred from them."""
    return make_node(node.op, sources, node.params, name=node.name, scope=node.scope, location=node.location)


def rebuild(graph: Graph, visit: Visit) -> Graph:
    """The graph in which each node is ``visit(node, new operands)``, in topological order.

    Inputs and parameters keep their nodes. What no output needs any more disappears.
    """
    new: dict[Node, Node] = {node: node for node in (*graph.inputs, *graph.parameters)}
    for node in graph.nodes:
        if node not in new:
            new[node] = visit(node, tuple(new[source] for source in node.sources))
    outputs = {name: new[node] for name, node in graph.outputs.items()}
    pairs = tuple((new[previous], new[value]) for previous, value in graph.feedback)
    return Graph(graph.name, graph.inputs, graph.parameters, outputs, pairs)


def replace_parameters(graph: Graph, instead: Mapping[Node, tuple[Node, Node]]) -> Graph:
    """The graph over other parameters: ``instead`` maps each that is replaced to the one in its place, and to
    what is read of that where it was read itself."""
    new: dict[Node, Node] = {node: read for node, (_, read) in instead.items()}
    for node in graph.nodes:
        if node not in new:
            new[node] = copy_node(node, tuple(new[source] for source in node.sources))
    return Graph(
        graph.name,
        graph.inputs,
        tuple(instead[node][0] if node in instead else node for node in graph.parameters),
        {name: new[node] for name, node in graph.outputs.items()},
        tuple((new[previous], new[value]) for previous, value in graph.feedback),
    )


def bind_sizes(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """Replaces named sizes by numbers in every declared type and shape parameter."""

    def bind_shape(shape: tuple) -> tuple:
        return tuple(sizes.get(d.name, d) if isinstance(d, Size) else d for d in shape)

    def bind_params(node: Node) -> dict:
        params = dict(node.params)
        if isinstance(params.get("type"), TensorType):
            params["type"] = params["type"].with_shape(bind_shape(params["type"].shape))
        if "shape" in params:
            params["shape"] = bind_shape(params["shape"])
        return params

    new: dict[Node, Node] = {}
    for node in graph.nodes:
        sources = tuple(new[source] for source in node.sources)
        new[node] = infer_again(replace(node, params=bind_params(node)), sources)
    return Graph(
        graph.name,
        tuple(new[node] for node in graph.inputs),
        tuple(new[node] for node in graph.parameters),
        {name: new[node] for name, node in graph.outputs.items()},
        tuple((new[previous], new[value]) for previous, value in graph.feedback),
    )


def rename(node: Node, sources: tuple[Node, ...], name: str) -> Node:
    """The node with another name, reading ``sources`` instead of its own; itself where nothing changes."""
    edges = node.inputs
    if sources != node.sources:
        edges = tuple([Edge(s, e.access) for s, e in zip(sources, node.inputs, strict=True)])
    elif name == node.name:
        return node
    return Node(node.op, edges, node.params, node.type, node.clock, name, node.scope, node.location)


def name_nodes(graph: Graph) -> Graph:
    """Gives every node its full name, ``scope.op`` or ``scope.label``, numbered where it repeats.

    Names are unique in the graph and stay with a stream through all stages.
    """
    taken = {node.name for node in (*graph.inputs, *graph.parameters)}
    repeats: dict[str, int] = {}  # so that the thousandth "constant" need not try a thousand names

    def unique(node: Node) -> str:
        base = node.name or ".".join(filter(None, (node.scope, node.op.name)))
        name, count = base, repeats.get(base, 0)
        while name in taken:
            count += 1
            name = f"{base}.{count}"
        repeats[base] = count
        taken.add(name)
        return name

    return rebuild(graph, lambda node, sources: rename(node, sources, unique(node)))
