"""Reads the printed form of a graph. Every node is made anew by its op, so types are checked again.

What is wrong is a ``GraphError`` that names the line. See ``text`` for the form.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from ..errors import GraphError
from ..graph import Graph, Node, make_node, postorder
from ..ops import OPS
from ..signature import REQUIRED, keyword_defaults, operand_count
from ..time import NOW, Access, delay_access, parse_access
from ..types import DTYPES, TensorType, ValueType, parse_dim, show_type
from .lines import Cursor, Statement, read_statements
from .text import read_elements

_WORDS = {"true": True, "false": False, "none": None}
_DECLARING_OPS = {"input": "input", "param": "parameter"}


def parse_graph(text: str) -> Graph:
    """The graph that prints as ``text``; ``GraphError`` with the line number if there is none."""
    sections: dict[str, list[Statement]] = {}
    for statement in read_statements(text):
        if statement.keyword == "graph":
            if statement.name in sections:
                statement.cursor.fail(f"there are two graphs {statement.name!r}")
            sections[statement.name] = []
        if not sections:
            statement.cursor.fail("expected 'graph NAME' first")
        next(reversed(sections.values())).append(statement)
    if not sections:
        raise GraphError("the text holds no graph")

    def bodies_of(label: str) -> Iterator[str]:
        for statement in sections[label][1:]:
            yield from (body for body in statement.cursor.graphs() if body in sections)

    main = next(iter(sections))
    graphs: dict[str, Graph] = {}
    for label in postorder([main], bodies_of):
        header, *statements = sections.pop(label)
        graphs[label] = _Section(header, statements, graphs).read()
    for header, *_ in sections.values():
        header.cursor.fail(f"nothing uses the graph {header.name!r}")
    return graphs[main]


# ---- one graph ----


@dataclass
class _Section:
    """One graph while it is read; ``bodies`` are the graphs that its loops may name."""

    header: Statement
    statements: list[Statement]
    bodies: Mapping[str, Graph]
    nodes: dict[str, Node] = field(default_factory=dict)
    outputs: dict[str, Node] = field(default_factory=dict)
    feedback: list[tuple[Node, Node]] = field(default_factory=list)

    def read(self) -> Graph:
        cursor = self.header.cursor
        name = cursor.name() if cursor.accept("named") else self.header.name
        cursor.expect_end()
        literal_names = _names_apart_from({statement.name for statement in self.statements})
        declared: dict[str, list[Node]] = {"input": [], "param": []}
        for statement in self.statements:
            match statement.keyword:
                case "feedback":
                    self._read_feedback(statement)
                case "output":
                    self._read_output(statement)
                case "input" | "param":
                    declared[statement.keyword].append(self._read_declaration(statement))
                case _:
                    self._read_node(statement, literal_names)
            statement.cursor.expect_end()
        return Graph(
            name, tuple(declared["input"]), tuple(declared["param"]), self.outputs, tuple(self.feedback)
        )

    def _read_feedback(self, statement: Statement) -> None:
        cursor = statement.cursor
        cursor.expect("<-")
        value = self._known(cursor, cursor.name())
        if _access(cursor) != delay_access(1):
            cursor.fail(f"a feedback reads the position before: expected '[{delay_access(1)}]'")
        self.feedback.append((self._known(cursor, statement.name), value))

    def _read_output(self, statement: Statement) -> None:
        cursor = statement.cursor
        cursor.expect("=")
        if statement.name in self.outputs:
            cursor.fail(f"there are two outputs {statement.name!r}")
        self.outputs[statement.name] = self._known(cursor, cursor.name())

    def _read_declaration(self, statement: Statement) -> Node:
        cursor = statement.cursor
        cursor.expect(":")
        params: dict[str, Any] = {"type": cursor.type()}
        if statement.keyword == "input":
            params["clock"] = cursor.take()[1][1:] if cursor.peek()[0] == "clock" else None
        return self._make(statement, _DECLARING_OPS[statement.keyword], [], params)

    def _read_node(self, statement: Statement, literal_names: Iterator[str]) -> None:
        cursor = statement.cursor
        cursor.expect(":")
        printed = cursor.type()
        cursor.expect("=")
        op = cursor.take()[1]
        if op not in OPS:
            cursor.fail(f"no op is called {op!r}")
        sources, accesses, params = self._arguments(statement, literal_names)
        node = self._make(statement, op, sources, params)
        if node.type != printed:
            cursor.fail(f"{node.name} is {show_type(node.type)}, not {show_type(printed)}")
        for edge, access in zip(node.inputs, accesses, strict=True):
            if edge.access != access:
                cursor.fail(f"{node.name} reads {edge.source.name}[{edge.access}], not [{access}]")

    def _arguments(
        self, statement: Statement, literal_names: Iterator[str]
    ) -> tuple[list[Node], list[Access], dict[str, Any]]:
        cursor = statement.cursor
        sources: list[Node] = []
        accesses: list[Access] = []
        params: dict[str, Any] = {}
        cursor.expect("(")
        while not cursor.accept(")"):
            if sources or params:
                cursor.expect(",")
            kind, text = cursor.peek()
            if cursor.peek(1)[1] == "=":
                cursor.at += 2
                params[text] = _value(cursor, self.bodies)
                continue
            if params:
                cursor.fail(f"operands come before parameters, but {text!r} comes later")
            if kind == "number" or text in ("true", "false"):
                sources.append(_literal(cursor, next(literal_names)))
            else:
                sources.append(self._known(cursor, cursor.name(statement.scope)))
            accesses.append(_access(cursor))
        return sources, accesses, params

    def _known(self, cursor: Cursor, name: str) -> Node:
        if name not in self.nodes:
            cursor.fail(f"nothing is named {name!r} before this line")
        return self.nodes[name]

    def _make(
        self, statement: Statement, op_name: str, sources: list[Node], params: Mapping[str, Any]
    ) -> Node:
        cursor, op = statement.cursor, OPS[op_name]
        if statement.name in self.nodes:
            cursor.fail(f"there are two nodes {statement.name!r}")
        expected = keyword_defaults(op)
        for key in params:
            if key not in expected:
                cursor.fail(f"{op_name} has no parameter {key!r}; it has {', '.join(expected) or 'none'}")
        params = {key: params.get(key, default) for key, default in expected.items()}
        for key, value in params.items():
            if value is REQUIRED:
                cursor.fail(f"{op_name} needs a parameter {key!r}")
        if operand_count(op) not in (None, len(sources)):
            cursor.fail(f"{op_name} takes {operand_count(op)} operands, not {len(sources)}")
        try:
            node = make_node(
                op, sources, params, name=statement.name, scope=statement.scope, location=cursor.location
            )
        except GraphError as error:
            cursor.fail(error.message)
        except (TypeError, ValueError, AttributeError, LookupError) as error:  # a parameter of a wrong kind
            cursor.fail(f"{op_name} cannot have these operands and parameters: {error}")
        self.nodes[node.name] = node
        return node


def _names_apart_from(taken: Collection[str]) -> Iterator[str]:
    """``constant``, ``constant.1`` … for the literals, as far as nothing else has that name."""
    names = (f"constant.{number}" if number else "constant" for number in count())
    return (name for name in names if name not in taken)


# ---- values ----


def _access(cursor: Cursor) -> Access:
    return parse_access(cursor.take()[1][1:-1]) if cursor.peek()[0] == "access" else NOW


def _literal(cursor: Cursor, name: str) -> Node:
    text, _, dtype = cursor.take()[1].partition(":")
    if not dtype:
        dtype = "bool" if text in _WORDS else "f32" if _is_float(text) else "i32"
    array = _array(cursor, TensorType((), dtype), [text])
    return make_node(OPS["constant"], (), {"value": array}, name=name)


def _is_float(text: str) -> bool:
    return not text.lstrip("-").isdigit()


def _value(cursor: Cursor, bodies: Mapping[str, Graph]) -> Any:
    kind, text = cursor.peek()
    if kind == "string":
        return cursor.string()
    if kind == "type":
        type_ = cursor.type()
        return _elements(cursor, type_) if cursor.accept("{") else type_
    if kind == "number":
        cursor.take()
        return float(text) if _is_float(text) else int(text)
    if cursor.accept("["):
        entries: list[Any] = []
        while not cursor.accept("]"):
            if entries:
                cursor.expect(",")
            entries.append(_value(cursor, bodies))
        return tuple(entries)
    if cursor.accept("graph"):
        label = cursor.name()
        if label not in bodies:
            cursor.fail(f"there is no graph {label!r} to use here")
        return bodies[label]
    cursor.take()
    try:
        return _WORDS[text] if text in _WORDS else parse_dim(text)
    except ValueError:
        cursor.fail(f"{text!r} is not a value")


def _elements(cursor: Cursor, type_: ValueType) -> np.ndarray:
    assert isinstance(type_, TensorType)  # a value starts with one type only
    texts: list[str] = []
    if cursor.peek()[0] == "string":
        encoded = cursor.string()
        cursor.expect("}")
        return _decoded(cursor, type_, encoded)
    while not cursor.accept("}"):
        if texts:
            cursor.expect(",")
        texts.append(cursor.take()[1])
    return _array(cursor, type_, texts)


def _decoded(cursor: Cursor, type_: TensorType, encoded: str) -> np.ndarray:
    try:
        data = base64.b64decode(encoded, validate=True)
        return np.frombuffer(data, DTYPES[type_.dtype]).reshape(type_.static_shape)
    except (ValueError, binascii.Error) as error:
        cursor.fail(f"the elements of {type_} cannot be read: {error}")


def _array(cursor: Cursor, type_: TensorType, texts: list[str]) -> np.ndarray:
    try:
        array = read_elements(texts, type_.dtype).reshape(type_.static_shape)
    except ValueError as error:
        cursor.fail(f"{', '.join(texts)} cannot be elements of {type_}: {error}")
    array.setflags(write=False)
    return array
