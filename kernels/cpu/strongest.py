"""Which entries of a layer's tables drive each neuron most, for the text of a lookup explanation.

It is none of the five kernels: it runs once, on the host, where the text is written. Every entry of
the tables is read once; the few that are kept go through a gate as exemplars do in `capture`.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import numpy as np
from numba import njit, prange

from fastexplain.kernels import scalars
from fastexplain.kernels.checks import check_lookup
from fastexplain.kernels.summary import LookupTables, in_range

_token_estimate = njit(error_model="numpy")(scalars.token_estimate)
_pair_estimate = njit(error_model="numpy")(scalars.pair_estimate)

# Neurons that a thread has at a time. One core, [5825, 1536]: 14.0 ms with 16, 10.8 with 64, 8.7
# with 128, 9.6 with 256.
_BLOCK = 128

_LEAST = float(np.finfo(np.float32).tiny)
"""An estimate below the least normal float32 says nothing."""


def strongest(
    tables: LookupTables, second: np.ndarray, *, count: int, gain: float
) -> tuple[np.ndarray, np.ndarray]:
    """Per neuron the rows with the largest estimated mean activation that say something.

    A token says something if its estimate is above the neuron's mean of max(activation, 0), and a
    pair if its is more than `gain` times that of its second token (of the mean, where the tables
    lack the token): else it is the token that drives the neuron. Estimates are those of `lookup`,
    nothing held out.

    Args:
        second: int32 `[P]`, the token row of each pair's second token, -1 where it has none.
        count: how many rows to find.
        gain: a factor, 1 or more.

    Returns:
        Rows, int32 `[F, count]`, strongest first, equal ones by lower row, pairs counted on from
        the V tokens; -1 where there are no more. Their estimates, float64 `[F, count]`.
    """
    check_lookup(tables, None)
    if second.shape != tables.pair_counts.shape:
        raise ValueError(f"second is {list(second.shape)}; there are {len(tables.pair_sums)} pairs")
    in_range("second", second, -1, len(tables.token_sums))
    rows = np.full((len(tables.positive_sums), count), -1, np.int32)
    # What must be exceeded; so the least that is kept has to be the number below.
    estimates = np.full(rows.shape, np.nextafter(_LEAST, 0))
    if count:
        _strongest(tables, second, gain, rows, estimates)
    return rows, estimates


@njit
def _keep(estimate, limit, row, start, rows, estimates):
    """Put a row in its place among the strongest of those neurons whose limit it exceeds.

    `estimate` and `limit` are float64 `[w]`, of the neurons from `start` on; `rows` and `estimates`
    int32 and float64 `[F, count]`. All but `estimate` is changed in place.
    """
    last = rows.shape[1] - 1
    for j in range(len(estimate)):
        value = estimate[j]
        if value > limit[j]:
            neuron, place = start + j, last
            while place > 0 and estimates[neuron, place - 1] < value:
                rows[neuron, place] = rows[neuron, place - 1]
                estimates[neuron, place] = estimates[neuron, place - 1]
                place -= 1
            rows[neuron, place], estimates[neuron, place] = row, value
            limit[j] = estimates[neuron, last]


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _strongest(tables, second, gain, rows, estimates):
    """Fill `rows` and `estimates`, int32 and float64 `[F, count]`, strongest first.

    The other arguments are those of `strongest`; `estimates` is at first what must be exceeded.
    """
    token_sums, pair_sums, token_counts, pair_counts = tables[:4]
    means = tables.positive_sums / max(tables.count, 1)
    neurons = len(means)
    for block in prange((neurons + _BLOCK - 1) // _BLOCK):
        start, stop = block * _BLOCK, min((block + 1) * _BLOCK, neurons)
        mean, limit = means[start:stop], estimates[start:stop, -1].copy()
        estimate = np.empty(stop - start)
        for row in range(len(token_counts)):
            sums = token_sums[row, start:stop]
            passed = 0
            for j in range(len(sums)):
                value = _token_estimate(np.float64(sums[j]), token_counts[row], mean[j])
                estimate[j] = value if value > mean[j] else 0.0
                passed += estimate[j] > limit[j]
            if passed:
                _keep(estimate, limit, row, start, rows, estimates)
        for pair in range(len(pair_counts)):
            sums, token = pair_sums[pair, start:stop], second[pair]
            token_count = token_counts[token] if token >= 0 else 0
            passed = 0
            for j in range(len(sums)):
                around = mean[j]
                if token >= 0:
                    total = np.float64(token_sums[token, start + j])
                    around = _token_estimate(total, token_count, around)
                value = _pair_estimate(np.float64(sums[j]), pair_counts[pair], around)
                estimate[j] = value if value > gain * around else 0.0
                passed += estimate[j] > limit[j]
            if passed:
                _keep(estimate, limit, len(token_counts) + pair, start, rows, estimates)
