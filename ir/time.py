"""The algebra of time: which positions an edge reads, and what a path of edges reads in the end.

At position t an ``Access`` reads the interval t + oldest … t + newest (clipped to the positions that
exist); ``None`` is without end. Along a path intervals add up. What reaches a value over several
paths is a ``Reach``: a union of disjoint intervals.

    now        t             Access(0, 0)
    delay 2    t-2           Access(-2, -2)
    window 8   t-7:t         Access(-7, 0)
    prefix     0:t           Access(None, 0)
    whole      :             Access(None, None)
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Access:
    """The positions, relative to t, that an edge reads; ``None`` means without end."""

    oldest: int | None = 0
    newest: int | None = 0

    def __str__(self) -> str:
        if self.newest is None:
            return ":"
        newest = f"t-{-self.newest}" if self.newest else "t"
        if self.oldest == self.newest:
            return newest
        return f"{'0' if self.oldest is None else f't-{-self.oldest}'}:{newest}"

    @property
    def is_causal(self) -> bool:
        return self.newest is not None and self.newest <= 0

    def then(self, earlier: Access) -> Access:
        """What is read along a path: this edge, and from there ``earlier``. Offsets add up."""
        oldest = None if self.oldest is None or earlier.oldest is None else self.oldest + earlier.oldest
        newest = None if self.newest is None or earlier.newest is None else self.newest + earlier.newest
        return Access(oldest, newest)

    def steps(self, t: int, length: int) -> range:
        """The positions read at ``t`` of a sequence of ``length``."""
        start = 0 if self.oldest is None else max(0, t + self.oldest)
        stop = length if self.newest is None else min(length, t + self.newest + 1)
        return range(start, max(start, stop))

    def describe(self) -> str:
        """The access in the words of the design: ``now``, ``window 8``, ``prefix`` …"""
        if self.newest is None:
            return "whole"
        if self.oldest == self.newest:
            return "now" if self.newest == 0 else f"delay {-self.newest}"
        if self.newest == 0:
            return "prefix" if self.oldest is None else f"window {1 - self.oldest}"
        return f"positions {self}"


NOW = Access(0, 0)
PREFIX = Access(None, 0)
WHOLE = Access(None, None)


def delay_access(steps: int) -> Access:
    """Reads one value, ``steps`` positions ago."""
    return Access(-steps, -steps)


def window_access(window: int | None) -> Access:
    """Reads the last ``window`` positions, this one included; ``None`` is the whole prefix."""
    return PREFIX if window is None else Access(1 - window, 0)


def parse_access(text: str) -> Access:
    """The inverse of ``str`` on an access; ``ValueError`` when it is none."""
    if text == ":":
        return WHOLE
    match = re.fullmatch(r"(?:(0|t(?:-(\d+))?):)?t(?:-(\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is not an access like t, t-2, t-7:t, 0:t or :")
    start, oldest, newest = match[1], -int(match[2] or 0), -int(match[3] or 0)
    if start is None:
        return Access(newest, newest)
    return Access(None if start == "0" else oldest, newest)


@dataclass(frozen=True, slots=True)
class Reach:
    """A set of relative positions: disjoint intervals, oldest first."""

    parts: tuple[Access, ...] = ()

    @staticmethod
    def of(*accesses: Access) -> Reach:
        """The union of intervals, merged where they touch."""
        merged: list[Access] = []
        for part in sorted(accesses, key=lambda a: float("-inf") if a.oldest is None else a.oldest):
            last = merged[-1] if merged else None
            if last is not None and _touch(last, part):
                merged[-1] = Access(last.oldest, _later(last.newest, part.newest))
            else:
                merged.append(part)
        return Reach(tuple(merged))

    def union(self, other: Reach) -> Reach:
        return self if self == other else Reach.of(*self.parts, *other.parts)

    def then(self, earlier: Access) -> Reach:
        """Every interval, continued along an edge."""
        return self if earlier == NOW else Reach.of(*(part.then(earlier) for part in self.parts))

    def repeated(self) -> Reach:
        """What a cycle adds that steps back by one each time: everything older, too."""
        return Reach.of(*(Access(None, part.newest) for part in self.parts))

    @property
    def is_causal(self) -> bool:
        return all(part.is_causal for part in self.parts)

    def steps(self, t: int, length: int) -> set[int]:
        """The positions that can be read at ``t`` of a sequence of ``length``."""
        return {step for part in self.parts for step in part.steps(t, length)}

    def describe(self) -> str:
        if not self.parts:
            return "nothing"
        if len(self.parts) == 1:
            return self.parts[0].describe()
        return "positions " + ", ".join(map(str, self.parts))


def _touch(left: Access, right: Access) -> bool:
    """Whether ``right``, which starts no earlier, overlaps ``left`` or follows it at once."""
    return left.newest is None or right.oldest is None or right.oldest <= left.newest + 1


def _later(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else max(left, right)
