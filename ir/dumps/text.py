"""The printed form of a graph: what a user sees first, and what golden tests compare.

    graph llama

    input token: i32[] @main
    param embed: f32[512,64]

    take: f32[64] = take(embed, token, axis=0)                     # llama.py:7

    scope layers.0.attn
      .k: f32[4,8] = reshape(.contraction, shape=[4,8])            # llama.py:12
      .history: f32[past,4,8] = history(.k[0:t])                   # llama.py:13
      .multiply: f32[4,past] = multiply(.contraction.1, 0.125)

    output logits = head.contraction

Inside a scope, a name that starts with the scope is written with a leading dot. An edge that reads
other positions than *now* shows which. Parameters that have their default value are left out.
Scalar constants that were never named are written where they are used; ``0.5`` is f32, ``3`` is
i32, other types follow a colon: ``0.5:bf16``. The body of a loop follows as a graph of its own.
``parse_graph`` reads all of it back, and prints the same again.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np

from ..signature import REQUIRED, keyword_defaults
from ..time import NOW, delay_access
from ..types import DTYPES, FLOATS, Past, Size, TensorType, Whole, dtype_name, show_type

if TYPE_CHECKING:
    from ..graph import Graph, Node

COMMENT_COLUMN = 96  # where source locations start, unless the line is longer
LISTED_ELEMENTS = 64  # longer arrays are written as base64
PLAIN_DTYPES = ("f32", "i32", "bool")  # a literal without a type has the first that fits it

BARE_NAME = re.compile(r"[A-Za-z_][\w.\-/@]*")
RELATIVE_NAME = re.compile(r"\.[\w\-/@][\w.\-/@]*")
RESERVED = frozenset({*DTYPES, "true", "false", "none", "inf", "nan", "graph"})
Note = Callable[["Node"], str]
LabelOf = Callable[["Graph"], str]  # the label, as written, of the section that a body gets
_UNNAMED_CONSTANT = re.compile(r"(?:.*\.)?constant(?:\.\d+)*")


def print_graph(graph: Graph, *, locations: bool = True, note: Note | None = None) -> str:
    """The graph as text, with the user's source lines as comments unless ``locations`` is false.

    ``note`` says something of each node, in front of its source line.
    """
    sections = Sections(comments(locations, note))
    sections.reference(graph)
    return "\n\n".join(sections.texts())


def comments(locations: bool, note: Note | None) -> Note:
    """What stands behind the line of a node: its note, its source line, both or nothing."""

    def comment(node: Node) -> str:
        location = str(node.location) if locations and node.location else ""
        return " | ".join(filter(None, (note(node) if note else "", location)))

    return comment


class Sections:
    """The graphs that one text holds, each under a label of its own, with ``comment`` behind a node."""

    def __init__(self, comment: Note) -> None:
        self._comment = comment
        self._graphs: dict[str, Graph] = {}

    def reference(self, graph: Graph) -> str:
        """Takes up a graph, and yields its label as it is written: its name, numbered where it is taken."""
        numbered = (f"{graph.name}.{number}" for number in count(1))
        label = next(label for label in chain([graph.name], numbered) if label not in self._graphs)
        self._graphs[label] = graph
        return show_name(label)

    def texts(self, start: int = 0) -> Iterator[str]:
        """The sections from ``start`` on, and those that their loops take up meanwhile."""
        while start < len(self._graphs):
            label, graph = list(self._graphs.items())[start]
            yield "\n".join(_section(label, graph, self.reference, self._comment))
            start += 1


def same(graph: Graph, other: Graph) -> bool:
    """Whether two graphs are equal: they print the same, wherever they were written."""
    return print_graph(graph, locations=False) == print_graph(other, locations=False)


def _section(label: str, graph: Graph, label_of: LabelOf, comment: Note) -> Iterator[str]:
    if len({node.name for node in graph.nodes} - {""}) < len(graph.nodes):
        graph = graph.with_unique_names()
    yield f"graph {show_name(label)}" + ("" if label == graph.name else f" named {show_name(graph.name)}")
    literals = inline_literals(graph)
    declared = set(graph.inputs) | set(graph.parameters)
    block: tuple[str, bool] | None = None
    for node in graph.nodes:
        if node in literals:
            continue
        if (node.scope, node in declared) != block:
            block = (node.scope, node in declared)
            yield from ("", f"scope {show_name(node.scope)}") if node.scope else ("",)
        line = "  " if node.scope else ""
        line += _declaration(node) if node in declared else _definition(node, literals, label_of)
        yield with_comment(line, comment(node))
    yield ""
    for previous, value in graph.feedback:
        yield f"feedback {show_name(previous.name)} <- {show_name(value.name)}[{delay_access(1)}]"
    for name, node in graph.outputs.items():
        yield f"output {show_name(name)} = {show_name(node.name)}"


def _declaration(node: Node) -> str:
    return show_declaration(node, show_name(node.name, node.scope))


def show_declaration(node: Node, name: str) -> str:
    """An input or a parameter; ``name`` is how its name is written here."""
    keyword = "param" if node.op.name == "parameter" else node.op.name
    clock = f" @{node.clock}" if node.clock is not None else ""
    return f"{keyword} {name}: {show_type(node.type)}{clock}"


def _definition(node: Node, literals: Mapping[Node, str], label_of: LabelOf) -> str:
    sources = [literals.get(s) or show_name(s.name, node.scope) for s in node.sources]
    return show_definition(node, show_name(node.name, node.scope), sources, show_params(node, label_of))


def with_comment(line: str, comment: str) -> str:
    return f"{line:<{COMMENT_COLUMN}}  # {comment}" if comment else line


def show_definition(node: Node, name: str, sources: Sequence[str], params: Sequence[str]) -> str:
    """A node whose own name, operands and parameters are written as given."""
    reads = [
        source if edge.access == NOW else f"{source}[{edge.access}]"
        for source, edge in zip(sources, node.inputs, strict=True)
    ]
    return f"{name}: {show_type(node.type)} = {node.op.name}({', '.join([*reads, *params])})"


def show_params(node: Node, label_of: LabelOf) -> list[str]:
    """The parameters that do not have their default value, as ``axis=0``."""
    defaults = keyword_defaults(node.op)
    return [
        f"{key}={_show_value(value, label_of)}"
        for key, value in node.params.items()
        if not _is_default(value, defaults.get(key, REQUIRED))
    ]


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (isinstance(default, (str, int)) and value == default)


def show_name(name: str, scope: str = "") -> str:
    """The name as it is written inside ``scope``: relative where it can be, quoted where it must be."""
    if scope and name.startswith(scope) and RELATIVE_NAME.fullmatch(name, len(scope)):
        return name[len(scope) :]
    return name if BARE_NAME.fullmatch(name) and name not in RESERVED else json.dumps(name)


# ---- parameters ----


def _show_value(value: Any, label_of: LabelOf) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{','.join(_show_value(entry, label_of) for entry in value)}]"
    if isinstance(value, np.ndarray):
        return show_array(value)
    if isinstance(value, (TensorType, Past, Whole, Size)):
        return str(value)
    if value is None or isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (int, float, np.integer, np.floating)):
        return repr(value if isinstance(value, (int, float)) else value.item())
    if hasattr(value, "nodes"):  # a graph, which this module cannot name: graphs print themselves with it
        return f"graph {label_of(value)}"
    raise TypeError(f"{value!r} has no printed form")


def show_array(array: np.ndarray) -> str:
    """An array as ``f32[2]{1.0, 2.5}``, or as ``f32[128]{"base64"}``."""
    dtype = dtype_name(array.dtype)
    type_ = TensorType(array.shape, dtype)
    if array.size <= LISTED_ELEMENTS:
        elements = [show_scalar(element) for element in array.reshape(-1)]
        if read_elements(elements, dtype).tobytes() == array.tobytes():
            return f"{type_}{{{', '.join(elements)}}}"
    return f'{type_}{{"{base64.b64encode(array.tobytes()).decode()}"}}'


def show_scalar(element: np.generic) -> str:
    """The shortest text that reads back as the same number."""
    dtype = dtype_name(element.dtype)
    if dtype == "bool":
        return str(bool(element)).lower()
    if dtype in FLOATS:
        return str(element if dtype == "f64" else element.astype(np.float32))
    return str(int(element))


def read_elements(texts: list[str], dtype: str) -> np.ndarray:
    """The inverse of ``show_scalar``, for a list of elements; ``ValueError`` when one does not fit."""
    if dtype == "bool":
        return np.array([("false", "true").index(text) for text in texts], bool)
    convert = float if dtype in FLOATS else int
    try:
        return np.array([convert(text) for text in texts], np.float64 if dtype in FLOATS else object).astype(
            DTYPES[dtype]
        )
    except OverflowError as error:
        raise ValueError(str(error)) from None


def inline_literals(graph: Graph) -> dict[Node, str]:
    """The scalar constants that are written where they are used, each with its literal."""
    kept = {*graph.outputs.values(), *(value for _, value in graph.feedback)}
    literals = {}
    for node in graph.nodes:
        if node.op.name == "constant" and node not in kept and _UNNAMED_CONSTANT.fullmatch(node.name):
            value = node.params["value"]
            if value.ndim == 0 and not show_array(value).endswith('"}'):
                dtype = dtype_name(value.dtype)
                suffix = "" if dtype in PLAIN_DTYPES else f":{dtype}"
                literals[node] = show_scalar(value[()]) + suffix
    return literals
