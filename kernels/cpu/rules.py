"""Short linear rules for all neurons of a layer at once, from sums alone.

A rule predicts max(activation, 0) by a default plus a value for each of a few *features*: sets of
positions, such as those of one token, of a class of tokens, or of a situation. Least squares on
such indicators needs only how many positions two features share, the same for all neurons, and each
feature's sum of activations, which the sweep's tables give. So the fit is that on the whole corpus,
without a pass over it. For each neuron:

1. What its held-out excerpts put into counts and sums is subtracted, exactly.
2. Features are added one by one, each time the one that explains most of the remaining variance
   (orthogonal least squares: Chen, Billings and Luo 1989, "Orthogonal least squares methods and
   their application to non-linear system identification"). A feature's explained sum of squares is
   r**2 / (d + `SHRINK`), r being its product with the residual and d what the chosen features leave
   of its own sum of squares, so that a rare one has to earn its place.
3. A term may lower only as an exception: nearly all of its positions (`INSIDE`) are those of a
   chosen one that raises. A rule that says of what is around it that it is less, or not there,
   tells a reader nothing.
4. It ends when the next one would add less than `LEAST` of what all explain. Where later terms have
   turned the value of one that raises below 0, growth begins anew without that one.

A position has a few *keys* (its token, its token before, ...), and a key a list of features. The
first `wide` features are any sets; those behind are single tokens, then single pairs, of which it
is known what they share.

It is none of the five kernels: it runs on the host, where the texts of rules are written.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import numpy as np
from numba import njit, prange

SHRINK = 2.0
"""Positions of value 0 that a feature is held back by, as the tables' pairs are."""

LEAST = 0.04
"""Part of the explained variance that a further term must add."""

INSIDE = 0.95
"""Part of a feature's positions that another must have, so that the one is said to lie in it."""

_TIED = 1 + 1e-9
_FEWEST = 3  # positions that a feature must have outside of the held-out excerpts


