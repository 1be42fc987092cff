"""Estimates over a whole corpus from excerpts drawn by stratum, with their errors.

1. An excerpt of a stratum of n excerpts, of which m were drawn, stands for n / m.
2. The measure r is that of all drawn tokens with these weights.
3. Each excerpt is left out in turn, and its stratum's weight goes to the others; r_i is the measure
   without excerpt i. Of so few excerpts a quotient is biased, by about the sum over strata of
   (1 - m / n) (m - 1) (mean r_i - r), which is taken off; the variance is the sum over strata of
   (1 - m / n) (m - 1) / m times the sum of (r_i - mean r_i)**2. (The stratified jackknife; Jones
   1974, "Jackknife estimation of functions of stratum means".)
4. The 95% interval is by Student's t, its degrees of freedom after Satterthwaite 1946: the strata
   that vary most count most.

Steps 3 and 4 take a correlation by its arc tangent (Fisher's scale) and a share by the arc sine of
its root, where errors hardly depend on the value and no interval leaves the range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_NORMAL = 1.959963984540054
_MOST = 1 - 1e-9  # of a correlation whose arc tangent is taken


class Estimates(NamedTuple):
    """Of N neurons, float64 `[N]` each; NaN where undefined.

    Attributes:
        value: the estimate.
        error: its standard error; NaN where a stratum has but one of several excerpts. A
            correlation's is on its own scale.
        low, high: ends of its 95% interval.
    """

    value: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Places(NamedTuple):
    """Which stratum each of N neurons' E excerpts stands for.

    Attributes:
        strata: int `[N, E]`; -1 where there is no excerpt, or it was not simulated.
        sizes: int `[N, S]`, excerpts of each stratum.
    """

    strata: np.ndarray
    sizes: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """How many excerpts of each stratum there are, int64 `[N, S]`."""
        each = np.arange(self.sizes.shape[1])
        return (self.strata[..., None] == each).sum(axis=1)

    @property
    def covered(self) -> np.ndarray:
        """Whether every stratum has an excerpt, bool `[N]`."""
        return ((self.counts > 0) | (self.sizes == 0)).all(axis=1)

    def weights(self) -> np.ndarray:
        """What each excerpt stands for, float64 `[N, E]`; 0 where there is none."""
        each = np.where(self.counts > 0, self.sizes / np.maximum(self.counts, 1), 0.0)
        own = np.take_along_axis(each, np.maximum(self.strata, 0), axis=1)
        return np.where(self.strata >= 0, own, 0.0)

    def without_each(self) -> np.ndarray:
        """Weights `[N, E, E]` with excerpt i, along axis 1, left out; those of its stratum grow.

        NaN where it is the only one of its stratum.
        """
        weights, counts = self.weights(), self.counts
        own = np.take_along_axis(counts, np.maximum(self.strata, 0), axis=1)
        grown = np.where(own > 1, own / np.maximum(own - 1, 1), np.nan)
        same = (self.strata[:, :, None] == self.strata[:, None, :]) & (self.strata >= 0)[:, :, None]
        changed = np.where(same, weights[:, None, :] * grown[:, :, None], weights[:, None, :])
        one = np.eye(self.strata.shape[1], dtype=bool) & (self.strata >= 0)[:, :, None]
        return np.where(one & (own > 1)[:, :, None], 0.0, changed)


def correlations(true: np.ndarray, simulated: np.ndarray, places: Places) -> Estimates:
    """Estimates of Pearson's correlation over the corpus.

    Args:
        true, simulated: floating `[N, E, T]`; tokens at which either is NaN are left out.
    """
    known = ~(np.isnan(true) | np.isnan(simulated))
    x, y = (np.where(known, values, 0).astype(np.float64) for values in (true, simulated))
    count = np.maximum(known.sum(axis=(1, 2), keepdims=True), 1)
    # About the mean, so that sums of squares lose no digits.
    x, y = (np.where(known, v - v.sum(axis=(1, 2), keepdims=True) / count, 0) for v in (x, y))
    terms = known.astype(np.float64), x, y, x * x, x * y, y * y
    sums = np.stack([term.sum(axis=2) for term in terms], axis=-1)

    def pearson(weights: np.ndarray) -> np.ndarray:
        n, a, b, aa, ab, bb = np.moveaxis(weights @ sums, -1, 0)
        with np.errstate(all="ignore"):
            spreads = aa - a * a / n, bb - b * b / n
            varies = (spreads[0] > 1e-12 * aa) & (spreads[1] > 1e-12 * bb)
            return np.where(varies, (ab - a * b / n) / np.sqrt(spreads[0] * spreads[1]), np.nan)

    return _estimated(pearson, places, lambda r: np.arctanh(np.clip(r, -_MOST, _MOST)), np.tanh)


def average_precisions(active: np.ndarray, simulated: np.ndarray, places: Places) -> Estimates:
    """Estimates of the area under the precision-recall curve over the corpus.

    Tokens are predicted to be active from the highest simulated value down; those of one value
    come at once.

    Args:
        active: bool `[N, E, T]`, whether a token is active.
        simulated: floating `[N, E, T]`; tokens that are NaN are left out.
    """
    neurons, _, tokens = simulated.shape
    flat = simulated.reshape(neurons, -1)
    order = np.argsort(-flat, axis=1, kind="stable")  # NaN come last
    values = np.take_along_axis(flat, order, axis=1)
    is_active = np.take_along_axis(active.reshape(neurons, -1), order, axis=1)
    ends = np.append(np.diff(values, axis=1) != 0, np.ones((neurons, 1), bool), axis=1)

    def precision(weights: np.ndarray) -> np.ndarray:
        found = np.full(weights.shape[:2], np.nan)
        for neuron in range(neurons):
            there = int((~np.isnan(values[neuron])).sum())
            own = weights[neuron][:, order[neuron, :there] // tokens]
            last = ends[neuron, :there]
            hits = np.cumsum(own * is_active[neuron, :there], axis=1)[:, last]
            seen = np.cumsum(own, axis=1)[:, last]
            gained = np.diff(hits, axis=1, prepend=0.0)
            with np.errstate(all="ignore"):
                area = np.where(seen > 0, gained * hits / seen, 0).sum(axis=1)
                found[neuron] = area / hits[:, -1] if there else np.nan
        return found

    return _estimated(precision, places, _angle, lambda x: np.sin(np.clip(x, 0, np.pi / 2)) ** 2)


def _angle(p: np.ndarray) -> np.ndarray:
    """A share as an angle."""
    return np.arcsin(np.sqrt(np.clip(p, 0, 1)))


def _estimated(
    measure: Callable[[np.ndarray], np.ndarray],
    places: Places,
    scale: Callable[[np.ndarray], np.ndarray],
    back: Callable[[np.ndarray], np.ndarray],
) -> Estimates:
    """A measure's estimates and errors.

    Args:
        measure: of weights `[N, R, E]`, its values `[N, R]`, NaN where undefined.
        scale, back: to the scale on which intervals are symmetric, and back.
    """
    value = measure(places.weights()[:, None])[:, 0]
    value = np.where(places.covered, value, np.nan)
    counts, sizes = places.counts, places.sizes
    replicates = scale(measure(places.without_each()))
    spreads, biases = np.zeros((2, *sizes.shape))
    for stratum in range(sizes.shape[1]):
        own = places.strata == stratum
        m, n = counts[:, stratum], sizes[:, stratum]
        with np.errstate(all="ignore"):
            mean = np.where(own, replicates, 0).sum(axis=1) / m
            squares = np.where(own, (replicates - mean[:, None]) ** 2, 0).sum(axis=1)
            whole = m >= n  # nothing was left to chance
            spreads[:, stratum] = np.where(whole, 0, (1 - m / n) * (m - 1) / m * squares)
            excess = (1 - m / n) * (m - 1) * (mean - scale(value))
            biases[:, stratum] = np.where(whole | (m < 2), 0, excess)
        spreads[(m < 2) & ~whole, stratum] = np.nan
    variance = spreads.sum(axis=1)
    with np.errstate(all="ignore"):
        freedom = variance**2 / (spreads**2 / np.maximum(counts - 1, 1)).sum(axis=1)
        half = np.where(variance > 0, student(freedom), 0) * np.sqrt(variance)
    middle = scale(value) - biases.sum(axis=1)
    value = back(middle)
    ends = back(middle - half), back(middle + half)
    # The interval's half width on the measure's own scale, for one standard error.
    error = (back(middle + np.sqrt(variance)) - back(middle - np.sqrt(variance))) / 2
    return Estimates(value, np.where(np.isnan(value), np.nan, error), *ends)


def student(freedom: np.ndarray) -> np.ndarray:
    """The 0.975 quantile of Student's t; `freedom` is float, 1 or more, inexact below 3.

    Source: Abramowitz and Stegun 1964, 26.7.5.
    """
    z, v = _NORMAL, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + terms[0] / v + terms[1] / v**2 + terms[2] / v**3
