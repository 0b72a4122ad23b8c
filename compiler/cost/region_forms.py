"""Other forms of regions: two that run as one, and one that makes its weights before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from .regions import Amount, Prologue, Region, Value


def join_attention(scores: Region, mix: Region) -> Region:
    """Scores, softmax and mix in one region: an online softmax over tiles of the past keeps the scores and
    probabilities on chip (Milakov & Gimelshein 2018; Dao et al. 2022)."""
    inner = {value.name for value in scores.results}
    return replace(
        scores,
        kind="attention",
        nodes=scores.nodes + mix.nodes,
        products=scores.products + mix.products,
        elementwise=scores.elementwise + mix.elementwise,
        prologue=scores.prologue + mix.prologue,
        weights=scores.weights + mix.weights,
        state=scores.state + mix.state,
        inputs=_distinct(scores.inputs, (v for v in mix.inputs if v.name not in inner)),
        results=mix.results,
        spilled=(),
    )


def widen_first(region: Region) -> tuple[Region, Region]:
    """A region whose weights are made of what is kept by a region before it, which writes them whole."""
    prologue = region.prologue
    widening = Region(
        name=f"{region.name}.weights",
        scope=region.scope,
        kind="dequantisation",
        elementwise=Amount(prologue.operations),
        weights=Amount(prologue.kept + prologue.made),
    )
    reading = replace(
        region,
        prologue=Prologue(),
        elementwise=region.elementwise + Amount(-prologue.operations),
        weights=region.weights + Amount(prologue.made - prologue.kept),
    )
    return widening, reading


def join_siblings(first: Region, second: Region) -> Region:
    """Two matmuls of the same vectors with different weights as one with all columns."""
    (a,), (b,) = first.products, second.products
    return replace(
        first,
        nodes=first.nodes + second.nodes,
        products=(replace(a, n=a.n + b.n),),
        elementwise=first.elementwise + second.elementwise,
        prologue=first.prologue + second.prologue,
        weights=first.weights + second.weights,
        state=first.state + second.state,
        inputs=_distinct(first.inputs, (v for v in second.inputs if v not in first.results)),
        results=first.results + second.results,
    )


def are_siblings(first: Region, second: Region) -> bool:
    """Whether two regions multiply the same vectors by weights; what follows may need both products."""
    if first.scope != second.scope or len(first.products) != 1 or len(second.products) != 1:
        return False
    (a,), (b,) = first.products, second.products
    return replace(a, n=b.n) == b and a.right == "weights" and not a.experts


def _distinct(first: tuple[Value, ...], more: Iterator[Value] | tuple[Value, ...]) -> tuple[Value, ...]:
    found: Mapping[str, Value] = {value.name: value for value in (*first, *more)}
    return tuple(found.values())
