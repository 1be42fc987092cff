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
    Binary,
    Bootstrap,
    ExcerptSums,
)
from fastexplain.kernels.summary import widen

__all__ = ["best_threshold", "bootstrap", "excerpt_sums", "measures"]

_ALL, _MEASURES = len(SUMS), len(MEASURES)

# Parts of the neurons whose totals are summed up apart, whatever the threads, so that sums are in
# one order on all machines.
_PARTS = 32

_interval_share = njit(error_model="numpy")(measuring.interval_share)
_measure_sums = njit(error_model="numpy")(measuring.measure_sums)


def excerpt_sums(
    true: np.ndarray, simulated: np.ndarray, binary: Binary | None = None
) -> ExcerptSums:
    """See `fastexplain.kernels.excerpt_sums`."""
    neurons, excerpts, tokens = true.shape
    sums = np.zeros((neurons, excerpts, _ALL))
    ranked = np.full((neurons, excerpts * tokens), -1, np.int16)
    unknown = np.empty(0)
    scale, threshold, calibrated = binary or (unknown, unknown, np.empty((0, 0, 0)))
    given = (_exact(each) for each in (true, simulated, scale, threshold, calibrated))
    _excerpt_sums(*given, sums, ranked)  # type: ignore[call-arg]
    return ExcerptSums(sums, ranked)


def _exact(values: np.ndarray) -> np.ndarray:
    """Values of any supported dtype as contiguous float64, in the same shape."""
    half = values.dtype.itemsize == 2
    return np.ascontiguousarray(widen(values) if half else values, np.float64)


@njit
def _gather(true, simulated, where, places, xs, ys):
    """Write a neuron's known tokens, `[E, T]`, one after the other; returns how many.

    Args:
        where, places: int64 `[E * T]`, each one's excerpt and place in it.
        xs, ys: float64 `[E * T]`, true and simulated.
    """
    count = 0
    for excerpt in range(true.shape[0]):
        for place in range(true.shape[1]):
            x, y = true[excerpt, place], simulated[excerpt, place]
            if x == x and y == y:
                where[count], places[count], xs[count], ys[count] = excerpt, place, x, y
                count += 1
    return count


@njit(error_model="numpy")
def _centre(values):
    """Take the mean away from float64 `[n]`; a constant becomes exactly 0."""
    mean = values.mean()
    if values.min() == values.max():
        mean = values[0]
        values[:] = mean
    values -= mean


@njit
def _falling(values):
    """The places of float64 `[n]` by falling value, equal ones in order; int64 `[n]`."""
    narrow = values.astype(np.float32)
    if (narrow != values).any():
        return np.argsort(-values, kind="mergesort")
    # float32 by its bits, the place below them: integers are sorted in 20 us where 640 floats and
    # their places take 36.
    bits = narrow.view(np.int32)
    keys = np.empty(len(values), np.int64)
    for place in range(len(values)):
        key = np.int64(bits[place])
        keys[place] = (-(key if key >= 0 else -(key & 0x7FFFFFFF)) << 32) + place
    keys.sort()
    return keys & 0xFFFFFFFF


