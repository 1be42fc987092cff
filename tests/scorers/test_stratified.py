"""Estimates from strata: exact where all is drawn, unbiased and covering where not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import Population, drawn_from, population

from fastexplain.scorers.stratified import (
    Estimates,
    Places,
    average_precisions,
    correlations,
    student,
)


def activity(own: Population) -> np.ndarray:
    """Where a neuron is active: a tenth of its largest activation or more; bool, as `acts`."""
    return own.acts >= 0.1 * own.acts.max(axis=(1, 2), keepdims=True)


def estimates(own: Population, seed: int) -> tuple[Estimates, Estimates]:
    """Of the correlation and of the area under the precision-recall curve."""
    found = drawn_from(own, seed)
    rows, places = np.arange(len(own.acts))[:, None], Places(found.strata, found.sizes)
    true, simulated = own.acts[rows, found.ids], own.simulated[rows, found.ids]
    active = activity(own)[rows, found.ids]
    return correlations(true, simulated, places), average_precisions(active, simulated, places)


def average_precision(active: np.ndarray, simulated: np.ndarray) -> float:
    """Each step up in recall times the precision there, of every threshold; by definition."""
    area, hits, predicted = 0.0, 0, 0
    thresholds, which = np.unique(-simulated, return_inverse=True)
    counts, found = np.bincount(which), np.bincount(which, weights=active)
    for threshold in range(len(thresholds)):
        hits, predicted = hits + found[threshold], predicted + counts[threshold]
        area += found[threshold] / active.sum() * hits / predicted
    return area


def truths(own: Population) -> np.ndarray:
    """Both over all excerpts but those that explanations are written from, `[2, N]`."""
    found = np.full((2, len(own.acts)), np.nan)
    for neuron in range(len(own.acts)):
        others = own.others(neuron)
        x, y = own.acts[neuron, others].ravel(), own.simulated[neuron, others].ravel()
        found[0, neuron] = np.corrcoef(x, y)[0, 1]
        active = activity(own)[neuron, others].ravel()
        if active.any():
            found[1, neuron] = average_precision(active, y)
    return found


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(17, 30))
def test_of_a_corpus_that_is_drawn_whole_the_estimate_is_the_truth(seed, count) -> None:
    own = population(np.random.default_rng(seed), neurons=5, excerpts=count)
    ids = np.stack([own.others(neuron) for neuron in range(5)])
    strata = np.arange(count - 5)[None].repeat(5, axis=0) // 4
    places = Places(strata, np.stack([np.bincount(each) for each in strata]))
    rows = np.arange(5)[:, None]
    true, simulated = own.acts[rows, ids], own.simulated[rows, ids]
    active = activity(own)[rows, ids]
    found = correlations(true, simulated, places), average_precisions(active, simulated, places)
    for expected, each in zip(truths(own), found, strict=True):
        np.testing.assert_allclose(each.value, expected, atol=1e-9)
        np.testing.assert_allclose([each.low, each.high], [expected] * 2, atol=1e-9)


def test_over_many_draws_estimates_are_unbiased_and_intervals_cover() -> None:
    own = population(np.random.default_rng(3), neurons=100, excerpts=500, tokens=8)
    for measure, expected in enumerate(truths(own)):
        draws = [estimates(own, seed)[measure] for seed in range(5)]
        value, low, high = (np.stack([getattr(d, name) for d in draws]) for name in
                            ("value", "low", "high"))  # fmt: skip
        there = ~np.isnan(value)
        assert there.mean() > 0.9
        assert abs((value - expected)[there].mean()) < 0.01
        if measure == 0:  # the other one's are too narrow with tails as heavy as these
            assert 0.9 <= ((low <= expected) & (expected <= high))[there].mean() <= 0.98


def test_a_perfect_simulation_scores_1_and_one_turned_round_minus_1() -> None:
    own = population(np.random.default_rng(4), neurons=20, excerpts=200)
    for sign in (1, -1):
        own.simulated = (3 * sign * own.acts + 2).astype(np.float32)
        found, _ = estimates(own, seed=0)
        np.testing.assert_allclose(found.value, sign, atol=1e-6)
        np.testing.assert_allclose([found.low, found.high], sign, atol=1e-4)


def test_what_does_not_vary_or_was_not_simulated_is_undefined() -> None:
    true = np.random.default_rng(5).random((4, 4, 8)).astype(np.float32)
    simulated = true.copy()
    simulated[0] = 3
    true[1] = 0
    strata = np.array([[0, 0, 1, 1]] * 4)
    strata[2, 2:] = -1  # of one stratum all failed
    strata[3, 3] = -1  # of one stratum one is left
    places = Places(strata, np.array([[9, 20]] * 4))
    found = correlations(true, simulated, places)
    assert np.isnan(found.value[:3]).all() and found.value[3] == pytest.approx(1)
    assert np.isnan([found.low, found.high]).all()
    area = average_precisions(true > 0.5, simulated, places)
    assert np.isnan(area.value[1:3]).all() and np.isnan(area.low[3])
    assert area.value[0] == pytest.approx((true[0] > 0.5) @ np.ones(8) @ [9 / 2, 9 / 2, 10, 10]
                                          / (29 * 8), abs=0.05)  # fmt: skip


def test_tokens_without_a_value_are_left_out() -> None:
    own = population(np.random.default_rng(6), neurons=3, excerpts=200)
    cut = Population(own.acts[..., :5], own.simulated[..., :5], own.explained)
    found = drawn_from(own, 0)
    rows, places = np.arange(3)[:, None], Places(found.strata, found.sizes)
    whole = correlations(own.acts[rows, found.ids], own.simulated[rows, found.ids], places).value
    own.simulated[:, :, 5:] = np.nan
    left, expected = (
        correlations(each.acts[rows, found.ids], each.simulated[rows, found.ids], places).value
        for each in (own, cut)
    )
    np.testing.assert_allclose(left, expected)
    assert (left != whole).all()


def test_quantiles_of_student() -> None:
    known = {2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 1e6: 1.95997}
    found = student(np.array(list(known)))
    np.testing.assert_allclose(found, list(known.values()), rtol=0.04)
    np.testing.assert_allclose(found[2:], list(known.values())[2:], rtol=2e-3)
