"""The algebra of time against sets of steps counted one by one, and the written forms of types."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systolic.ir.time import (
    NOW,
    PREFIX,
    WHOLE,
    Access,
    Reach,
    delay_access,
    parse_access,
    window_access,
)
from systolic.ir.types import (
    DTYPES,
    Past,
    Size,
    TensorType,
    Whole,
    parse_dim,
    parse_type,
    show_type,
)

LENGTH = 12

causal_accesses = st.builds(
    lambda newest, width: Access(None if width is None else newest - width, newest),
    st.integers(-4, 0),
    st.none() | st.integers(0, 5),
)
accesses = causal_accesses | st.just(WHOLE)
reaches = st.lists(accesses, max_size=4).map(lambda parts: Reach.of(*parts))
clocks = st.sampled_from(["main", "source", "target_2"])
dims = st.one_of(
    st.integers(0, 9999),
    st.builds(Size, st.sampled_from(["hidden", "n_1"])),
    st.builds(Past, clocks, st.none() | st.integers(1, 999)),
    st.builds(Whole, clocks),
)
types = st.builds(TensorType, st.lists(dims, max_size=4).map(tuple), st.sampled_from(list(DTYPES)))
positions = st.integers(0, LENGTH - 1)


@given(dims)
def test_dimensions_parse_back(dim):
    assert parse_dim(str(dim)) == dim


@given(types)
def test_types_parse_back(type_):
    assert parse_type(str(type_)) == type_


@given(accesses)
def test_accesses_parse_back(access):
    assert parse_access(str(access)) == access


@pytest.mark.parametrize("text", ["", "x", "-1", "past-1", "$", "past@", "8past"])
def test_what_is_no_dimension_is_refused(text):
    with pytest.raises(ValueError, match="is not a dimension"):
        parse_dim(text)


@pytest.mark.parametrize("text", ["f33[4]", "f32", "f32[4", "[4]", "f32[4]]"])
def test_what_is_no_type_is_refused(text):
    with pytest.raises(ValueError, match="is not a type like"):
        parse_type(text)


@pytest.mark.parametrize("text", ["", "0", "t+1", "0:", "1:t", "t:t-", "t-1:0"])
def test_what_is_no_access_is_refused(text):
    with pytest.raises(ValueError, match="is not an access like"):
        parse_access(text)


def test_accesses_are_written_like_slices():
    shown = [str(a) for a in (NOW, delay_access(2), window_access(8), PREFIX, WHOLE, Access(None, -2))]
    assert shown == ["t", "t-2", "t-7:t", "0:t", ":", "0:t-2"]
    assert [a.describe() for a in (NOW, delay_access(2), window_access(8), PREFIX, WHOLE)] == [
        "now",
        "delay 2",
        "window 8",
        "prefix",
        "whole",
    ]


def test_several_values_are_shown_in_brackets():
    assert show_type((TensorType((4,), "f32"), TensorType((), "i32"))) == "(f32[4], i32[])"


@given(accesses, positions)
def test_an_access_reads_the_steps_between_its_ends(access, t):
    expected = {
        step
        for step in range(LENGTH)
        if (access.oldest is None or step - t >= access.oldest)
        and (access.newest is None or step - t <= access.newest)
    }
    assert set(access.steps(t, LENGTH)) == expected


def _steps_along(first: Access, second: Access, t: int) -> set[int]:
    return {read for step in first.steps(t, LENGTH) for read in second.steps(step, LENGTH)}


@given(causal_accesses, causal_accesses, positions)
def test_causal_accesses_compose_exactly(first, second, t):
    assert set(first.then(second).steps(t, LENGTH)) == _steps_along(first, second, t)


@given(accesses, accesses, positions)
def test_composition_never_forgets_a_step(first, second, t):
    assert set(first.then(second).steps(t, LENGTH)) >= _steps_along(first, second, t)


@given(accesses, accesses, accesses)
def test_composition_is_associative_and_now_changes_nothing(a, b, c):
    assert a.then(b).then(c) == a.then(b.then(c))
    assert a.then(NOW) == NOW.then(a) == a


@given(st.lists(accesses, max_size=5), positions)
def test_a_reach_is_the_union_of_its_accesses(parts, t):
    expected = {step for part in parts for step in part.steps(t, LENGTH)}
    assert Reach.of(*parts).steps(t, LENGTH) == expected


@given(reaches)
def test_the_parts_of_a_reach_are_apart_and_in_order(reach):
    for earlier, later in zip(reach.parts, reach.parts[1:], strict=False):
        assert earlier.newest is not None
        assert later.oldest is not None
        assert earlier.newest + 1 < later.oldest


@given(reaches, reaches, positions)
def test_union_is_the_union_of_steps(left, right, t):
    union = left.union(right)
    assert union.steps(t, LENGTH) == left.steps(t, LENGTH) | right.steps(t, LENGTH)
    assert union == right.union(left)


@given(reaches, causal_accesses, positions)
def test_a_reach_continues_along_an_edge(reach, edge, t):
    expected = {read for part in reach.parts for read in _steps_along(edge, part, t)}
    actual = reach.then(edge).steps(t, LENGTH)
    assert actual >= expected
    if reach.is_causal:
        assert actual == expected


@given(reaches.filter(lambda reach: reach.is_causal), positions)
def test_a_repeated_reach_holds_everything_older(reach, t):
    expected = {step for step in range(t + 1) for k in range(t + 1) if step + k in reach.steps(t, LENGTH)}
    assert reach.repeated().steps(t, LENGTH) == expected


@given(reaches, positions)
def test_a_causal_reach_reads_nothing_later(reach, t):
    if reach.is_causal:
        assert all(step <= t for step in reach.steps(t, LENGTH))
    else:
        assert LENGTH - 1 in reach.steps(t, LENGTH)