@njit(parallel=True, cache=True, nogil=True)
def feature_sums(rows, keys, starts, members, totals):
    """Add the rows of a table to the features of their keys.

    Args:
        rows: float32 `[R, F]`.
        keys: int32 `[R, n]`, the keys of each row; -1 for none.
        starts, members: int32 `[keys + 1]` and int32, the features of key k are
            `members[starts[k]:starts[k + 1]]`.
        totals: float64 `[features, F]`, changed in place.
    """
    neurons = rows.shape[1]
    block = 256
    for part in prange((neurons + block - 1) // block):
        a, b = part * block, min((part + 1) * block, neurons)
        for row in range(len(rows)):
            for which in range(keys.shape[1]):
                key = keys[row, which]
                if key >= 0:
                    for place in range(starts[key], starts[key + 1]):
                        feature = members[place]
                        for j in range(a, b):
                            totals[feature, j] += rows[row, j]


@njit(cache=True, nogil=True)
def overlaps(keys, starts, members, wide, counts, shared):
    """Count the positions of features, and those that a wide one shares with each.

    Args:
        keys: int32 `[E, T, n]`, -1 for none.
        starts, members: see `feature_sums`.
        wide: int, how many of the first features are any sets.
        counts: int64 `[features]`, changed in place.
        shared: int32 `[wide, features]`, changed in place.
    """
    own = np.empty(len(counts), np.int32)
    for e in range(keys.shape[0]):
        for t in range(keys.shape[1]):
            found = _features_of(keys[e, t], starts, members, own)
            for i in range(found):
                counts[own[i]] += 1
                if own[i] < wide:
                    for j in range(found):
                        shared[own[i], own[j]] += 1


@njit
def _features_of(keys, starts, members, own):
    """Write a position's features into `own`; returns how many there are."""
    found = 0
    for key in keys:
        if key >= 0:
            for place in range(starts[key], starts[key + 1]):
                own[found] = members[place]
                found += 1
    return found


@njit(parallel=True, cache=True, nogil=True)
def grow(
    sums, positive, total, counts, shared, token_of, first_pair,
    held, acts, keys, starts, members, terms,
):  # fmt: skip
    """Grow a rule for each neuron.

    Args:
        sums: float64 `[F, features]`, each feature's sum of max(activation, 0).
        positive: float64 `[F]`, the sum over all counted positions.
        total: int, counted positions.
        counts, shared: from `overlaps`.
        token_of: int32 `[features]`, of a pair the feature of its token, else -1.
        first_pair: int, the first feature that is a pair; those before it, from `wide` on, are
            tokens.
        held: int32 `[F, E]`, rows of `keys` to leave out of a neuron's fit; -1 for none.
        acts: float32 `[F, E, counted]`, its activations there.
        keys: int32 `[X, counted, n]`, the keys of counted positions as the tables know them.
        starts, members: see `feature_sums`.
        terms: int, features of a rule at the most.

    Returns:
        Features int32 `[F, terms]`, strongest first, -1 where there are no more; their values
        float64 `[F, terms]`; the default float64 `[F]`; counts int64 and means float64
        `[F, terms]` of what is left of each feature.
    """
    neurons, features = sums.shape
    wide = len(shared)
    chosen = np.full((neurons, terms), -1, np.int32)
    values, means = np.zeros((neurons, terms)), np.zeros((neurons, terms))
    left = np.zeros((neurons, terms), np.int64)
    default = np.zeros(neurons)
    for neuron in prange(neurons):
        n, s = counts.astype(np.float64), sums[neuron].copy()
        whole, mass = float(total), positive[neuron]
        # The features of the held-out positions, position after position.
        positions = held.shape[1] * keys.shape[1]
        ends = np.zeros(positions + 1, np.int64)
        flat = np.empty(positions * 32, np.int32)
        own = np.empty(features, np.int32)
        at = 0
        for e in range(held.shape[1]):
            if held[neuron, e] < 0:
                continue
            for t in range(keys.shape[1]):
                x = max(acts[neuron, e, t], np.float32(0))
                whole -= 1
                mass -= x
                found = _features_of(keys[held[neuron, e], t], starts, members, own)
                begin = ends[at]
                if begin + found > len(flat):
                    flat = np.concatenate((flat, np.empty(len(flat) + found, np.int32)))
                for i in range(found):
                    flat[begin + i] = own[i]
                    n[own[i]] -= 1
                    s[own[i]] -= x
                at += 1
                ends[at] = begin + found
        if whole < 2 or mass <= 0:
            continue
        mean = mass / whole
        r, d = np.empty(features), np.empty(features)
        q = np.empty((terms, features))
        column = np.empty(features)
        alpha, raises = np.zeros(terms), np.zeros(terms, np.bool_)
        barred = np.zeros(features, np.bool_)
        while True:
            covered = np.zeros(features, np.bool_)
            for f in range(features):
                if n[f] < _FEWEST or barred[f]:
                    d[f] = r[f] = 0.0
                else:
                    d[f] = n[f] - n[f] * n[f] / whole
                    r[f] = s[f] - n[f] * mean
            explained, count = 0.0, 0
            while count < terms:
                best, gain = -1, 0.0
                for f in range(features):
                    if d[f] > 0.5 and (r[f] > 0 or covered[f]):
                        own_gain = r[f] * r[f] / (d[f] + SHRINK)
                        if own_gain > gain * _TIED:  # of equal sets the first has the best phrase
                            best, gain = f, own_gain
                if best < 0 or gain < LEAST * explained:
                    break
                explained += gain
                raises[count] = r[best] > 0
                _column(best, n, shared, token_of, first_pair, wide, flat, ends, at, column)
                root = np.sqrt(d[best])
                weights = q[:count, best].copy()
                for f in range(features):
                    if raises[count] and column[f] > INSIDE * n[f]:
                        covered[f] = True
                    value = column[f] - n[f] * n[best] / whole
                    for k in range(count):
                        value -= weights[k] * q[k, f]
                    q[count, f] = value / root
                step = r[best] / root
                for f in range(features):
                    d[f] -= q[count, f] ** 2
                    r[f] -= q[count, f] * step
                d[best] = 0.0
                alpha[count] = step * root * root / (root * root + SHRINK)
                chosen[neuron, count] = best
                left[neuron, count] = int(n[best])
                means[neuron, count] = s[best] / n[best]
                count += 1
            # Values from the triangle of what the chosen ones have in common.
            turned = -1
            for k in range(count - 1, -1, -1):
                value = alpha[k]
                for later in range(k + 1, count):
                    value -= q[k, chosen[neuron, later]] * values[neuron, later]
                values[neuron, k] = value / q[k, chosen[neuron, k]]
                if raises[k] and values[neuron, k] < 0:
                    turned = k
            if turned < 0:
                break
            barred[chosen[neuron, turned]] = True
            for k in range(terms):
                chosen[neuron, k], left[neuron, k] = -1, 0
                values[neuron, k] = means[neuron, k] = 0.0
        default[neuron] = mean
        for k in range(count):
            default[neuron] -= values[neuron, k] * n[chosen[neuron, k]] / whole
    return chosen, values, default, left, means


@njit
def _column(best, n, shared, token_of, first_pair, wide, flat, ends, positions, column):
    """How many positions each feature shares with `best`, held-out ones left out."""
    features = len(n)
    for f in range(features):
        column[f] = 0.0
    if best < wide:
        for f in range(features):
            column[f] = shared[best, f]
    else:
        for f in range(wide):
            column[f] = shared[f, best]
    for position in range(positions):
        begin, end = ends[position], ends[position + 1]
        inside = False
        for place in range(begin, end):
            inside |= flat[place] == best
        if inside:
            for place in range(begin, end):
                if best < wide or flat[place] < wide:
                    column[flat[place]] -= 1
    if best >= first_pair:  # a pair lies within its token
        if token_of[best] >= 0:
            column[token_of[best]] = n[best]
    elif best >= wide:
        for f in range(first_pair, features):
            if token_of[f] == best:
                column[f] = n[f]
    column[best] = n[best]


@njit(parallel=True, cache=True, nogil=True)
def predict(chosen, values, default, excerpts, keys, starts, members):
    """What rules say of excerpts.

    Args:
        chosen, values, default: from `grow`.
        excerpts: int32 `[F, E]`, rows of `keys`; -1 for none.
        keys: int32 `[X, T, n]`, of all that a position is, whether the tables know it or not.
        starts, members: see `feature_sums`.

    Returns:
        float32 `[F, E, T]`, NaN where there is no excerpt.
    """
    predicted = np.full((*excerpts.shape, keys.shape[1]), np.nan, np.float32)
    for neuron in prange(len(excerpts)):
        for e in range(excerpts.shape[1]):
            row = excerpts[neuron, e]
            if row < 0:
                continue
            for t in range(keys.shape[1]):
                value = default[neuron]
                for key in keys[row, t]:
                    if key >= 0:
                        for place in range(starts[key], starts[key + 1]):
                            for k in range(chosen.shape[1]):
                                if chosen[neuron, k] == members[place]:
                                    value += values[neuron, k]
                predicted[neuron, e, t] = value
    return predicted
