"""How sure a number is that rests on ratings: 95% intervals over the choice of neurons.

Ratings of one neuron hang together, whoever made them, so neurons are what is drawn again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastexplain.kernels.measuring import interval_share
from fastexplain.scorers.accuracy import wilson

LEAST = 20
"""Neurons that an interval rests on at the least: of 12, strengths that lie far apart are within it
in 78% of cases in place of 95% (benches/ratings.py)."""

_RESAMPLES = 1000
_SEED = 0


class Estimate(NamedTuple):
    """A number with the ends of its 95% interval.

    Attributes:
        value: None where it is undefined.
        low, high: None where there is no interval: of fewer than `LEAST` neurons.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


def weights(neurons: int) -> np.ndarray:
    """How often each neuron is drawn in each resample: float64 `[resamples, neurons]`, seeded."""
    rng = np.random.default_rng(_SEED)
    return rng.multinomial(neurons, np.full(neurons, 1 / neurons), _RESAMPLES).astype(np.float64)


def estimate(value: float, resampled: np.ndarray, neurons: int) -> Estimate:
    """A number with the expanded percentile interval of its resamples.

    Source: Hesterberg 2015, "What teachers should know about the bootstrap"; see `interval_share`.

    Args:
        value: NaN where it is undefined.
        resampled: float64 `[resamples]`; NaN, where a resample has none, is left out.
        neurons: how many it rests on.
    """
    if np.isnan(value):
        return Estimate(None)
    known = resampled[~np.isnan(resampled)]
    if neurons < LEAST or not len(known):
        return Estimate(float(value))
    share = interval_share(neurons, 0)
    low, high = np.quantile(known, [share, 1 - share]).tolist()
    return Estimate(float(value), low, high)


def share_of(yes: np.ndarray, counts: np.ndarray) -> Estimate:
    """A share of all comparisons, with its interval.

    The interval is Wilson's, of as many comparisons as would be as sure if each were of a neuron of
    its own: p (1 - p) by the variance over neurons (of a ratio, linearised), and one for each
    neuron where p is 0 or 1, of which a bootstrap would be certain. Source: Korn and Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts estimated
    from survey data".

    Args:
        yes: float64 `[neurons]`, the comparisons of each that count for the share.
        counts: float64 `[neurons]`, all of its comparisons.
    """
    neurons, total = int((counts > 0).sum()), float(counts.sum())
    if not total:
        return Estimate(None)
    share = float(yes.sum()) / total
    if neurons < LEAST:
        return Estimate(share)
    variance = neurons / (neurons - 1) * float(((yes - share * counts) ** 2).sum()) / total**2
    effective = float(neurons)
    if variance > 0:
        effective = min(max(share * (1 - share) / variance, 1.0), total)
    return Estimate(share, *wilson(share * effective, effective))
