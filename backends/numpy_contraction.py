"""A contraction as NumPy source that reaches a matrix multiplication: ``x @ w.T``, tensordot or matmul."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..ir.ops.linear import letter_sizes, split_subscripts
from ..ir.types import TensorType


def contraction_source(
    x: str, y: str, types: tuple[TensorType, TensorType], subscripts: str, dtype_source: str
) -> str:
    """The expression that computes ``subscripts`` of the operands ``x`` and ``y``, given as source."""
    x_term, y_term, result = split_subscripts(subscripts)
    sizes = {letter: int(size) for letter, size in letter_sizes(subscripts, *types).items()}  # type: ignore
    x, x_term = _without_lonely(x, x_term, y_term + result)
    y, y_term = _without_lonely(y, y_term, x_term + result)
    if types[0].dtype in ("f16", "bf16"):  # NumPy has no fast product of these; sums are kept in f32
        x, y = f"{x}.astype(np.float32)", f"{y}.astype(np.float32)"
    batch = [c for c in result if c in x_term and c in y_term]
    summed = [c for c in x_term if c in y_term and c not in result]
    if not summed:
        product = _outer(x, y, x_term, y_term, result)
    elif not batch:
        product = _matrix(x, y, x_term, y_term, result, summed, sizes)
    else:
        product = _batched(x, y, x_term, y_term, result, (batch, summed), sizes)
    if types[0].dtype in ("f16", "bf16"):
        return f"({product}).astype({dtype_source})"
    return product


def _without_lonely(x: str, term: str, elsewhere: str) -> tuple[str, str]:
    """The operand summed over the letters that occur nowhere else, and its remaining letters."""
    axes = tuple(axis for axis, letter in enumerate(term) if letter not in elsewhere)
    if not axes:
        return x, term
    return f"np.sum({x}, axis={axes}, dtype={x}.dtype)", "".join(c for c in term if c in elsewhere)


def ordered(x: str, term: Sequence[str], order: Sequence[str]) -> str:
    """The operand with its axes in the order of ``order``."""
    permutation = [term.index(letter) for letter in order]
    if permutation == sorted(permutation):
        return x
    return f"{x}.T" if permutation == [1, 0] else f"{x}.transpose({', '.join(map(str, permutation))})"


def _outer(x: str, y: str, x_term: str, y_term: str, result: str) -> str:
    """Nothing is summed: a product of two values that are stretched to the result's axes."""

    def stretched(operand: str, term: str) -> str:
        turned = ordered(operand, term, [c for c in result if c in term])
        index = ", ".join(":" if c in term else "None" for c in result)
        return turned if not term or term == result or "None" not in index else f"{turned}[{index}]"

    return f"{stretched(x, x_term)} * {stretched(y, y_term)}"


def _matrix(
    x: str, y: str, x_term: str, y_term: str, result: str, summed: list[str], sizes: dict[str, int]
) -> str:
    """No letter is shared by operands and result: one matrix product."""
    x_free = [c for c in x_term if c not in summed]
    y_free = [c for c in y_term if c not in summed]
    outer_size = math.prod(sizes[c] for c in x_free[:-1])
    if len(summed) == 1 and x_term[-1] == summed[0] and len(y_term) <= 2 and outer_size == 1:
        # ``@`` multiplies matrix by matrix, so this form is for operands that are a single matrix.
        product, order = f"{x} @ {ordered(y, y_term, [*summed, *y_free])}", [*x_free, *y_free]
        return product if order == list(result) else ordered(f"({product})", order, result)
    first, second = (x, x_term, x_free), (y, y_term, y_free)
    if [*y_free, *x_free] == list(result):
        first, second = second, first
    axes = [tuple(term.index(c) for c in summed) for _, term, _ in (first, second)]
    shown = f"({axes[0][0]}, {axes[1][0]})" if len(summed) == 1 else f"({axes[0]}, {axes[1]})"
    product = f"np.tensordot({first[0]}, {second[0]}, axes={shown})"
    return ordered(product, [*first[2], *second[2]], result)


def _batched(
    x: str,
    y: str,
    x_term: str,
    y_term: str,
    result: str,
    shared: tuple[list[str], list[str]],
    sizes: dict[str, int],
) -> str:
    """Letters that operands and result share: one matrix product for each of their values."""
    batch, summed = shared
    x_free = [c for c in x_term if c not in batch and c not in summed]
    y_free = [c for c in y_term if c not in batch and c not in summed]
    left = grouped(ordered(x, x_term, [*batch, *x_free, *summed]), (batch, x_free, summed), sizes)
    right = grouped(ordered(y, y_term, [*batch, *summed, *y_free]), (batch, summed, y_free), sizes)
    product, order = f"np.matmul({left}, {right})", [*batch, *x_free, *y_free]
    if len(x_free) != 1 or len(y_free) != 1:
        product += f".reshape({', '.join(str(sizes[c]) for c in order)})"
    return ordered(product, order, result)


def grouped(x: str, groups: tuple[list[str], list[str], list[str]], sizes: dict[str, int]) -> str:
    """The operand as a stack of matrices: the letters of each of the last two groups become one axis."""
    batch, rows, columns = groups
    if len(rows) == len(columns) == 1:
        return x
    shape = [*(sizes[c] for c in batch), *(math.prod(sizes[c] for c in group) for group in (rows, columns))]
    return f"{x}.reshape({', '.join(map(str, shape))})"
