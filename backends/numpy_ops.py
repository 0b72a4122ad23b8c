"""How each op reads as NumPy source: one table, keyed by op name.

Most ops have no line of their own here: what is emitted is the body of the op itself, inlined where it is
one plain expression (``np.max(x, axis=(1,))``), called by name otherwise. The table adds operators
(``x + y``), what needs types (contractions, casts, constants), and writes in place.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..compiler.program import STATE_PREFIX
from ..ir.graph import Node
from ..ir.op import Op
from ..ir.ops import OPS
from .numpy_contraction import contraction_source
from .numpy_literals import dtype_source, number_source, quoted

Array = np.ndarray

# ---- the body of an op ----


@dataclass(frozen=True, slots=True)
class Body:
    """The NumPy body of an op: its source, and a template where it is one plain expression."""

    source: str
    template: str | None
    operands: tuple[str, ...]
    takes_any_number: bool

    @staticmethod
    def of(op: Op) -> Body:
        """Reads the op's source."""
        text = textwrap.dedent(inspect.getsource(op.numpy))
        function = ast.parse(text).body[0]
        assert isinstance(function, ast.FunctionDef)
        source = "\n".join(text.splitlines()[function.lineno - 1 :])  # without the decorator
        rest = function.args.vararg
        operands = tuple(argument.arg for argument in ((rest and [rest]) or function.args.args))
        names = {*operands, *(argument.arg for argument in function.args.kwonlyargs)}
        last = function.body[-1]
        template = None
        if (
            len(function.body) == 2
            and isinstance(last, ast.Return)
            and last.value
            and _is_plain(last.value, names)
        ):
            template = ast.unparse(_Placeholders(names).visit(last.value))
        return Body(source, template, operands, rest is not None)

    def call(self, node: Node, operands: tuple[str, ...]) -> str:
        """The node's op applied to operands given as source."""
        shown = {name: repr(value) for name, value in node.params.items()}
        if self.template is None:
            keywords = [f"{name}={value}" for name, value in shown.items()]
            return f"{node.op.numpy.__name__}({', '.join([*operands, *keywords])})"
        together = f"({', '.join(operands)})" if len(operands) > 1 else f"({''.join(operands)},)"
        given = (together,) if self.takes_any_number else operands
        for name, text, source in zip(self.operands, given, node.sources, strict=False):
            shown |= {name: text, f"{name}_dtype": dtype_source(source.tensor.dtype)}
        return self.template.format(**shown)


def _is_plain(expression: ast.AST, names: set[str]) -> bool:
    """Whether the expression consists of NumPy calls over the op's own arguments."""
    allowed = (ast.Call, ast.Attribute, ast.Name, ast.Constant, ast.keyword, ast.Load)
    nodes = list(ast.walk(expression))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    return all(isinstance(node, allowed) for node in nodes) and used <= {"np", *names}


