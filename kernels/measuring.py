"""What agreement of true and simulated activations is measured by, and from what sums it follows.

Each measure is a formula of sums over tokens. The sums are kept by excerpt, so that the measures of
any set of excerpts, weighted or drawn again, follow from those of its excerpts: 21 numbers for each
in place of all its tokens. Only the area under the precision-recall curve needs more: the tokens in
order of their simulated value.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

SUMS = (
    "tokens", "x", "y", "xx", "xy", "yy", "raw", "raw_raw", "raw_y",
    "rank_x", "rank_y", "rank_xx", "rank_xy", "rank_yy",
    "squares", "distances", "deviations", "hits", "predicted", "active", "sides",
)  # fmt: skip
"""Sums over an excerpt's tokens; see `ExcerptSums`."""

MEASURES = (
    "correlation", "raw_correlation", "spearman", "r_squared", "deviation_explained",
    "auprc", "f1", "iou", "cosine",
)  # fmt: skip
"""What `measures` and `bootstrap` give; see `measures`."""

AUPRC = MEASURES.index("auprc")

MOST_EXCERPTS = 8000
"""Excerpts of a neuron; places in `ExcerptSums.ranked` are 16-bit."""

# Of a sum of squares about the mean of all excerpts, the part that has to be left about the mean of
# those that were drawn: below it is rounding, and these do not vary.
_ROUNDING = 1e-12


class Binary(NamedTuple):
    """What the measures of active and inactive tokens, and the calibrated ones, take beside.

    Attributes:
        scale: floating `[N]`, the largest activation over the excerpts that an explanation was
            written from. A token is active where discretising its true activation by this gives 1
            or more: (10 * max(x, 0)) / scale >= 1. NaN or <= 0: unknown.
        threshold: floating `[N]`; a token is predicted to be active where its simulated value is
            this or more. NaN: unknown.
        calibrated: floating `[N, E, T]`, the simulated values on the scale of activations. NaN
            where unknown.
    """

    scale: Any
    threshold: Any
    calibrated: Any


class ExcerptSums(NamedTuple):
    """Sums over the tokens of each excerpt at which both activations are known.

    x is max(true, 0) and `raw` the true activation itself, y the simulated one; each less its mean
    over all of the neuron's tokens, exactly 0 where it does not vary. Of ranks among all of the
    neuron's tokens (ties have their mean) likewise. What is unknown is NaN.

    Attributes:
        sums: float64 `[N, E, len(SUMS)]`: tokens; x, y and their products; raw, its square, raw
            times y; ranks of x and y and their products; (x - c)**2 and |x - c| with c the
            calibrated value, |x - mean x|; tokens that are active and predicted to be, that are
            predicted, that are active; and by how many tokens more x is above its mean than below.
        ranked: int16 `[N, E * T]`, the tokens by falling simulated value: 4 * excerpt, plus 2 where
            it is active, plus 1 where it is the last of its value; -1 after the last known one.
            All -1 where it is unknown what is active.
    """

    sums: Any
    ranked: Any


class Bootstrap(NamedTuple):
    """Intervals, and means over neurons, of D resamples; K is len(MEASURES).

    Attributes:
        low, high: float64 `[N, K]`, NaN where there is none.
        totals: float64 `[D, K]`, sums over neurons of what each resample measures. All neurons see
            the same draws, so the spread of the means tells how far another choice of excerpts
            would move them.
        counts: int64 `[D, K]`, neurons behind each total: those where it is defined.
    """

    low: Any
    high: Any
    totals: Any
    counts: Any


# Where the sums of x, y, xx, xy and yy stand, for each of the three correlations.
_CORRELATIONS = ((1, 2, 3, 4, 5), (6, 2, 7, 8, 5), (9, 10, 11, 12, 13))


UNSORTED = SUMS.index("rank_x")
"""Sums before this one need no order of the tokens, no scale and no calibration."""


def measure_sums(totals: Any, found: Any) -> None:
    """Write the measures `[K, D]`, but for AUPRC, from D sets of sums.

    Args:
        totals: float64 `[len(SUMS), D]`, or the first `[UNSORTED, D]` where no more is known.
        found: float64 `[K, D]`, given as NaN.
    """
    n = totals[0]
    # Loops over the sets are innermost and without branches, so that vector registers hold several.
    for place in range(3 if len(totals) > UNSORTED else 2):
        at_x, at_y, at_xx, at_xy, at_yy = _CORRELATIONS[place]
        x, y, xx, xy, yy = totals[at_x], totals[at_y], totals[at_xx], totals[at_xy], totals[at_yy]
        own = found[place]
        for d in range(len(n)):
            of_x, of_y = xx[d] - x[d] * x[d] / n[d], yy[d] - y[d] * y[d] / n[d]
            varies = (of_x > _ROUNDING * xx[d]) & (of_y > _ROUNDING * yy[d])
            value = (xy[d] - x[d] * y[d] / n[d]) / np.sqrt(of_x) / np.sqrt(of_y)
            own[d] = value if varies else np.nan
    if len(totals) == UNSORTED:
        return
    x, xx, squares, distances, deviations = totals[1], totals[3], totals[14], totals[15], totals[16]
    hits, predicted, active, sides = totals[17], totals[18], totals[19], totals[20]
    for d in range(len(n)):
        spread = xx[d] - x[d] * x[d] / n[d]
        # About the mean of these excerpts, where that is not the mean of all: no x between the two.
        deviation = deviations[d] - sides[d] * x[d] / n[d]
        varies = spread > _ROUNDING * xx[d]
        found[3, d] = 1 - squares[d] / spread if varies else np.nan
        found[4, d] = 1 - distances[d] / deviation if varies & (deviation > 0) else np.nan
        known = (active[d] > 0) & (predicted[d] >= 0)
        either = active[d] + predicted[d]
        found[6, d] = 2 * hits[d] / either if known else np.nan
        found[7, d] = hits[d] / (either - hits[d]) if known else np.nan
        known &= predicted[d] > 0
        found[8, d] = hits[d] / np.sqrt(active[d] * predicted[d]) if known else np.nan


def interval_share(tops: int, randoms: int) -> float:
    """The share of resamples beyond each end of a 95% interval, of so many excerpts of a kind.

    It is 2.5% of many. Resamples of few vary too little, by (n - 1) / n, and have tails of a normal
    distribution in place of Student's: plain percentiles of 5 excerpts cover 85% in place of 95%
    (tests/kernels/test_measures.py). Source: Hesterberg 2015, "What teachers should know about the
    bootstrap", "expanded percentile interval". 0, the extremes, where a kind has one excerpt only.
    """
    least = min(max(tops, randoms), min(tops, randoms) or tops + randoms)
    freedom = max(tops - 1, 0) + max(randoms - 1, 0)
    if least < 2:
        return 0.0
    # Student's quantile by that of a normal distribution (Abramowitz and Stegun 26.7.5).
    z = 1.959963984540054
    t = z + (z**3 + z) / (4 * freedom)
    t += (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return 0.5 * math.erfc(math.sqrt(least / (least - 1) / 2) * t)
