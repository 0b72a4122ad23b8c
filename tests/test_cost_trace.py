"""Traces: every cycle of an array, against cells counted one by one and the words of the cost model."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from systolic.compiler.cost import analytic
from systolic.compiler.cost.animation import wavefront_page
from systolic.compiler.cost.register_array import step_through
from systolic.compiler.cost.targets import Arrays
from systolic.compiler.cost.trace import OPERANDS, trace, wave_starts
from systolic.ir.errors import SystolicError
from systolic.runner.cli import app

SHAPES = st.tuples(*[st.integers(1, 14)] * 3)
ARRAYS = st.builds(
    Arrays,
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    dataflow=st.sampled_from(("ws", "os", "is")),
    overlapped=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(SHAPES, ARRAYS)
def test_busy_cells_are_those_counted_one_by_one(shape, arrays):
    busy = trace(*shape, arrays).busy
    assert len(busy) == step_through(*operands(shape), arrays).cycles
    assert busy.sum() == np.prod(shape)
    counted = np.zeros_like(busy)
    wave = analytic.mapping(*shape, arrays.dataflow).wave
    for start, fold in wave_starts(*shape, arrays):
        for i, j, t in np.ndindex(fold.rows, fold.columns, wave):
            counted[start + i + j + t] += 1
    np.testing.assert_array_equal(busy, counted)


def operands(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    m, k, n = shape
    return np.ones((m, k), np.int8), np.ones((k, n), np.int8)


@settings(max_examples=80, deadline=None)
@given(SHAPES, ARRAYS)
def test_streams_are_the_words_of_the_model_one_per_port_and_cycle(shape, arrays):
    m, k, n = shape
    traced, words = trace(*shape, arrays), analytic.accesses(*shape, arrays)
    assert len(traced.lhs.cycle) == words.lhs_reads
    assert len(traced.rhs.cycle) == words.rhs_reads
    assert len(traced.result.cycle) == words.writes
    for operand, size in zip(OPERANDS, (m * k, k * n, m * n), strict=True):
        stream = getattr(traced, operand)
        assert (np.diff(stream.cycle) >= 0).all()
        assert set(stream.address.tolist()) == set(range(size))
        assert stream.cycle[0] >= 0
        assert stream.cycle[-1] < len(traced.busy)
        used = stream.cycle * (arrays.rows + arrays.columns) + stream.port
        assert len(np.unique(used)) == len(used)


def test_operands_meet_in_the_cells():
    """Where rhs stays, lhs word (t, k) meets column j of rhs i + j cycles after it enters row i."""
    arrays = Arrays(2, 2)
    traced = trace(3, 2, 2, arrays)
    loaded = zip(
        traced.rhs.cycle.tolist(), traced.rhs.port.tolist(), traced.rhs.address.tolist(), strict=True
    )
    assert set(loaded) == {(0, 0, 0), (1, 0, 2), (1, 1, 1), (2, 1, 3)}
    assert traced.lhs.cycle.tolist() == [2, 3, 3, 4, 4, 5]
    assert traced.result.cycle.tolist() == [3, 4, 4, 5, 5, 6]
    assert traced.busy.tolist() == [0, 0, 1, 3, 4, 3, 1]


def test_the_command_writes_traces_and_pages(tmp_path):
    arguments = ["cost", "--matmul", "9,8,7", "--target", "scalesim", "--array", "4x4", "--dataflow", "ws"]
    files = ["--trace", str(tmp_path / "t.json"), "--animate", str(tmp_path / "a.html")]
    found = CliRunner().invoke(app, [*arguments, *files, "--json"])
    assert found.exit_code == 0, found.output
    traced = json.loads((tmp_path / "t.json").read_text())
    assert len(traced["busy"]) == json.loads(found.output)["cycles"]
    assert set(traced) == {"busy", *OPERANDS}
    page = (tmp_path / "a.html").read_text()
    frames = json.loads(re.search(r"const frames = (\[.*?\]), folds", page)[1])
    assert len(frames) == len(traced["busy"])
    assert [sum(element >= 0 for element in frame) for frame in frames] == traced["busy"]


def test_animations_are_for_small_arrays():
    with pytest.raises(SystolicError, match=r"64x4 cells for .* at most 32x32 cells and 4,096 cycles"):
        wavefront_page(8, 8, 8, Arrays(64, 4))
