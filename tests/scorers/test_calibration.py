"""Calibration of simulated values, against scikit-learn, NumPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from fastexplain.scorers.calibration import WAYS, calibrate


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three neurons' true, simulated and applied values, with ties and gaps."""
    rng = np.random.default_rng(seed)
    true = rng.standard_normal((3, 4, 8))
    simulated = np.round(true + rng.standard_normal(true.shape), rng.integers(0, 3))
    simulated[rng.random(true.shape) < 0.1] = np.nan
    return true, simulated, np.round(3 * rng.standard_normal((3, 2, 8)), 2)


def known(true: np.ndarray, simulated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    there = ~np.isnan(simulated)
    return np.maximum(true[there], 0), simulated[there]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_isotonic_equals_scikit_learn(seed: int) -> None:
    true, simulated, applied = drawn(seed)
    for x, y, own, found in zip(
        true, simulated, applied, calibrate("isotonic", true, simulated, applied), strict=True
    ):
        fit = IsotonicRegression(out_of_bounds="clip").fit(*reversed(known(x, y)))
        np.testing.assert_allclose(found, fit.predict(own.ravel()).reshape(own.shape), atol=1e-10)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_a_line_is_that_of_least_squares_and_never_falls(seed: int) -> None:
    true, simulated, applied = drawn(seed)
    for sign in (1, -1):
        found = calibrate("linear", true, sign * simulated, applied)
        for x, y, own, line in zip(true, sign * simulated, applied, found, strict=True):
            x, y = known(x, y)
            slope, intercept = np.polyfit(y, x, 1) if np.ptp(y) > 0 else (0.0, x.mean())
            expected = intercept + slope * own if slope > 0 else np.full(own.shape, x.mean())
            np.testing.assert_allclose(line, expected, atol=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_percentiles_take_on_the_distribution_of_the_activations(seed: int) -> None:
    true, simulated, _ = drawn(seed)
    found = calibrate("percentile", true, simulated, simulated)
    for x, y, own in zip(true, simulated, found, strict=True):
        own = own[~np.isnan(y)]
        x, y = known(x, y)
        assert own.mean() == pytest.approx(x.mean())  # ties take the mean of their share
        assert (np.diff(own[np.argsort(y, kind="stable")]) >= -1e-12).all()
        if len(np.unique(y)) == len(y):
            np.testing.assert_allclose(np.sort(own), np.sort(x))


def test_percentiles_of_ties_by_hand() -> None:
    true = np.array([[[5.0, 0, 1, 3]]])
    simulated = np.array([[[7.0, 7, 2, 2]]])
    applied = np.array([[[2.0, 7, 4.5, 100, -100]]])
    assert calibrate("percentile", true, simulated, applied).tolist() == [
        [[0.5, 4.0, 2.25, 4.0, 0.5]]
    ]


@pytest.mark.parametrize("way", WAYS)
def test_without_a_calibration_split_there_is_no_value_but_that_of_none(way: str) -> None:
    true, simulated, applied = drawn(0)
    simulated[1] = np.nan
    found = calibrate(way, true, simulated, applied)
    assert np.isnan(found[1]).all() == (way != "none")
    assert not np.isnan(found[[0, 2]]).any()
