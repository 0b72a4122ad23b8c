"""Systolic arrays: every register stepped, fold by fold, and in closed form give the same."""

from __future__ import annotations

import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolic.compiler.cost import analytic
from systolic.compiler.cost.array import simulate
from systolic.compiler.cost.register_array import step_through
from systolic.compiler.cost.targets import Arrays
from systolic.ir.errors import SystolicError

DATAFLOWS = st.sampled_from(("ws", "os", "is"))
SIZES = st.tuples(*[st.integers(1, 14)] * 3)


def int8_operands(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    m, k, n = shape
    generator = np.random.default_rng(m * 10_000 + k * 100 + n)
    lhs = generator.integers(-128, 128, (m, k), dtype=np.int8)
    return lhs, generator.integers(-128, 128, (k, n), dtype=np.int8)


def exact(lhs: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    return lhs.astype(np.int32) @ rhs.astype(np.int32)


@settings(max_examples=120, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(1, 6), DATAFLOWS, st.booleans())
def test_stepped_registers_judge_the_simulator_and_the_closed_form(
    shape, rows, columns, dataflow, overlapped
):
    lhs, rhs = int8_operands(shape)
    arrays = Arrays(rows, columns, dataflow=dataflow, overlapped=overlapped)
    stepped, run = step_through(lhs, rhs, arrays), simulate(lhs, rhs, arrays)
    assert stepped.result.dtype == run.result.dtype == np.int32
    np.testing.assert_array_equal(stepped.result, exact(lhs, rhs))
    np.testing.assert_array_equal(run.result, exact(lhs, rhs))
    assert stepped.cycles == run.cycles == analytic.compute_cycles(*shape, arrays)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(1, 6))
def test_results_read_in_place_save_the_drain(shape, rows, columns):
    lhs, rhs = int8_operands(shape)
    arrays = Arrays(rows, columns, dataflow="os")
    stepped = step_through(lhs, rhs, arrays, drained=False)
    np.testing.assert_array_equal(stepped.result, exact(lhs, rhs))
    folds = -(-shape[0] // rows) * -(-shape[2] // columns)
    assert stepped.cycles == simulate(lhs, rhs, arrays, drained=False).cycles
    assert stepped.cycles == analytic.compute_cycles(*shape, arrays) - folds * rows


def test_the_published_closed_forms():
    shape, rows, columns = (50, 300, 70), 32, 16
    folds, wave = -(-300 // 32) * -(-70 // 16), 50
    apart, overlapped = Arrays(rows, columns), Arrays(rows, columns, overlapped=True)
    assert analytic.compute_cycles(*shape, apart) == folds * (2 * rows + columns + wave - 2)
    expected = rows + (folds - 1) * max(wave, rows) + wave + rows + columns - 2
    assert analytic.compute_cycles(*shape, overlapped) == expected


def test_decode_is_bound_by_loading_weights():
    """With fewer rows of lhs than the array has, a fold takes the R cycles of its weights."""
    arrays = Arrays(128, 128, overlapped=True)
    one, eight = (analytic.compute_cycles(m, 4096, 4096, arrays) for m in (1, 8))
    assert eight - one == 7
    assert one >= 32 * 32 * 128


@st.composite
def machines(draw, most: int = 1) -> tuple[Arrays, analytic.Bus]:
    arrays = Arrays(
        draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, most)),
        dataflow=draw(DATAFLOWS), overlapped=draw(st.booleans()),
    )  # fmt: skip
    bandwidth = draw(st.sampled_from((0.5, 1.0, 3.0, 8.0, 50.0)))
    return arrays, analytic.Bus(bandwidth, draw(st.integers(0, 4)), draw(st.sampled_from((16, 256, 10**6))))


@settings(max_examples=150, deadline=None)
@given(st.tuples(*[st.integers(1, 30)] * 3), machines())
def test_simulator_and_model_agree_behind_a_memory(shape, machine):
    arrays, bus = machine
    run = simulate(*int8_operands(shape), arrays, bus)
    assert run.cycles == pytest.approx(float(analytic.cycles(*shape, arrays, "i8", bus)), rel=1e-12)
    assert run.traffic == analytic.traffic(*shape, arrays, "i8", bus)
    assert run.accesses == analytic.accesses(*shape, arrays)
    assert run.mapping_utilization == pytest.approx(analytic.mapping_utilization(*shape, arrays))
    assert run.cycles - run.stall_cycles == analytic.compute_cycles(*shape, arrays)


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(1, 30)] * 3), machines(5))
def test_several_arrays_stay_between_full_overlap_and_none(shape, machine):
    """The one case where simulator and model may differ: rounds that mix folds of several classes."""
    arrays, bus = machine
    run = simulate(*int8_operands(shape), arrays, bus)
    assert run.traffic == analytic.traffic(*shape, arrays, "i8", bus)
    compute = analytic.compute_cycles(*shape, arrays)
    transfers = run.traffic.total / bus.bytes_per_cycle
    rounds = len(run.starts)
    serial = compute + transfers + rounds * bus.latency_cycles
    modelled = float(analytic.cycles(*shape, arrays, "i8", bus))
    assert max(compute, transfers) <= run.cycles <= serial * (1 + 1e-9)
    assert compute <= modelled * (1 + 1e-9)
    assert (
        abs(modelled - run.cycles) <= min(compute, transfers) + (rounds + 1) * bus.latency_cycles + transfers
    )


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(1, 6), st.integers(2, 4), DATAFLOWS, st.booleans())
def test_several_arrays_share_the_folds(shape, rows, columns, count, dataflow, overlapped):
    arrays = Arrays(rows, columns, count, dataflow=dataflow, overlapped=overlapped)
    run = simulate(*int8_operands(shape), arrays)
    assert run.cycles == analytic.compute_cycles(*shape, arrays)
    np.testing.assert_array_equal(run.result, exact(*int8_operands(shape)))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("dataflow", ["ws", "os", "is"])
