"""What each family keeps, beside what transformers keeps for the same config."""

from __future__ import annotations

import pytest

from benchmarks.families import configs, kept_by, recorded
from systolic.models.families import FAMILIES, state_kinds

RECORD = recorded()


def test_most_families_that_generate_are_recorded():
    assert len(set(RECORD) & set(FAMILIES)) > 70


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(RECORD) & set(FAMILIES)))
def test_no_family_keeps_more_than_transformers(model_type):
    entry = RECORD[model_type]
    kept = kept_by(entry["config"])
    assert kept is not None
    assert kept.growing <= entry["growing"]
    assert kept.fixed <= entry["fixed"]


def test_the_kinds_that_are_shown_are_those_of_recorded_cases():
    assert set(state_kinds()) == set(FAMILIES)
    for model_type in ("llama", "mamba", "t5", "jamba", "recurrent_gemma", "lstm_lm", "bert"):
        kept = kept_by(configs()[model_type])
        assert state_kinds()[model_type] == (list(kept.kinds) if kept else [])