@njit
def _ranks(values, order, ranks):
    """Write the ranks of float64 `[n]` about their mean, ties at their mean rank.

    Args:
        order: int64 `[n]`, the places of the values in falling order.
        ranks: float64 `[n]`, written.
    """
    count, first = len(values), 0
    while first < count:
        end = first + 1
        while end < count and values[order[end]] == values[order[first]]:
            end += 1
        rank = (count + 1) / 2 - (first + 1 + end) / 2
        for place in range(first, end):
            ranks[order[place]] = rank
        first = end


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _excerpt_sums(true, simulated, scales, thresholds, calibrated, sums, ranked):
    """Write an `ExcerptSums`' arrays, given as 0 and -1.

    Args:
        true, simulated: float64 `[N, E, T]`.
        scales, thresholds, calibrated: float64, as in `Binary`, or all empty.
        sums, ranked: as in `ExcerptSums`.
    """
    neurons, excerpts, tokens = true.shape
    sorted_too = len(scales) > 0
    for neuron in prange(neurons):
        size = excerpts * tokens
        where, places = np.empty(size, np.int64), np.empty(size, np.int64)
        raw, y = np.empty(size), np.empty(size)
        count = _gather(true[neuron], simulated[neuron], where, places, raw, y)
        if count == 0:
            continue
        raw, y = raw[:count], y[:count]
        x = np.maximum(raw, 0.0)
        own = sums[neuron]
        if sorted_too:
            scale, threshold = scales[neuron], thresholds[neuron]
            known = scale > 0
            by_y = _falling(y)
            above, silent = np.flatnonzero(x > 0), np.flatnonzero(x == 0)  # most need no sorting
            by_x = np.concatenate((above[_falling(x[above])], silent))
            p, q = np.empty(count), np.empty(count)
            _ranks(x, by_x, p)
            _ranks(y, by_y, q)
            for place in range(count):
                token = by_y[place]
                active = 10 * x[token] / scale >= 1
                last = place == count - 1 or y[by_y[place + 1]] != y[token]
                if known:
                    ranked[neuron, place] = 4 * where[token] + 2 * active + last
            mean = x.mean() if x.min() < x.max() else x[0]
            for token in range(count):
                row = own[where[token]]
                c = calibrated[neuron, where[token], places[token]]
                active = 1.0 * (10 * x[token] / scale >= 1) if known else np.nan
                predicted = 1.0 * (y[token] >= threshold) if threshold == threshold else np.nan
                row[9] += p[token]
                row[10] += q[token]
                row[11] += p[token] * p[token]
                row[12] += p[token] * q[token]
                row[13] += q[token] * q[token]
                row[14] += (x[token] - c) ** 2
                row[15] += abs(x[token] - c)
                row[16] += abs(x[token] - mean)
                row[17] += predicted * active
                row[18] += predicted
                row[19] += active
                row[20] += np.sign(x[token] - mean)
        _centre(x)
        _centre(raw)
        _centre(y)
        for token in range(count):
            row = own[where[token]]
            row[0] += 1
            row[1] += x[token]
            row[2] += y[token]
            row[3] += x[token] * x[token]
            row[4] += x[token] * y[token]
            row[5] += y[token] * y[token]
            row[6] += raw[token]
            row[7] += raw[token] * raw[token]
            row[8] += raw[token] * y[token]
        if not sorted_too:
            for excerpt in range(excerpts):
                if own[excerpt, 0] > 0:
                    own[excerpt, UNSORTED:] = np.nan


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


def best_threshold(true: np.ndarray, simulated: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """See `fastexplain.kernels.best_threshold`."""
    found = np.full(len(true), np.nan)
    _best_threshold(_exact(true), _exact(simulated), _exact(scale), found)
    return found


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _best_threshold(true, simulated, scales, found):
    """Write the best threshold of every neuron, given as NaN; arrays are float64."""
    neurons, excerpts, tokens = true.shape
    for neuron in prange(neurons):
        size, scale = excerpts * tokens, scales[neuron]
        if not scale > 0:
            continue
        where, places = np.empty(size, np.int64), np.empty(size, np.int64)
        raw, y = np.empty(size), np.empty(size)
        count = _gather(true[neuron], simulated[neuron], where, places, raw, y)
        active = 10 * np.maximum(raw[:count], 0.0) / scale >= 1
        order = _falling(y[:count])
        wanted, hits, best = np.sum(active), 0, -1.0
        if wanted == 0:
            continue
        for place in range(count):
            token = order[place]
            hits += active[token]
            if place == count - 1 or y[order[place + 1]] != y[token]:
                f1 = 2 * hits / (wanted + place + 1)
                if f1 > best:
                    best, found[neuron] = f1, y[token]
