"""What scores are made of, from the tokens of all neurons at once on the CPU; see `measures.py`."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from fastexplain.kernels.measuring import SUMS, UNSORTED, Binary, ExcerptSums
from fastexplain.kernels.summary import widen

__all__ = ["best_threshold", "excerpt_sums"]

_ALL = len(SUMS)


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
    """The places of float64 `[n]` by falling value, equal ones in order; int32 `[n]`.

    Those that float32 holds are sorted by their bits, a byte at a time from the last: 640 take a
    third of the time of a sort by comparing.
    """
    count = len(values)
    narrow = values.astype(np.float32)
    if (narrow != values).any():
        return np.argsort(-values, kind="mergesort").astype(np.int32)
    narrow += np.float32(0)  # -0 is 0
    bits = narrow.view(np.uint32)
    keys, places = np.empty((2, count), np.uint32), np.empty((2, count), np.int32)
    starts = np.zeros((4, 256), np.int32)
    for place in range(count):
        key = bits[place]
        if not key & np.uint32(0x80000000):
            key ^= np.uint32(0x7FFFFFFF)
        keys[0, place], places[0, place] = key, place
        for byte in range(4):
            starts[byte, (key >> np.uint32(8 * byte)) & np.uint32(255)] += 1
    now = 0
    for byte in range(4):
        own, first, only = starts[byte], 0, False
        for value in range(256):
            there = own[value]
            only |= there == count
            own[value] = first
            first += there
        if only:
            continue
        for place in range(count):
            key = keys[now, place]
            value = (key >> np.uint32(8 * byte)) & np.uint32(255)
            keys[1 - now, own[value]] = key
            places[1 - now, own[value]] = places[now, place]
            own[value] += 1
        now = 1 - now
    return places[now]


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
