"""The lines of the printed form, cut into tokens. See ``text`` for the form, ``parse`` for its meaning."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from ..errors import GraphError, Location
from ..types import DTYPES, TensorType, ValueType, parse_type
from .repeats import expand_repeats
from .text import BARE_NAME, RESERVED

_DTYPE = "|".join(DTYPES)
_TOKEN = re.compile(
    rf"""(?P<space>\s+)
    | (?P<comment>\#.*)
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<type>(?:{_DTYPE})\[[^\]]*\])
    | (?P<number>-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf|nan)(?::(?:{_DTYPE}))?(?![\w.\-/@]))
    | (?P<access>\[(?::|(?:(?:0|t(?:-\d+)?):)?t(?:-\d+)?)\])
    | (?P<word>\$?[A-Za-z_.][\w.\-/@]*)
    | (?P<clock>@\w+)
    | (?P<mark><-|[()\[\]{{}},=:])""",
    re.VERBOSE,
)
_LOCATION = re.compile(r"#(?:.* \|)?\s*(.+):(\d+)\s*")  # behind columns of numbers, if there are any
_KEYWORDS = ("graph", "scope", "input", "param", "feedback", "output")


@dataclass
class Cursor:
    """The tokens of one line (kind and text), and how far they have been read."""

    line: int
    tokens: list[tuple[str, str]]
    location: Location | None = None
    at: int = 0

    def fail(self, message: str) -> NoReturn:
        raise GraphError(f"line {self.line}: {message}")

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        position = self.at + ahead
        return self.tokens[position] if position < len(self.tokens) else ("end", "end of line")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def accept(self, text: str) -> bool:
        found = self.peek()[1] == text
        self.at += found
        return found

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"expected {text!r}, not {self.peek()[1]!r}")

    def expect_end(self) -> None:
        if self.peek()[0] != "end":
            self.fail(f"expected the end of the line, not {self.peek()[1]!r}")

    def name(self, scope: str = "") -> str:
        """A name in full: bare, quoted, or relative to ``scope``."""
        kind, text = self.take()
        if kind == "string":
            return self._unquote(text)
        if kind == "word" and text.startswith(".") and scope:
            return scope + text
        if kind != "word" or not BARE_NAME.fullmatch(text) or text in RESERVED:
            self.fail(f"expected a name, not {text!r}")
        return text

    def graphs(self) -> Iterator[str]:
        """The graphs that the rest of the line names, without reading it."""
        for (_, before), (kind, text) in pairwise(self.tokens[self.at :]):
            if before == "graph":
                yield self._unquote(text) if kind == "string" else text

    def string(self) -> str:
        return self._unquote(self.take()[1])

    def _unquote(self, text: str) -> str:
        try:
            return str(json.loads(text))
        except ValueError as error:
            self.fail(f"{text} is not a string: {error}")

    def type(self) -> ValueType:
        """``f32[4]``, or ``(f32[4], i32[2])``."""
        if not self.accept("("):
            return self._tensor_type()
        types: list[TensorType] = []
        while not self.accept(")"):
            if types:
                self.expect(",")
            types.append(self._tensor_type())
        return tuple(types)

    def _tensor_type(self) -> TensorType:
        _, text = self.take()
        try:
            return parse_type(text)
        except ValueError as error:
            self.fail(str(error))


@dataclass
class Statement:
    """One line: its keyword (none for a node), the name that it introduces, and the rest."""

    keyword: str
    name: str
    scope: str
    cursor: Cursor


def read_statements(text: str) -> Iterator[Statement]:
    """The statements of a text, in which repeats are written out."""
    scope = ""
    for number, line in expand_repeats(text):
        cursor = _tokenize(number, line)
        if not cursor.tokens:
            continue
        if not line[0].isspace():
            scope = ""
        elif not scope:
            cursor.fail("a line is indented, but no scope is open")
        is_keyword = cursor.peek()[1] in _KEYWORDS and cursor.peek(1)[1] != ":"
        keyword = cursor.take()[1] if is_keyword else ""
        statement = Statement(keyword, cursor.name(scope), scope, cursor)
        if keyword == "scope":
            scope = statement.name
            cursor.expect_end()
        else:
            yield statement


def _tokenize(number: int, line: str) -> Cursor:
    cursor, at = Cursor(number, []), 0
    while at < len(line):
        match = _TOKEN.match(line, at)
        if match is None:
            cursor.fail(f"cannot read {line[at:]!r}")
        at = match.end()
        kind = str(match.lastgroup)
        if kind == "comment":
            written = _LOCATION.fullmatch(match[0])
            cursor.location = Location(written[1], int(written[2])) if written else None
        elif kind != "space":
            cursor.tokens.append((kind, match[0]))
    return cursor
