"""Scores of all neurons at once on the CPU: Numba, parallel over neurons.

A resample is a weight for each excerpt. What is done with these is done for all resamples of a
neuron in one loop, so that vector registers hold several of them; 1,000 resamples of the area under
the precision-recall curve, too, are one walk through a neuron's tokens.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from fastexplain.kernels import measuring
from fastexplain.kernels.measuring import (
    AUPRC,
    MEASURES,
    SUMS,
    UNSORTED,
    Bootstrap,
    ExcerptSums,
)

__all__ = ["bootstrap", "measures"]

_ALL, _MEASURES = len(SUMS), len(MEASURES)

# Parts of the neurons whose totals are summed up apart, whatever the threads, so that sums are in
# one order on all machines.
_PARTS = 32

_interval_share = njit(error_model="numpy")(measuring.interval_share)
_measure_sums = njit(error_model="numpy")(measuring.measure_sums)


@njit(error_model="numpy")
def _average_precision(ranked, weights, found):
    """Average precision of one neuron in every resample.

    Args:
        ranked: int16 `[E * T]`, as in `ExcerptSums`.
        weights: float64 `[E, D]`, how often each excerpt counts.
        found: float64 `[D]`, written.
    """
    excerpts, resamples = weights.shape
    seen, hits, before = np.zeros(resamples), np.zeros(resamples), np.zeros(resamples)
    found[:] = 0.0
    # Of the tokens since the last value that had an active one: nothing is gained before the next.
    passed, active = np.zeros(excerpts), np.zeros(excerpts)
    pending = False
    for code in ranked:
        if code < 0:
            break
        passed[code >> 2] += 1
        if code & 2:
            active[code >> 2] += 1
            pending = True
        if code & 1 and pending:
            for excerpt in range(excerpts):
                if passed[excerpt] > 0:
                    all_of, active_of = passed[excerpt], active[excerpt]
                    own = weights[excerpt]
                    for resample in range(resamples):
                        seen[resample] += all_of * own[resample]
                        hits[resample] += active_of * own[resample]
            passed[:], active[:], pending = 0, 0, False
            for resample in range(resamples):
                gained = hits[resample] - before[resample]
                before[resample] = hits[resample]
                # Where nothing was seen nothing is gained.
                found[resample] += gained * hits[resample] / max(seen[resample], 1e-300)
    for resample in range(resamples):
        found[resample] = found[resample] / hits[resample] if hits[resample] > 0 else np.nan


@njit(error_model="numpy")
def _measure(sums, ranked, weights, found):
    """All measures of one neuron in every resample.

    Args:
        sums, ranked: `[E, len(SUMS)]` and `[E * T]`, as in `ExcerptSums`.
        weights: float64 `[E, D]`.
        found: float64 `[K, D]`, written.
    """
    excerpts, resamples = weights.shape
    width = UNSORTED  # further sums may all be unknown
    for excerpt in range(excerpts):
        if sums[excerpt, 0] > 0 and sums[excerpt, UNSORTED] == sums[excerpt, UNSORTED]:
            width = _ALL
    totals = np.zeros((width, resamples))
    for excerpt in range(excerpts):
        if sums[excerpt, 0] > 0:
            own = weights[excerpt]
            for column in range(width):
                value, total = sums[excerpt, column], totals[column]
                for resample in range(resamples):
                    total[resample] += value * own[resample]
    found[:] = np.nan
    _measure_sums(totals, found)
    if ranked[:1].sum() >= 0:  # else it is unknown what is active, or there is no token
        _average_precision(ranked, weights, found[AUPRC])


def measures(sums: ExcerptSums, weights: np.ndarray | None = None) -> np.ndarray:
    """See `fastexplain.kernels.measures`."""
    if weights is None:
        weights = np.ones(sums.sums.shape[:2])
    found = np.empty((len(sums.sums), _MEASURES))
    _measures(sums.sums, sums.ranked, np.ascontiguousarray(weights, np.float64), found)
    return found


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _measures(sums, ranked, weights, found):
    """Write the measures of every neuron, `[N, K]`, its excerpts weighted by float64 `[N, E]`."""
    for neuron in prange(len(sums)):
        own = np.empty((_MEASURES, 1))
        _measure(sums[neuron], ranked[neuron], weights[neuron].reshape(-1, 1), own)
        found[neuron] = own[:, 0]


def bootstrap(
    sums: ExcerptSums, top: np.ndarray, resamples: int = 1000, seed: int = 0
) -> Bootstrap:
    """See `fastexplain.kernels.bootstrap`."""
    neurons, excerpts = top.shape
    chance = np.random.default_rng(seed).random((2, excerpts, resamples))
    low, high = np.full((2, neurons, _MEASURES), np.nan)
    totals = np.zeros((_PARTS, _MEASURES, resamples))
    counts = np.zeros((_PARTS, _MEASURES, resamples), np.int64)
    top = np.ascontiguousarray(top, np.bool_)
    _bootstrap(sums.sums, sums.ranked, top, chance, low, high, totals, counts)
    return Bootstrap(low, high, totals.sum(axis=0).T, counts.sum(axis=0).T)


@njit
def _draw(kinds, chance, weights):
    """Write how often each excerpt is drawn; returns whether one is the only one of its kind.

    Args:
        kinds: int64 `[E]`, 0 random, 1 top, 2 not to be drawn.
        chance: float64 `[2, E, D]`, from 0 to 1: by kind, for each draw.
        weights: float64 `[E, D]`, given as 0.
    """
    lone = False
    for kind in range(2):
        own = np.flatnonzero(kinds == kind)
        lone |= len(own) == 1
        for place in range(len(own)):
            for resample in range(weights.shape[1]):
                weights[own[int(chance[kind, place, resample] * len(own))], resample] += 1
    return lone


@njit(error_model="numpy")
def _quantile(values, share, sign):
    """The quantile of float64 `[n]`, for a small share: linear between neighbours, as NumPy's.

    With `sign` -1 it is that of the negated values, negated.
    """
    position = (len(values) - 1) * share
    least = int(position)
    kept = np.full(min(least + 2, len(values)), np.inf)  # the smallest, in order
    for value in values:
        value = sign * value
        if value < kept[-1]:
            place = len(kept) - 1
            while place > 0 and kept[place - 1] > value:
                kept[place] = kept[place - 1]
                place -= 1
            kept[place] = value
    return sign * (kept[least] + (position - least) * (kept[-1] - kept[least]))


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _bootstrap(sums, ranked, top, chance, low, high, totals, counts):
    """Measure resamples of every neuron.

    Args:
        sums, ranked: as in `ExcerptSums`.
        top: bool `[N, E]`.
        chance: float64 `[2, E, D]`.
        low, high: float64 `[N, K]`, given as NaN.
        totals, counts: float64 and int64 `[parts, K, D]`, given as 0.
    """
    neurons, excerpts = top.shape
    parts, resamples = len(totals), chance.shape[2]
    once = np.ones((excerpts, 1))
    for part in prange(parts):
        point, found = np.empty((_MEASURES, 1)), np.empty((_MEASURES, resamples))
        weights, drawn_from, lone = np.empty((excerpts, resamples)), np.full(excerpts, -1), False
        share = 0.0
        for neuron in range(neurons * part // parts, neurons * (part + 1) // parts):
            own = sums[neuron]
            _measure(own, ranked[neuron], once, point)
            kinds = np.where(own[:, 0] > 0, 1 * top[neuron], 2)
            if (kinds != drawn_from).any():  # most neurons have the same
                drawn_from[:], weights[:] = kinds, 0.0
                lone = _draw(kinds, chance, weights)
                share = _interval_share(np.sum(kinds == 1), np.sum(kinds == 0))
            _measure(own, ranked[neuron], weights, found)
            for measure in range(_MEASURES):
                if point[measure, 0] != point[measure, 0]:
                    continue
                values = found[measure]
                defined = values == values
                for resample in range(resamples):
                    if defined[resample]:
                        totals[part, measure, resample] += values[resample]
                        counts[part, measure, resample] += 1
                if not lone and 2 * defined.sum() >= resamples:
                    there = values[defined]
                    low[neuron, measure] = _quantile(there, share, 1.0)
                    high[neuron, measure] = _quantile(there, share, -1.0)