class _Placeholders(ast.NodeTransformer):
    """Puts braces around the names to be filled in: ``x.dtype`` becomes ``{x_dtype}``."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and node.value.id in self.names and node.attr == "dtype":
            return ast.Name(f"{{{node.value.id}_dtype}}", node.ctx)
        self.generic_visit(node)
        return node

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name("{" + node.id + "}", node.ctx) if node.id in self.names else node


# ---- one emission ----


@dataclass
class Emission:
    """What is collected while a module is emitted, beside its lines.

    ``helpers`` are the functions that lines call, by name; ``in_place`` are the ``write_rows`` that write
    into their first operand; ``repeats`` are the names of the functions that loops repeat.
    """

    helpers: dict[str, str] = field(default_factory=dict)
    in_place: set[Node] = field(default_factory=set)
    repeats: dict[Node, str] = field(default_factory=dict)
    bodies: dict[str, Body] = field(default_factory=dict)

    def body(self, op: Op) -> Body:
        if op.name not in self.bodies:
            self.bodies[op.name] = Body.of(op)
        return self.bodies[op.name]

    def helper(self, function: Callable) -> str:
        """Includes a function in the module; its name."""
        self.helpers.setdefault(function.__name__, inspect.getsource(function).rstrip())
        return function.__name__


Expression = Callable[..., str]  # (emission, node, *operands as source)


def _own_body(emission: Emission, node: Node, *operands: str) -> str:
    body = emission.body(node.op)
    if body.template is None:
        emission.helpers.setdefault(node.op.numpy.__name__, body.source)
    return body.call(node, operands)


def _operator(symbol: str) -> Expression:
    return lambda emission, node, x, y: f"{x} {symbol} {y}"


def _prefix(symbol: str) -> Expression:
    return lambda emission, node, x: f"{symbol}{x}"


def _outside(emission: Emission, node: Node) -> str:
    if node.op.name == "parameter":
        return f"parameters[{quoted(node.name)}]"
    if node.name.startswith(STATE_PREFIX):
        return f"states[{quoted(node.name.removeprefix(STATE_PREFIX))}]"
    return f"inputs[{quoted(node.name)}]"


def _constant(emission: Emission, node: Node) -> str:
    return number_source(node)


def _arange(emission: Emission, node: Node) -> str:
    return f"np.arange({node.params['size']}, dtype={dtype_source(node.tensor.dtype)})"


def _cast(emission: Emission, node: Node, x: str) -> str:
    return f"{x}.astype({dtype_source(node.tensor.dtype)})"


def _bitcast(emission: Emission, node: Node, x: str) -> str:
    return f"{x}.view({dtype_source(node.tensor.dtype)})"


def _reshape(emission: Emission, node: Node, x: str) -> str:
    return f"{x}.reshape({', '.join(map(str, node.tensor.static_shape)) or '()'})"


def _transpose(emission: Emission, node: Node, x: str) -> str:
    permutation = node.params["permutation"]
    return f"{x}.T" if permutation == (1, 0) else f"{x}.transpose({', '.join(map(str, permutation))})"


def _slice(emission: Emission, node: Node, x: str) -> str:
    bounds = zip(node.params["starts"], node.params["limits"], node.sources[0].tensor.shape, strict=True)
    parts = [":" if (start, limit) == (0, dim) else f"{start}:{limit}" for start, limit, dim in bounds]
    while parts and parts[-1] == ":":
        parts.pop()
    return f"{x}[{', '.join(parts)}]" if parts else x


def _contraction(emission: Emission, node: Node, x: str, y: str) -> str:
    types = (node.sources[0].tensor, node.sources[1].tensor)
    return contraction_source(x, y, types, node.params["subscripts"], dtype_source(node.tensor.dtype))


def write_rows_in_place(x: Array, values: Array, index: Array, *, axis: int = 1) -> Array:
    """x itself, with slot index[b, i] of row b, on ``axis``, set to values[b, i], if there is such a slot"""
    row, column = np.nonzero((index >= 0) & (index < x.shape[axis]))
    np.moveaxis(x, axis, 1)[row, index[row, column]] = values[row, column]
    return x


def _write_rows(emission: Emission, node: Node, x: str, values: str, index: str) -> str:
    if node not in emission.in_place:
        return _own_body(emission, node, x, values, index)
    axis = node.params.get("axis", 1)
    on_axis = f", axis={axis}" if axis != 1 else ""
    return f"{emission.helper(write_rows_in_place)}({x}, {values}, {index}{on_axis})"


def repeat(body, carried, scanned, unchanged, length, early=False):
    """Runs ``body`` for each position, in order: what is carried, then its other results joined on axis 1.

    With ``early`` it ends when the first carried value is false; zeros follow.
    """
    joined = []
    for i in range(length):
        position = [array[:, i : i + 1] for array in scanned]
        results = body(*carried, *position, *unchanged)
        carried = results[: len(carried)]
        joined.append(results[len(carried) :])
        if early and not carried[0]:
            break
    joined += [[np.zeros_like(part) for part in joined[-1]]] * (length - len(joined))
    return (*carried, *(np.concatenate(parts, axis=1) for parts in zip(*joined, strict=True)))


def _loop(emission: Emission, node: Node, *operands: str) -> str:
    carries, scanned = node.params["carries"], node.params["scanned"]
    groups = (operands[:carries], operands[carries : carries + scanned], operands[carries + scanned :])
    shown = ", ".join(f"[{', '.join(group)}]" for group in groups)
    ending = ", early=True" if node.params.get("early") else ""
    length = f"length={node.params['length']}"
    return f"{emission.helper(repeat)}({emission.repeats[node]}, {shown}, {length}{ending})"


def _part(emission: Emission, node: Node, x: str) -> str:
    return f"{x}[{node.params['index']}]"


_OPERATORS = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "floor_divide": "//",
    "remainder": "%",
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "logical_and": "&",
    "logical_or": "|",
}
EXPRESSIONS: dict[str, Expression] = {
    # An op that is not named below is written as its own NumPy body.
    **{name: _own_body for name, op in OPS.items() if op.kind != "time"},
    "input": _outside,
    "parameter": _outside,
    "constant": _constant,
    "arange": _arange,
    "negative": _prefix("-"),
    "logical_not": _prefix("~"),
    **{name: _operator(symbol) for name, symbol in _OPERATORS.items()},
    "cast": _cast,
    "bitcast": _bitcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "contraction": _contraction,
    "write_rows": _write_rows,
    "loop": _loop,
    "part": _part,
}
