"""Prefixes that were read before: a radix tree over token ids that holds their states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ..backends.interface import described
from .batch import Batch
from .undo import Checkpoint, Undo

BYTES_PER_TOKEN = 8  # of the tree itself, so that it stays small where states are


@dataclass(eq=False)
class Node:
    """The text between two branches: ``tokens`` from position ``start`` on.

    ``piece`` holds what is kept by position, from ``piece_start`` on, which may be before ``start``;
    ``checkpoints`` what is not, behind some of these positions.
    """

    start: int
    tokens: tuple[int, ...]
    piece: Mapping[str, Any]
    piece_start: int
    checkpoints: list[Checkpoint] = field(default_factory=list)
    children: dict[int, Node] = field(default_factory=dict)
    used: int = 0

    @property
    def stop(self) -> int:
        """The position behind the last token."""
        return self.start + len(self.tokens)

    @property
    def bytes(self) -> int:
        groups = [self.piece, *(checkpoint.arrays for checkpoint in self.checkpoints)]
        arrays = sum(described(array).nbytes for group in groups for array in group.values())
        return arrays + BYTES_PER_TOKEN * len(self.tokens)

    def common(self, tokens: Sequence[int]) -> int:
        """How many of this node's tokens ``tokens`` has at the same positions."""
        there = tokens[self.start : self.stop]
        pairs = zip(self.tokens, there, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(there)))


class PrefixTree:
    """States of texts that may begin other texts, at most ``budget`` bytes of them.

    What was used least recently goes first. A model that keeps everything by position can go on from any
    length of a common prefix; another only from where a checkpoint was made. Each adapter has a tree of its
    own, within the same budget.
    """

    def __init__(self, undo: Undo, budget: int) -> None:
        self.budget = budget
        self._undo = undo
        self._roots: dict[int, Node] = {}  # by the number of the adapter
        self._clock = count(1)

    @property
    def bytes(self) -> int:
        """Bytes of all states that are held."""
        return sum(node.bytes for node in self._nodes())

    def restore(self, rows: Batch, row: int, tokens: Sequence[int]) -> int:
        """Makes an empty row go on behind the longest known prefix of ``tokens``: how long that is."""
        path, matched = self._find(rows.rows[row].adapter, tokens)
        length, checkpoint = self._usable(path, matched)
        if length == 0:
            return 0
        for node in path:
            if node.start < length:
                rows.put_piece(row, node.piece_start, min(node.stop, length), node.piece)
        rows.resume(row, tokens[:length], checkpoint)
        return length

    def store(self, rows: Batch, row: int) -> None:
        """Keeps the state of a row, which has just been read, for texts that begin like it."""
        state = rows.rows[row]
        tokens = tuple(state.tokens)
        checkpoints = list(state.checkpoints)
        if self._undo.needs_checkpoints and not (checkpoints and checkpoints[-1].position == len(tokens)):
            checkpoints.append(rows.checkpoint(row))
        path, matched = self._find(state.adapter, tokens)
        last = path[-1]
        if matched < last.stop and matched < len(tokens):
            self._split(last, matched, rows.take_piece(row, last.start, matched))
        if matched < len(tokens):
            piece = rows.take_piece(row, matched, len(tokens))
            leaf = Node(matched, tokens[matched:], piece, matched, used=next(self._clock))
            last.children[tokens[matched]] = leaf
            path.append(leaf)
        for node in path:
            known = {checkpoint.position for checkpoint in node.checkpoints}
            node.checkpoints += [
                c for c in checkpoints if node.start < c.position <= node.stop and c.position not in known
            ]
        self._evict()

    def _find(self, adapter: int, tokens: Sequence[int]) -> tuple[list[Node], int]:
        """The nodes along ``tokens`` from the root on, and how many tokens they have in common."""
        path, now = [self._roots.setdefault(adapter, Node(0, (), {}, 0))], next(self._clock)
        matched = 0
        while matched < len(tokens) and matched == path[-1].stop:
            child = path[-1].children.get(tokens[matched])
            if child is None:
                break
            child.used = now
            matched += child.common(tokens)
            path.append(child)
        return path, matched

    def _usable(self, path: Sequence[Node], matched: int) -> tuple[int, Checkpoint | None]:
        """How many positions can be gone on from, and the checkpoint that this takes."""
        if not self._undo.needs_checkpoints:
            return matched, None
        best: tuple[int, Checkpoint | None] = (0, None)
        for checkpoint in (c for node in path for c in node.checkpoints):
            length = min(checkpoint.position, matched)
            if length > best[0] and self._undo.reach(checkpoint.position, checkpoint.written) <= length:
                best = length, checkpoint
        return best

    def _split(self, node: Node, position: int, piece: Mapping[str, Any]) -> None:
        """Puts a branch inside of a node, which becomes the part above; ``piece`` is that part's."""
        size = position - node.start
        below = Node(
            position,
            node.tokens[size:],
            node.piece,
            node.piece_start,
            [c for c in node.checkpoints if c.position > position],
            node.children,
            node.used,
        )
        node.tokens, node.piece, node.piece_start = node.tokens[:size], piece, node.start
        node.checkpoints = [c for c in node.checkpoints if c.position <= position]
        node.children = {below.tokens[0]: below}

    def _nodes(self) -> Iterator[Node]:
        pending = [*self._roots.values()]
        while pending:
            node = pending.pop()
            yield node
            pending += node.children.values()

    def _evict(self) -> None:
        """Drops leaves, the least recently used first, until what is left fits the budget."""
        total = self.bytes
        while total > self.budget and any(root.children for root in self._roots.values()):
            leaves = (
                (node, first, child)
                for node in self._nodes()
                for first, child in node.children.items()
                if not child.children
            )
            parent, first, leaf = min(leaves, key=lambda found: found[2].used)
            del parent.children[first]
            total -= leaf.bytes
