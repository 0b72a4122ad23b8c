"""Arrays whose axes have letters, as in subscripts: products and sums that put axes where they belong."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ir.graph import Node
from .placed import Maker


@dataclass(frozen=True, eq=False)
class Term:
    """An array, and one letter for each of its axes."""

    node: Node
    letters: str

    def size(self, letter: str) -> int:
        return self.node.tensor.static_shape[self.letters.index(letter)]

    def renamed(self, old: str, new: str) -> Term:
        return replace(self, letters=self.letters.replace(old, new))


def contract(make: Maker, x: Term, y: Term, result: str, label: str = "") -> Term:
    """The sum of products over every letter that the result does not name."""
    subscripts = f"{x.letters},{y.letters}->{result}"
    return Term(make("contraction", x.node, y.node, label=label, subscripts=subscripts), result)


def multiply(make: Maker, x: Term, y: Term, result: str, label: str = "") -> Term:
    """The product, in which nothing is summed."""
    nodes = (expand(make, term, result) for term in (x, y))
    return Term(make("multiply", *nodes, label=label), result)


def expand(make: Maker, x: Term, letters: str) -> Node:
    """The array with its axes in the order of ``letters``, and ones for those that it lacks."""
    order = tuple(x.letters.index(letter) for letter in letters if letter in x.letters)
    node = x.node
    if order != tuple(range(len(order))):
        node = make("transpose", node, label="order", permutation=order)
    return make.reshape(node, tuple(x.size(c) if c in x.letters else 1 for c in letters), "expand")


def part(make: Maker, x: Term, letter: str, start: int, limit: int, label: str = "part") -> Term:
    """Elements ``start`` up to ``limit`` along an axis."""
    shape, axis = x.node.tensor.static_shape, x.letters.index(letter)
    starts = tuple(start if i == axis else 0 for i in range(len(shape)))
    limits = tuple(limit if i == axis else size for i, size in enumerate(shape))
    if (start, limit) == (0, shape[axis]):
        return x
    return Term(make("slice", x.node, label=label, starts=starts, limits=limits), x.letters)


def pick(make: Maker, x: Term, letter: str, index: int) -> Term:
    """One element along an axis, which is gone."""
    one = part(make, x, letter, index, index + 1)
    rest = x.letters.replace(letter, "")
    return Term(make.reshape(one.node, tuple(x.size(c) for c in rest), "pick"), rest)


def join(make: Maker, x: Term, y: Term, letter: str, label: str = "join") -> Term:
    """``x`` and behind it ``y``, along an axis."""
    axis = x.letters.index(letter)
    return Term(make("concatenate", x.node, y.node, label=label, axis=axis), x.letters)


def in_blocks(make: Maker, x: Term, size: int, fill: float) -> Term:
    """``B`` and all positions as ``BK`` and the positions of a block, filled up behind the last one."""
    rows, count, *rest = x.node.tensor.static_shape
    blocks = -(-count // size)
    node = x.node
    if blocks * size > count:
        missing = (rows, blocks * size - count, *rest)
        more = make.broadcast(make.constant(fill, node.tensor.dtype), missing, "more")
        node = make("concatenate", node, more, label="filled", axis=1)
    node = make.reshape(node, (rows, blocks, size, *rest), "blocks")
    return Term(node, f"BK{x.letters[1:]}")
