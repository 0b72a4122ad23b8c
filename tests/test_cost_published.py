"""TPU v1 against the performance counters that its designers published (ISCA 2017, table 3)."""

from __future__ import annotations

import pytest

from benchmarks import tpu_v1

MEMORY_BOUND = ("MLP0", "MLP1", "LSTM0", "LSTM1")


@pytest.mark.parametrize("name", MEMORY_BOUND)
def test_weight_shifts_are_the_published_share_of_matrix_time(name):
    app = tpu_v1.PUBLISHED[name]
    assert tpu_v1.model(name).shift == pytest.approx(app.of_matrix_time(app.shift), abs=0.008)


@pytest.mark.parametrize(
    ("name", "points"), [("MLP0", 0.01), ("LSTM0", 0.01), ("MLP1", 0.04), ("LSTM1", 0.03)]
)
def test_active_and_stalled_cycles_are_near_the_published_ones(name, points):
    app, found = tpu_v1.PUBLISHED[name], tpu_v1.model(name)
    assert found.active == pytest.approx(app.of_matrix_time(app.active), abs=points)
    assert found.stall == pytest.approx(app.of_matrix_time(app.stall), abs=points)
    assert found.active + found.stall + found.shift == pytest.approx(1)


def test_the_convolution_with_fully_connected_layers_has_the_published_shares():
    """And the operations per second of the paper's own counters, which are not those that it measured."""
    app, found = tpu_v1.PUBLISHED["CNN1"], tpu_v1.model("CNN1")
    for share in ("active", "stall", "shift"):
        assert getattr(found, share) == pytest.approx(app.of_matrix_time(getattr(app, share)), abs=0.006)
    assert found.tera * (1 - app.other / 100) == pytest.approx(0.92 * app.useful, rel=0.02)


def test_a_convolution_with_enough_rows_never_waits_for_weights():
    assert tpu_v1.model("CNN0").active == 1


@pytest.mark.parametrize("name", ["MLP0", "LSTM0", "CNN0"])
def test_operations_per_second_lie_between_all_cycles_and_those_that_the_matrix_unit_had(name):
    app, found = tpu_v1.PUBLISHED[name], tpu_v1.model(name)
    assert found.tera * (1 - app.other / 100) < app.tera < found.tera


def test_cycles_at_half_the_speed_explain_the_papers_own_two_rows_for_lstms():
    """Useful multiply-adds of 92 tera are twice the measured operations of the LSTMs, and of no other."""
    ratio = {name: 0.92 * app.useful / app.tera for name, app in tpu_v1.PUBLISHED.items()}
    assert [name for name, value in ratio.items() if value > 1.9] == ["LSTM0", "LSTM1"]
