"""Regressions that forget excerpts, for all neurons at once on the CPU.

With L L' the sum of x x' over all tokens, and a penalty, write z = L^-1 x for a token's numbers
and v = L' w for weights, so that a prediction is v z. All tokens' v is L^-1 times the sum of x a,
with a short for max(activation, 0). Without a neuron's tokens D it solves

    (1 - Z'Z) v = L^-1 (sum of x a) - Z'a,

where Z has a row z for each token of D: by conjugate gradients, with two products by Z a step. The
eigenvalues lie between 0 and 1, nearly all at 1, since D is a small part of the corpus.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import numpy as np
from numba import njit, prange

from fastexplain.kernels.cpu.threads import threads_for
from fastexplain.kernels.scalars import RESIDUE

TOLERANCE = 1e-8
"""Of the norm of what is left over, against that of the right-hand side."""
_MOST_STEPS = 300
_VALUES = 16
"""How many of other kernels' values a token here is as much work as: 0.7 ms a neuron in all."""

_sums = njit(fastmath={"reassoc", "nsz", "contract"}, error_model="numpy")


def forget(
    numbers: np.ndarray,
    ids: np.ndarray,
    forgotten: np.ndarray,
    activations: np.ndarray,
    weights: np.ndarray,
    totals: np.ndarray,
    rests: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights that have not seen some excerpts, and what they predict there.

    Args:
        numbers: float32 `[U, C, d]`, z of each excerpt's counted tokens.
        ids: int32 `[N, E]`, of each neuron's excerpts their places in `numbers`; -1 for none.
        forgotten: bool `[N, E]`, those to forget; the others are only predicted.
        activations: float32 `[N, E, C]`, the true ones.
        weights: float64 `[N, d]`, v of all tokens.
        totals, rests: float64 `[N]`, sums of max(activation, 0) over all tokens there ever were,
            and over those that `weights` rest on. Where forgetting leaves nothing of it, or what is
            within rounding of nothing, weights are exactly 0.

    Returns:
        float32 `[N, d]` and `[N, E, C]`: v and the predictions; NaN where there is no excerpt.
    """
    found = np.zeros(weights.shape, np.float32)
    predicted = np.full(activations.shape, np.nan, np.float32)
    with threads_for(_VALUES * activations.size):
        _forget(numbers, ids, forgotten, activations, weights, totals, rests, found, predicted)
    return found, predicted


@_sums
def _dot(x, y):
    """The product of float `[d]` with float `[d]`, in float64."""
    total = 0.0
    for k in range(len(x)):
        total += np.float64(x[k]) * np.float64(y[k])
    return total


@_sums
def _add(total, factor, x):
    """Add a multiple of float `[d]` to float64 `[d]`."""
    for k in range(len(x)):
        total[k] += factor * np.float64(x[k])


@njit
def _left(numbers, ids, forgotten, v, result):
    """(1 - Z'Z) v of one neuron, into float64 `[d]`."""
    result[:] = v
    for place in range(len(ids)):
        if ids[place] >= 0 and forgotten[place]:
            rows = numbers[ids[place]]
            for t in range(len(rows)):
                _add(result, -_dot(rows[t], v), rows[t])


@njit(parallel=True, cache=True, nogil=True)
def _forget(numbers, ids, forgotten, activations, weights, totals, rests, found, predicted):
    """See `forget`; the last two are written."""
    neurons, places = ids.shape
    size = numbers.shape[2]
    for neuron in prange(neurons):
        v, image = weights[neuron].copy(), np.empty(size)
        own, which = ids[neuron], forgotten[neuron]
        rest = rests[neuron]
        for place in range(places):
            if own[place] >= 0 and which[place]:
                for t in range(numbers.shape[1]):
                    value = max(np.float64(activations[neuron, place, t]), 0.0)
                    rest -= value
                    _add(v, -value, numbers[own[place], t])
        if rest <= totals[neuron] * RESIDUE:
            v[:] = 0.0
        # Conjugate gradients from the right-hand side on.
        enough = TOLERANCE * TOLERANCE * _dot(v, v)
        _left(numbers, own, which, v, image)
        left = v - image
        direction, squares = left.copy(), _dot(left, left)
        for _ in range(_MOST_STEPS):
            if squares <= enough:
                break
            _left(numbers, own, which, direction, image)
            step = squares / _dot(direction, image)
            _add(v, step, direction)
            _add(left, -step, image)
            before, squares = squares, _dot(left, left)
            direction *= squares / before
            direction += left
        for k in range(size):
            found[neuron, k] = v[k]
        for place in range(places):
            if own[place] >= 0:
                for t in range(numbers.shape[1]):
                    predicted[neuron, place, t] = _dot(numbers[own[place], t], v)
