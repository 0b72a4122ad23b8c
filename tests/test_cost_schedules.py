"""Schedules: the search is exact, a walk over the loops finds what it predicts, and limits are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolic.compiler import cost
from systolic.compiler.cost.schedule import (
    Schedule,
    choose_schedule,
    fastest_schedules,
    main_memory,
)
from systolic.compiler.cost.schedule_run import run_schedule, walk
from systolic.compiler.cost.targets import Arrays, Memory, Target, load_target
from systolic.ir.errors import SystolicError

SIZES = st.tuples(*[st.integers(1, 40)] * 3)


def small_target(room: int = 2000, dataflows: tuple[str, ...] = ("ws", "os", "is"), **changes) -> Target:
    arrays = Arrays(4, 4, clock_hz=1e9, overlapped=True, dataflows=dataflows)
    memory = Memory(on_chip_bytes=room, hbm_bytes_per_second=4e9, hbm_latency_seconds=3e-9)
    return Target("small", "", replace(arrays, **changes), memory, {})


def walked(schedule: Schedule, target: Target, seed: int = 0):
    """The walk of a schedule over random int8 operands, and the product that it must give."""
    (m, k, n), generator = schedule.shape, np.random.default_rng(seed)
    lhs, rhs = (generator.integers(-128, 128, shape, np.int8) for shape in ((m, k), (k, n)))
    run = run_schedule(lhs, rhs, schedule, target.arrays, main_memory(target), "i8")
    return run, lhs.astype(np.int32) @ rhs.astype(np.int32)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(40, 3000), st.booleans(), st.integers(1, 3))
def test_a_walk_finds_the_product_and_the_bytes_and_cycles_within_bounds(shape, room, overlapped, count):
    target = small_target(room, overlapped=overlapped, count=count)
    for schedule in fastest_schedules(*shape, "i8", target, 4):
        run, product = walked(schedule, target)
        np.testing.assert_array_equal(run.result, product)
        assert sum(run.moved.values()) == schedule.moved
        longer = max(schedule.arrays_cycles, schedule.memory_cycles)
        both = schedule.arrays_cycles + schedule.memory_cycles + 3 * 4  # and the way out of the last fold
        assert longer <= min(run.cycles, schedule.cycles) + 1e-6
        assert max(run.cycles, schedule.cycles) <= both + 1e-6


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 5)] * 3), st.integers(100, 3000))
def test_where_all_steps_are_alike_the_walk_takes_the_predicted_cycles(pieces, room):
    target = small_target(room)
    for schedule in fastest_schedules(*(4 * size for size in pieces), "i8", target, 6):
        steps = list(walk(schedule))
        whole = all(size % tile == 0 for size, tile in zip(schedule.shape, schedule.tile, strict=True))
        tiles = [{str(step.tile(x)) for step in steps} for x in ("mk", "kn", "mn")]
        if whole and (schedule.buffers == 1 or all(len(places) == len(steps) for places in tiles)):
            assert walked(schedule, target)[0].cycles == pytest.approx(schedule.cycles)


def every_schedule(shape, target: Target, dtype: str = "i8") -> list[Schedule]:
    return fastest_schedules(*shape, dtype, target, 10**6)


@settings(max_examples=10, deadline=None)
@given(st.tuples(*[st.integers(1, 20)] * 3), st.integers(60, 600))
def test_no_schedule_that_fits_is_walked_much_faster_than_the_chosen_one(shape, room):
    """Exact by the closed form; by the walk, up to what its means hide: the first and last tiles."""
    target = small_target(room)
    found = every_schedule(shape, target)
    assert found[0] == choose_schedule(*shape, "i8", target)
    assert max(schedule.on_chip for schedule in found) <= room
    best = min(walked(schedule, target)[0].cycles for schedule in found[:: max(len(found) // 20, 1)])
    assert walked(found[0], target)[0].cycles <= 1.25 * best


def test_every_dataflow_order_and_number_of_buffers_is_a_candidate():
    found = every_schedule((20, 20, 20), small_target(10**6))
    assert {schedule.dataflow for schedule in found} == {"ws", "os", "is"}
    assert {schedule.order for schedule in found} == {"nmk", "mnk", "nkm", "mkn", "knm", "kmn"}
    assert {schedule.buffers for schedule in found} == {1, 2}


def test_only_the_dataflows_of_the_arrays_are_candidates():
    found = every_schedule((20, 20, 20), load_target("tpu-v1"))
    assert {schedule.dataflow for schedule in found} == {"ws"}


def test_what_limits_a_schedule_is_told():
    gemmini, v2 = load_target("gemmini-16"), load_target("tpu-v2")
    decode = choose_schedule(1, 4096, 4096, "i8", gemmini)
    assert (decode.bound, decode.buffers) == ("memory", 2)
    assert decode.limit().startswith("main memory (")
    loading, prefill = (choose_schedule(m, 4096, 4096, "bf16", v2) for m in (8, 8192))
    assert loading.limit().endswith("which load weights for longer than a wave takes")
    assert prefill.bound == "arrays"
    assert prefill.limit().endswith("cycles)")
    tight = choose_schedule(300, 300, 300, "i8", small_target(600))
    assert tight.limit().endswith("times, as not all of it fits on chip")


def test_more_room_is_never_slower():
    found = [choose_schedule(64, 64, 64, "i8", small_target(room)) for room in (150, 600, 3000, 60_000)]
    cycles = [schedule.cycles for schedule in found]
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[-1] < 0.5 * cycles[0]
    assert found[-1].moved < found[0].moved


def test_where_no_tile_fits_is_told():
    with pytest.raises(SystolicError, match=r"no tile of \[9, 9\] · \[9, 9\] fits into 20 bytes"):
        choose_schedule(9, 9, 9, "i8", small_target(20))
    with pytest.raises(SystolicError, match="target plain has no arrays to tile for"):
        choose_schedule(9, 9, 9, "i8", Target("plain", "", None, Memory(1000), {}))


def test_the_cost_of_a_matmul_behind_a_memory_is_that_of_its_schedule():
    found, schedule = (
        cost.matmul(64, 512, 512, "int8", "gemmini-16"),
        choose_schedule(64, 512, 512, "i8", load_target("gemmini-16")),
    )
    assert found.cycles == round(schedule.cycles)
    assert found.tiling == schedule.describe()
    assert found.hbm_bytes == schedule.moved
    assert found.bound == schedule.bound
    assert [other["cycles"] for other in found.alternatives] == sorted(
        o["cycles"] for o in found.alternatives
    )