def test_floats_accumulate_in_float32(dtype, dataflow):
    generator = np.random.default_rng(0)
    lhs, rhs = (generator.standard_normal(shape).astype(dtype) for shape in ((9, 21), (21, 10)))
    reference = lhs.astype(np.float64) @ rhs.astype(np.float64)
    arrays = Arrays(4, 5, dataflow=dataflow, overlapped=True)
    for result in (simulate(lhs, rhs, arrays).result, step_through(lhs, rhs, arrays).result):
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-5)


def test_a_large_matmul_is_simulated_in_well_under_a_second():
    lhs, rhs = int8_operands((512, 1024, 1024))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run = simulate(lhs, rhs, Arrays(128, 128))
        times.append(time.perf_counter() - start)
    np.testing.assert_array_equal(run.result, exact(lhs, rhs))
    assert min(times) < 1


def test_sums_that_are_too_large_wrap_as_int32_does():
    lhs, rhs = np.full((1, 140_000), -128, np.int8), np.full((140_000, 1), -128, np.int8)
    assert simulate(lhs, rhs, Arrays(256, 256)).result.item() == exact(lhs, rhs).item() < 0


def test_operands_that_are_not_matrices_are_refused():
    with pytest.raises(SystolicError, match=r"not matrices \[m, k\] and \[k, n\]"):
        simulate(np.ones((2, 3), np.int8), np.ones((2, 3), np.int8), Arrays(4, 4))
    with pytest.raises(SystolicError, match="not int64 and int64"):
        simulate(np.ones((2, 3), np.int64), np.ones((3, 2), np.int64), Arrays(4, 4))
    with pytest.raises(SystolicError, match="for one array, not 2"):
        step_through(np.ones((2, 3), np.int8), np.ones((3, 2), np.int8), Arrays(4, 4, 2))
