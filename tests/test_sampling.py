"""Filters against recorded outputs; drawing as a function of seed, row and step alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from systolic.ir.errors import SystolicError
from systolic.runner.sampling import (
    Sampling,
    filtered,
    keep_top_k,
    keep_top_p,
    probabilities,
    sample,
    uniform,
)


@pytest.fixture(scope="module")
def recorded(shared):
    return np.load(shared / "oracle" / "_sampling" / "processors.npz")


def assert_same_scores(mine: np.ndarray, recorded: np.ndarray) -> None:
    """Equal up to a constant, with the same tokens removed."""
    assert (np.isneginf(mine) == np.isneginf(recorded)).all()
    kept = np.isfinite(recorded)
    difference = mine[kept] - recorded[kept]
    assert np.abs(difference - difference[0]).max() < 1e-5


@pytest.mark.parametrize("source", ["out", "ties"])
@pytest.mark.parametrize("top_k", [1, 5, 40, 1000])
def test_top_k_as_recorded(recorded, source, top_k):
    logits = recorded["logits" if source == "out" else "logits_ties"]
    for row, expected in zip(logits, recorded[f"{source}__top_k_{top_k}"], strict=True):
        assert_same_scores(keep_top_k(row.astype(np.float64), top_k), expected)


@pytest.mark.parametrize("top_p", ["0.9", "0.5", "0.01", "0.0", "0.999"])
def test_top_p_as_recorded(recorded, top_p):
    for row, expected in zip(recorded["logits"], recorded[f"out__top_p_{top_p}"], strict=True):
        assert_same_scores(keep_top_p(row.astype(np.float64), float(top_p)), expected)


def test_top_p_drops_a_tail_of_exactly_the_rest():
    kept = keep_top_p(np.zeros(4), 0.5)  # four tokens of 0.25 each, and half of the mass goes
    assert np.isneginf(kept).tolist() == [True, True, False, False]


@pytest.mark.parametrize("temperature", ["0.7", "1.9"])
def test_temperature_as_recorded(recorded, temperature):
    for row, expected in zip(recorded["logits"], recorded[f"out__temperature_{temperature}"], strict=True):
        assert_same_scores(filtered(row, Sampling(temperature=float(temperature))), expected)


def test_temperature_comes_before_top_p(recorded):
    expected = recorded["combo_probs__temp1.5_topp0.7"]
    for row, row_expected in zip(recorded["logits"], expected, strict=True):
        scores = filtered(row, Sampling(temperature=1.5, top_p=0.7))
        np.testing.assert_allclose(probabilities(scores), row_expected, atol=1e-6)


def test_greedy_takes_the_first_of_equal_maxima():
    assert sample(np.array([0.0, 3.0, 3.0, 1.0], np.float32), Sampling(), step=0) == 1


def test_numbers_depend_on_seed_row_and_step_only():
    drawn = {(s, r, t): uniform(s, r, t) for s in (0, 1, 2**64 - 1) for r in (0, 1, 7) for t in (0, 1, 500)}
    assert len(set(drawn.values())) == len(drawn)
    assert all(0 <= number < 1 for number in drawn.values())
    assert drawn == {key: uniform(*key) for key in drawn}
    # A recorded value: the numbers are part of the contract "same seed, same text".
    assert uniform(7, 0, 3) == 0.44205212947108785


def test_frequencies_follow_the_filtered_probabilities():
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))
    sampling = Sampling(temperature=1.0, top_k=4, top_p=0.95, seed=3)
    counts = np.bincount([sample(logits, sampling, step) for step in range(4000)], minlength=5)
    expected = probabilities(filtered(logits, sampling))
    assert counts[4] == 0
    assert np.abs(counts / 4000 - expected).max() < 0.03


def test_what_is_filtered_out_is_never_drawn_even_at_the_ends():
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], np.float32)
    drawn = {sample(logits, Sampling(temperature=1.0), step) for step in range(100)}
    assert drawn == {1, 3}


def test_a_tiny_temperature_is_greedy():
    logits = np.array([1.0, 1.5, -3.0], np.float32)
    assert sample(logits, Sampling(temperature=1e-308), step=0) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(value, temperature):
    logits = np.array([0.0, value], np.float32)
    with pytest.raises(SystolicError, match="may be damaged"):
        sample(logits, Sampling(temperature=temperature), step=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 1.5),
        ("top_p", -0.1),
        ("top_p", float("nan")),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_a_bad_value_is_named(field, value):
    with pytest.raises(SystolicError, match=f"{field} must be .*not {re.escape(repr(value))}"):
        Sampling(**{field: value})
