"""Repeats in the printed form, and the lines that they stand for.

    repeat layers.0-31 as i, x = embed.take then layers.{i-1}.mlp.x
      scope layers.{i}.attn
        .multiply: f32[64] = multiply({x}, {x})

writes its indented lines once for each number; ``by 2`` counts in twos. ``{i}`` and ``{i-1}`` are
numbers, ``{x}`` is the first name for the first number and the second, seen from it, for the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..errors import GraphError

INDENT = "  "
_NAME = r'"(?:[^"\\]|\\.)*"|[^\s,"]+'
_HEAD = re.compile(
    r"repeat [^\s,]+\.(\d+)-(\d+)(?: by (\d+))? as (\w+)"
    rf"((?:, \w+ = (?:{_NAME}) then (?:{_NAME}))*)\s*(?:#.*)?"
)
_CARRIED = re.compile(rf", (\w+) = ({_NAME}) then ({_NAME})")
Line = tuple[int, str]  # the number of the line in the text, for messages


def show_repeat(span: str, index: str, carried: Mapping[str, tuple[str, str]]) -> str:
    """The head of a repeat: ``span`` is ``layers.0-31`` or ``layers.0-30 by 2``."""
    names = [f", {name} = {first} then {then}" for name, (first, then) in carried.items()]
    return f"repeat {span} as {index}{''.join(names)}"


def expand_repeats(text: str) -> Iterator[Line]:
    """The lines of a text with every repeat written out; ``GraphError`` for a head that cannot be read."""
    lines = list(enumerate(text.split("\n"), start=1))
    at = 0
    while at < len(lines):
        number, line = lines[at]
        at += 1
        if not line.startswith("repeat "):
            yield number, line
            continue
        body = []
        while at < len(lines) and (not lines[at][1].strip() or lines[at][1][0].isspace()):
            body.append((lines[at][0], lines[at][1].removeprefix(INDENT)))
            at += 1
        yield from _written_out(number, line, body)


def _written_out(number: int, head: str, body: list[Line]) -> Iterator[Line]:
    match = _HEAD.fullmatch(head)
    if match is None:
        raise GraphError(f"line {number}: expected 'repeat SCOPE.0-31 as i', not {head!r}")
    first, last, period, index = int(match[1]), int(match[2]), int(match[3] or 1), match[4]
    if period < 1 or last < first or (last + 1 - first) % period:
        raise GraphError(f"line {number}: {first}-{last} cannot be cut into parts of {period}")
    names = _CARRIED.findall(match[5])
    for base in range(first, last + 1, period):
        values = {name: start if base == first else then for name, start, then in names}
        for line_number, line in body:
            for name, value in values.items():
                line = line.replace(f"{{{name}}}", value)
            yield line_number, _with_numbers(line, index, base)


def _with_numbers(line: str, index: str, base: int) -> str:
    return re.sub(rf"\{{{index}([+-]\d+)?\}}", lambda match: str(base + int(match[1] or 0)), line)
