"""The cost of a matmul, held against SCALE-Sim, the TPU compiler's estimates, and loops that are walked."""

from __future__ import annotations

import csv
import importlib.util
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolic.compiler import cost
from systolic.compiler.cost import analytic, targets, tiling, tpu
from systolic.compiler.cost.targets import load_target
from systolic.ir.errors import SystolicError

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "cost_accuracy.py"
GENERATIONS = ("tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-7x")


@pytest.fixture(scope="module")
def accuracy():
    """The module of the accuracy table, which knows the split into calibration and held-out rows."""
    specification = importlib.util.spec_from_file_location("cost_accuracy", BENCHMARK)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scalesim(shared) -> list[dict[str, str]]:
    with open(shared / "cost" / "scalesim_gemm.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_of_scalesim(scalesim):
    assert len(scalesim) == 840
    for row in scalesim:
        m, k, n, rows, columns = (int(row[name]) for name in ("M", "K", "N", "rows", "cols"))
        found = cost.matmul(
            m,
            k,
            n,
            "int8",
            "scalesim",
            array=(rows, columns),
            dataflow=row["dataflow"],
            scalesim_compatible=True,
        )
        assert found.cycles == float(row["demand_rows"])
        assert found.sram_reads_by_operand["lhs"] == float(row["ifmap_sram_reads"])
        assert found.sram_reads_by_operand["rhs"] == float(row["filter_sram_reads"])
        assert found.sram_writes == float(row["ofmap_sram_writes"])
        assert 100 * found.mapping_utilization == pytest.approx(float(row["mapping_util_pct"]), abs=1e-9)


def test_output_stationary_is_drained_unless_compatible(scalesim):
    for row in scalesim:
        m, k, n, rows, columns = (int(row[name]) for name in ("M", "K", "N", "rows", "cols"))
        found = cost.matmul(m, k, n, "int8", "scalesim", array=(rows, columns), dataflow=row["dataflow"])
        drain = found.tiling["folds"] * rows if row["dataflow"] == "os" else 0
        assert found.cycles == found.compute_cycles == float(row["demand_rows"]) + drain


@pytest.mark.parametrize(("dtype", "most"), [("bf16", 0.05), ("i8", 0.07), ("f32", 0.08)])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_held_out_shapes_of_the_tpu_compiler(accuracy, shared, generation, dtype, most):
    rows = [r for r in accuracy.read_rows(shared) if accuracy.GENERATIONS[r.generation] == generation]
    held = [r for r in rows if r.dtype == dtype and r.in_hbm and not r.calibration]
    assert len(held) >= (48 if generation in ("tpu-v5e", "tpu-v6e") or dtype != "f32" else 0)
    if held:
        predicted = [cost.matmul(*row.shape, dtype, generation).cycles for row in held]
        mean, _, _, rank = accuracy.summary(predicted, [row.cycles for row in held])
        assert mean <= most
        assert rank >= 0.995


@pytest.mark.parametrize(("dtype", "bits", "operations"), [("int8-32", 8, 2), ("int4-32", 4, 4)])
def test_weights_in_groups_are_read_as_they_are_kept(dtype, bits, operations):
    m, k, n = 16, 4096, 4096
    found, plain = cost.matmul(m, k, n, dtype), cost.matmul(m, k, n)
    assert found.tiling["weights"] == "fused"
    assert found.hbm_bytes_by_operand["rhs"] == k * n * bits // 8 + k // 32 * n * 2  # integers, and scales
    unpacked = k * n * operations / load_target("tpu-v5e").vector.lanes
    assert max(unpacked, found.hbm_bytes / 433.6) < found.cycles < plain.cycles
    assert found.alternatives[0]["weights"] == "widened first"
    assert found.alternatives[0]["cycles"] > plain.cycles


def test_weights_are_widened_first_where_making_them_again_takes_longer():
    """For each pass over the weights the vector unit makes them anew; here it is slow, and memory is fast."""
    target = load_target("tpu-v5e")
    compiler = replace(target.compiler, bytes_per_cycle=1e5, window_bytes=1 << 20)  # no whole columns fit
    slow = replace(target, vector=targets.Vector(16), compiler=compiler)
    few, many = (cost.matmul(m, 16384, 4096, "int4-32", slow) for m in (16, 8192))
    assert (few.tiling["weights"], few.bound) == ("fused", "vector")
    assert many.tiling["weights"] == "widened first"
    assert many.cycles < many.alternatives[0]["cycles"]
    assert many.alternatives[0]["weight passes"] > 1


def test_partial_sums_bound_int8_where_the_vector_unit_adds_them():
    """v6e has twice the int8 rate, but gains less than that; v5e, with half the rows, gains it all."""
    gains = {
        name: cost.matmul(4096, 8192, 8192, "bf16", name).cycles
        / cost.matmul(4096, 8192, 8192, "int8", name).cycles
        for name in ("tpu-v5e", "tpu-v6e")
    }
    assert gains["tpu-v6e"] < 1.6 < 1.8 < gains["tpu-v5e"]


def test_the_vectorised_closed_forms_are_those_of_single_shapes():
    generator = np.random.default_rng(1)
    m, k, n = generator.integers(1, 500, (3, 200))
    arrays, bus = load_target("tpu-v1").arrays, analytic.Bus(3.0, 10.0, 100_000)
    together = analytic.cycles(m, k, n, arrays, "i8", bus)
    alone = [analytic.cycles(*map(int, shape), arrays, "i8", bus) for shape in zip(m, k, n, strict=True)]
    np.testing.assert_allclose(together, np.array(alone, float))


def walked(tilings: tiling.Tilings, index: int, dtype: str) -> tuple[int, int]:
    """Bytes of lhs and rhs when the loops of one tiling are walked and a tile is fetched when it changes."""
    order = tiling.ORDERS[int(tilings.order[index])]
    counts = dict(zip("mkn", (int(pieces[index]) for pieces in tilings.pieces), strict=True))
    tile = {name: int(getattr(tilings, name)[index]) for name in "mkn"}
    moved, held = {"mk": 0, "kn": 0}, {"mk": None, "kn": None}
    for place in np.ndindex(*(counts[name] for name in order)):
        at = dict(zip(order, place, strict=True))
        for operand in moved:
            wanted = tuple(at[name] for name in operand)
            if held[operand] != wanted:
                held[operand] = wanted
                moved[operand] += tile[operand[0]] * tile[operand[1]] * targets.DTYPE_BYTES[dtype]
    return moved["mk"], moved["kn"]


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.sampled_from(("bf16", "i8", "f32")))
def test_traffic_of_a_tiling_is_that_of_its_loops(shape, dtype):
    tilings = tiling.candidates(shape, (8, 4, 4))
    moved = tiling.traffic(tilings, dtype)
    for index in range(0, len(tilings), 7):
        assert (moved.lhs[index], moved.rhs[index]) == walked(tilings, index, dtype)


