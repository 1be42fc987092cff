"""A regression's numbers of tokens (`fastexplain.text.regressors`) on the CPU."""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import numpy as np
from numba import njit


@njit
def _rounded(value, smallest, largest):
    """A float32 rounded as by `fastexplain.text.regressors.rounded`."""
    bits = np.float32(min(max(value, -largest), largest)).view(np.int32)
    kept = np.int32((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(np.float32)
    return kept * np.float32(abs(kept) >= smallest)


# In one thread: 64 excerpts take a millisecond, less than it takes to wake another.
@njit(cache=True, nogil=True)
def fill(result, token_ids, components, before, steps, roots, averaged, place, smallest, largest):
    """Make the numbers of excerpts, each by the same operations in the same order on any device.

    Args:
        result: float32 `[excerpts, tokens, d]` of 0, written.
        token_ids: int `[excerpts, tokens]`.
        components: float32 `[vocabulary, components]`.
        before: int `[b]`, components of each token before.
        steps: float32 `[m]`, by which a mean's sum shrinks from token to token.
        roots: float32 `[m, tokens]`, by which it is divided at each.
        averaged: int `[m]`, components of each mean.
        place: float32 `[tokens, 4]`, the numbers of positions.
        smallest, largest: float32, of magnitudes that are kept.
    """
    length, size = token_ids.shape[1], components.shape[1]
    total = np.empty(size, np.float32)
    for excerpt in range(len(token_ids)):
        own, rows = token_ids[excerpt], result[excerpt]
        for t in range(length):
            rows[t, :size] = components[own[t]]
        start = size
        for back in range(1, len(before) + 1):
            width = min(before[back - 1], size)
            for t in range(back, length):
                rows[t, start : start + width] = components[own[t - back], :width]
            start += width
        for mean in range(len(steps)):
            width = min(averaged[mean], size)
            total[:] = 0
            for t in range(1, length):
                last, row = components[own[t - 1]], rows[t, start : start + width]
                for k in range(width):
                    total[k] = total[k] * steps[mean] + last[k]
                    row[k] = total[k] / roots[mean, t]
            start += width
        for t in range(length):
            row = rows[t]
            row[start:] = place[t]
            for k in range(len(row)):
                row[k] = _rounded(row[k], smallest, largest)


@njit(cache=True, nogil=True)
def add_by_row(sums, rows, values):
    """Add float32 `[n, d]` to rows of float64 `[R, d]`, int `[n]`; -1 where there is none."""
    for token in range(len(rows)):
        if rows[token] >= 0:
            total, value = sums[rows[token]], values[token]
            for k in range(len(value)):
                total[k] += value[k]
