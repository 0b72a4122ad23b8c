"""Reads a projection of the past through what it was made from, where keeping that is cheaper.

    %k = contraction(%latent, %w, "r,hnr->hn")         %u = contraction(%q, %w, "hn,hnr->hr")
    %past = history(%k[0:t])                     →     %past = history(%latent[0:t])
    %s = contraction(%q, %past, "hn,phn->hp")          %s = contraction(%u, %past, "hr,pr->hp")

    %v = contraction(%latent, %w, "r,her->he")         %past = history(%latent[0:t])
    %past = history(%v[0:t])                     →     %m = contraction(%p, %past, "hp,pr->hr")
    %o = contraction(%p, %past, "hp,phe->he")          %o = contraction(%m, %w, "hr,her->he")

The sum over the past does not care in which order the products are taken. A key that is joined from parts
([projection | rotated part that all heads share]) is read part by part, and a part that was repeated for
each head is read once. This is multi-head latent attention's "absorbed" form (DeepSeek-V2, section 2.1.2),
found instead of written.

Must not fire where the operand is as large as its projection, or where the longer products cost more than
the bytes of state that they save: per past position, bytes read plus operations over the machine balance
have to become fewer. It pays for few positions at a time, so programs for long chunks keep the other form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...ir.graph import Graph, Node, copy_node, make_node, rebuild
from ...ir.ops import OPS
from ...ir.ops.linear import split_subscripts
from ..measures import OPERATIONS_PER_BYTE

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def reassociate(graph: Graph) -> Graph:
    """Rewrites each contraction with a history for which that is cheaper."""

    def visit(node: Node, sources: tuple[Node, ...]) -> Node:
        current = copy_node(node, sources)
        reading = _reading(current) if node.op.name == "contraction" else None
        return current if reading is None else reading.rewritten() or current

    return rebuild(graph, visit).with_unique_names()


@dataclass(frozen=True)
class _Projection:
    """A stream as ``weight`` [*out, *in] times ``operand`` [*in]."""

    operand: Node
    weight: Node


@dataclass(frozen=True)
class _Piece:
    """What a part of the query meets: a stream whose axes are ``letters``."""

    query: Node
    stream: Node
    letters: str


def _reading(node: Node) -> _Reading | None:
    """A contraction of a query with a history, which stands on either side."""
    *terms, result = split_subscripts(node.params["subscripts"])
    for side in (0, 1):
        history, term, query = node.sources[side], terms[side], terms[1 - side]
        if history.op.name == "history" and (term[0] in query) != (term[0] in result):
            return _Reading(node, node.sources[1 - side], history, query, term, result)
    return None


@dataclass(frozen=True)
class _Reading:
    """The contraction ``node`` of ``query`` with ``history``: the terms of both and of the result."""

    node: Node
    query: Node
    history: Node
    query_term: str
    term: str
    result: str

    @property
    def past(self) -> str:
        """The letter of the ragged dimension."""
        return self.term[0]

    def rewritten(self) -> Node | None:
        """The sum over all pieces, those that are projections through their operand; None if none is."""
        pieces = list(self._pieces(_Piece(self.query, self.history.sources[0], self.term[1:])))
        projections = [self._cheaper(piece) for piece in pieces]
        if not any(projections):
            return None
        total: Node | None = None
        for piece, projection in zip(pieces, projections, strict=True):
            value = self._read(piece) if projection is None else self._read_through(piece, projection)
            total = value if total is None else self._make("add", total, value)
        return None if total is None else replace(total, name=self.node.name)

    # ---- taking the stream apart ----

    def _pieces(self, whole: _Piece) -> Iterator[_Piece]:
        pending = [whole]
        while pending:
            piece = pending.pop()
            parts = self._parts(piece)
            if parts is None:
                yield piece
            else:
                pending += reversed(parts)

    def _parts(self, piece: _Piece) -> list[_Piece] | None:
        """What a stream is made of, where the query can meet that instead; None where it cannot."""
        if piece.stream.op.name == "concatenate":
            return self._joined(piece, piece.stream.params["axis"])
        return self._repeated(piece) if piece.stream.op.name == "broadcast_to" else None

    def _joined(self, piece: _Piece, axis: int) -> list[_Piece] | None:
        """Each part of a stream that is joined along a summed axis, with its part of the query."""
        letter = piece.letters[axis]
        if letter in self.result or letter not in self.query_term:
            return None
        parts, start = [], 0
        for source in piece.stream.sources:
            stop = start + source.tensor.static_shape[axis]
            parts.append(_Piece(self._slice(piece.query, letter, start, stop), source, piece.letters))
            start = stop
        return parts

    def _repeated(self, piece: _Piece) -> list[_Piece] | None:
        """A stream without the axes along which it was repeated: the query has them."""
        (source,) = piece.stream.sources
        shape = piece.stream.tensor.static_shape
        given = (1,) * (len(shape) - source.tensor.rank) + source.tensor.static_shape
        kept = [i for i, size in enumerate(shape) if given[i] == size]
        if not set(piece.letters) <= set(self.query_term) | {piece.letters[i] for i in kept}:
            return None
        bare = self._make("reshape", source, shape=tuple(shape[i] for i in kept))
        return [_Piece(piece.query, bare, "".join(piece.letters[i] for i in kept))]

    def _slice(self, query: Node, letter: str, start: int, stop: int) -> Node:
        axis, shape = self.query_term.index(letter), query.tensor.shape
        if shape[axis] == stop - start:
            return query
        starts = tuple(start if i == axis else 0 for i in range(len(shape)))
        limits = tuple(
            stop if i == axis else size if isinstance(size, int) else -1 for i, size in enumerate(shape)
        )
        return self._make("slice", query, starts=starts, limits=limits)

    # ---- projections ----

    def _cheaper(self, piece: _Piece) -> _Projection | None:
        """The piece as a projection, if reading its operand is cheaper than reading itself."""
        meets = self.query_term if self.past in self.result else self.query_term + self.result
        found = self._projection(piece.stream) if set(piece.letters) <= set(meets) else None
        if found is None:
            return None
        operand = found.operand.tensor
        query = zip(self.query_term, piece.query.tensor.shape, strict=True)
        sizes = {letter: size for letter, size in query if letter != self.past}
        sizes |= dict(zip(piece.letters, piece.stream.tensor.static_shape, strict=True))
        if not all(isinstance(size, int) for size in sizes.values()):
            return None  # a past meets a past
        kept = self._query_letters(piece)
        before = math.prod(sizes.values())  # type: ignore[arg-type]
        after = math.prod(sizes[letter] for letter in kept) * operand.size  # type: ignore[misc]
        cost_before = piece.stream.tensor.bytes + 2 * before / OPERATIONS_PER_BYTE
        cost_after = operand.bytes + 2 * after / OPERATIONS_PER_BYTE
        return found if operand.bytes < piece.stream.tensor.bytes and cost_after < cost_before else None

    def _projection(self, stream: Node) -> _Projection | None:
        rearranged, node = [], stream
        while node.op.name in ("reshape", "slice", "transpose"):
            rearranged.append(node)
            node = node.sources[0]
        if node.op.name != "contraction":
            return None
        *terms, result = split_subscripts(node.params["subscripts"])
        constant = [i for i, source in enumerate(node.sources) if source.clock is None]
        if len(constant) != 1:
            return None
        (side,) = constant
        inner, weight = terms[1 - side], node.sources[side]
        if set(inner) & set(result) or set(terms[side]) != set(inner) | set(result):
            return None
        order = tuple(terms[side].index(letter) for letter in result + inner)
        weight = self._make("transpose", weight, permutation=order)
        return _Projection(node.sources[1 - side], self._rearrange(weight, rearranged, len(inner)))

    def _rearrange(self, weight: Node, steps: list[Node], inner: int) -> Node:
        """What was done to the projection's result, done to the outer axes of the weight."""
        for step in reversed(steps):
            behind = weight.tensor.static_shape[weight.tensor.rank - inner :]
            if step.op.name == "reshape":
                weight = self._make("reshape", weight, shape=(*step.tensor.static_shape, *behind))
            elif step.op.name == "slice":
                starts, limits = step.params["starts"], step.params["limits"]
                weight = self._make(
                    "slice", weight, starts=(*starts, *(0 for _ in behind)), limits=(*limits, *behind)
                )
            else:
                order = step.params["permutation"]
                rest = range(len(order), len(order) + inner)
                weight = self._make("transpose", weight, permutation=(*order, *rest))
        return weight

    # ---- reading ----

    def _query_letters(self, piece: _Piece) -> str:
        """The query's letters that meet the operand's history: without those that the weight sums before."""
        if self.past in self.result:
            return "".join(letter for letter in self.query_term if letter in self.result)
        return "".join(
            letter
            for letter in self.query_term
            if letter != self.past and letter in self.result + piece.letters
        )

    def _read(self, piece: _Piece) -> Node:
        past = self._make("history", piece.stream, **self.history.params)
        return self._contract(piece.query, self.query_term, past, self.past + piece.letters, self.result)

    def _read_through(self, piece: _Piece, projection: _Projection) -> Node:
        past = self._make("history", projection.operand, **self.history.params)
        used = self.query_term + self.term + self.result
        fresh = (letter for letter in _ALPHABET if letter not in used)
        inner = "".join(next(fresh) for _ in projection.operand.tensor.shape)
        middle = self._query_letters(piece) + inner
        outer = piece.letters + inner
        if self.past in self.result:  # scores: the query meets the weight first
            query = self._contract(piece.query, self.query_term, projection.weight, outer, middle)
            return self._contract(query, middle, past, self.past + inner, self.result)
        mixed = self._contract(piece.query, self.query_term, past, self.past + inner, middle)
        return self._contract(mixed, middle, projection.weight, outer, self.result)

    def _contract(self, x: Node, x_term: str, y: Node, y_term: str, result: str) -> Node:
        return self._make("contraction", x, y, subscripts=f"{x_term},{y_term}->{result}")

    def _make(self, op: str, *sources: Node, **params: object) -> Node:
        # Named after what it replaces, so that no other stream has to change its name.
        name, scope, location = f"{self.node.name}.{op}", self.node.scope, self.node.location
        return make_node(OPS[op], sources, params, name=name, scope=scope, location=location)