def test_the_chosen_tiling_fits_and_is_the_best_of_those_that_do():
    target = load_target("tpu-v5e")
    found = cost.matmul(512, 4096, 14336)
    tilings = tpu.searched_tilings((512, 4096, 14336), "bf16", target.compiler)
    assert tiling.on_chip_bytes(tilings, "bf16").max() <= target.compiler.scoped_bytes
    assert tiling.window_bytes(tilings, "bf16").max() <= target.compiler.window_bytes
    cycles = tpu.estimate(tilings, "bf16", target.arrays, target.compiler).cycles
    assert found.cycles == round(cycles.min())
    assert [other["cycles"] for other in found.alternatives] == sorted(np.round(cycles))[1:6]
    assert found.bound == "arrays"
    assert found.hbm_bytes == 2 * (512 * 4096 + 4096 * 14336 + 512 * 14336)


def test_a_hundred_thousand_tilings_take_less_than_a_second():
    target = load_target("tpu-v6e")
    tilings = tiling.candidates((8192, 12288, 49152), tpu.GRANULES)
    copies = tilings[np.tile(np.arange(len(tilings)), -(-100_000 // len(tilings)))]
    start = time.perf_counter()
    tpu.estimate(copies, "bf16", target.arrays, target.compiler)
    assert len(copies) >= 100_000
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("name", cost.preset_names())
def test_every_preset_answers_for_every_size(name):
    for shape in ((1, 1, 1), (1, 4096, 4096), (7, 300, 50257), (2048, 768, 768)):
        found = cost.matmul(*shape, "int8", name)
        assert found.cycles >= 1
        assert 0 < found.utilization <= 1
        assert found.hbm_bytes >= shape[0] * shape[1] + shape[1] * shape[2]


@pytest.mark.parametrize("name", GENERATIONS)
def test_more_work_is_never_cheaper(name):
    for shape in ((8, 1024, 1024), (512, 2048, 2048)):
        small = cost.matmul(*shape, target=name).cycles
        for axis in range(3):
            larger = [2 * size if i == axis else size for i, size in enumerate(shape)]
            assert cost.matmul(*larger, target=name).cycles >= small


def test_memory_bounds_decode_and_arrays_bound_prefill():
    decode, prefill = (cost.matmul(m, 8192, 8192) for m in (8, 8192))
    assert (decode.bound, prefill.bound) == ("memory", "arrays")
    assert decode.utilization < 0.1 < 0.8 < prefill.utilization


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 2, 3), {}, "m is 0; a matmul needs sizes of at least 1"),
        ((1, 2.5, 3), {}, "k is 2.5"),
        ((1, 2, 3), {"dtype": "f64"}, "dtype 'f64' has no cost model; expected one of i8"),
        ((1, 2, 3), {"dtype": "int4-32", "target": "tpu-v1"}, "grouped integers are predicted for TPU gener"),
        (
            (1, 2, 3),
            {"dtype": "int4-32", "dataflow": "os"},
            "'int4-32' is predicted on the target's own",
        ),
        ((1, 2, 3), {"target": "tpu-v9"}, "target 'tpu-v9' is not known; .* one of: gemmini-16"),
        ((1, 2, 3), {"dataflow": "rs"}, "dataflow 'rs' is not one of ws, os, is"),
        ((1, 2, 3), {"array": (0, 4)}, "array 0x4 has no cells"),
    ],
)
def test_mistakes_are_told(arguments, options, message):
    with pytest.raises(SystolicError, match=message):
        cost.matmul(*arguments, **options)
