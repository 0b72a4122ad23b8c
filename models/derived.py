"""Weights that are made of others when they are asked for: parts of matrices, and matrices transposed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from ..compiler.program import TRANSPOSED
from .weights import Weights, aligned_empty


class DerivedWeights(Mapping[str, np.ndarray]):
    """The parameters of a graph, of which some are made of the values in ``weights`` and others are these."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights = weights

    def is_made(self, name: str) -> bool:
        """Whether a parameter is none of the values that are given."""
        raise NotImplementedError

    def make(self, name: str) -> np.ndarray:
        """Such a parameter, at a multiple of ``ALIGNMENT`` bytes."""
        raise NotImplementedError

    @property
    def way(self) -> tuple[object, ...]:
        """What tells how they are made."""
        raise NotImplementedError

    def __getitem__(self, name: str) -> np.ndarray:
        return self.make(name) if self.is_made(name) else self._weights[name]

    def __contains__(self, name: object) -> bool:
        return (isinstance(name, str) and self.is_made(name)) or name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def array(self, name: str, alignment: int = 1) -> np.ndarray:
        """A parameter; one that lies in a file at a multiple of ``alignment`` bytes."""
        if isinstance(self._weights, Weights | DerivedWeights) and not self.is_made(name):
            return self._weights.array(name, alignment)
        return self[name]

    def is_in_place(self, name: str, alignment: int = 1) -> bool:
        """Whether a parameter can be used where it lies in its file: never one that is made."""
        if self.is_made(name) or not isinstance(self._weights, Weights | DerivedWeights):
            return False
        return self._weights.is_in_place(name, alignment)

    @property
    def identity(self) -> tuple[object, ...] | None:
        """What the parameters are made from; None where that is more than files."""
        if not isinstance(self._weights, Weights | DerivedWeights):
            return None
        made_from = self._weights.identity
        return None if made_from is None else (*self.way, *made_from)

    def read_ahead(self) -> None:
        """Has the files read while something else is done; see ``Weights.read_ahead``."""
        if isinstance(self._weights, Weights | DerivedWeights):
            self._weights.read_ahead()


class TransposedWeights(DerivedWeights):
    """The weights of a graph, and beside them what ``transpose_weights`` makes it read: matrices [d, n] as
    [n, d]. Iterating yields the names of the former."""

    def __init__(self, weights: Mapping[str, np.ndarray], names: Collection[str]) -> None:
        super().__init__(weights)
        self._sources = {name + TRANSPOSED: name for name in names}

    def is_made(self, name: str) -> bool:
        return name in self._sources

    @property
    def way(self) -> tuple[object, ...]:
        return TRANSPOSED, *sorted(self._sources)

    def make(self, name: str) -> np.ndarray:
        return transposed(self._weights, self._sources[name])


def transposed(weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A matrix [d, n] as [n, d], at a multiple of ``ALIGNMENT`` bytes.

    Some rows of a file are read at a time: they stay in the caches until all columns have them, and are given
    back then.
    """
    if isinstance(weights, Weights):
        shape, dtype, blocks = weights.shape(name), weights.dtype(name), weights.blocks(name)
    else:
        array = np.asarray(weights[name])
        shape, dtype, blocks = array.shape, array.dtype, iter([(slice(None), array)])
    made = aligned_empty(shape[::-1], dtype)
    columns = _bits(made)
    for rows, values in blocks:
        columns[:, rows] = _bits(values).T
    return made


def _bits(array: np.ndarray) -> np.ndarray:
    """The same memory as integers, which NumPy moves sooner than floats that it does not know."""
    return array.view(np.dtype(f"u{array.itemsize}"))
