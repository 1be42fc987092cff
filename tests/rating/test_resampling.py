"""Intervals over the choice of neurons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.rating.resampling import LEAST, Estimate, estimate, share_of, weights
from fastexplain.scorers.accuracy import wilson


def test_each_resample_draws_as_many_neurons() -> None:
    drawn = weights(12)
    assert (drawn.sum(axis=1) == 12).all() and np.array_equal(drawn, weights(12))
    assert drawn.mean() == pytest.approx(1) and drawn.var() == pytest.approx(11 / 12, rel=0.05)


def test_what_is_undefined_has_no_interval() -> None:
    assert estimate(np.nan, np.ones(9), 50) == Estimate(None)
    assert estimate(0.5, np.full(9, np.nan), 50) == Estimate(0.5)
    assert estimate(0.5, np.arange(9), LEAST - 1) == Estimate(0.5)
    assert share_of(np.zeros(20), np.zeros(20)) == Estimate(None)
    assert share_of(np.ones(LEAST - 1), np.ones(LEAST - 1)) == Estimate(1.0)


def test_one_comparison_a_neuron_is_about_wilsons() -> None:
    yes = np.arange(40) < 30
    found = share_of(yes.astype(float), np.ones(40))
    assert found[1:] == pytest.approx(wilson(30, 40), abs=0.005)


def test_where_all_agree_there_is_as_much_doubt_as_neurons_leave() -> None:
    found = share_of(np.full(LEAST, 3.0), np.full(LEAST, 3.0))
    assert found == (1, *wilson(LEAST, LEAST)) and found.low < 0.9


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=LEAST, max_size=30))
def test_a_share_is_within_its_interval(counts) -> None:
    yes, no = np.array(counts, float).T
    found = share_of(yes, yes + no)
    if found.low is not None:
        assert 0 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 1


@pytest.mark.scale
@pytest.mark.parametrize("neurons, share", [(LEAST, 0.7), (40, 0.6), (40, 0.95)])
def test_the_interval_of_a_share_covers_the_truth(neurons, share) -> None:
    """Neurons differ in their share, so that their three comparisons hang together."""
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(2000):
        own = rng.beta(share * 4, (1 - share) * 4, neurons)
        found = share_of(rng.binomial(3, own).astype(float), np.full(neurons, 3.0))
        covered.append(found.low <= share <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.98, np.mean(covered)
