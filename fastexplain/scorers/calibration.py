"""Calibration: simulated values onto the scale of activations, fitted on the calibration split.

Source: Bills et al. 2023, "Step 3: Score the explanation by comparing", which calibrates linearly.
Every way is monotone, so that none turns a simulation round that runs against the activations:
where a line would fall, it is the mean instead.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastexplain.kernels import correlate

Knots = tuple[np.ndarray, np.ndarray]
"""Simulated values, rising, and what each is calibrated to; float64 `[k]`. Linear in between."""


def calibrate(way: str, true: np.ndarray, simulated: np.ndarray, applied: np.ndarray) -> np.ndarray:
    """Calibrate simulated values of N neurons, each by what its calibration split says.

    Args:
        way: "none", "linear" (least squares), "isotonic" (least squares among all functions that
            don't fall, by pooling adjacent violators) or "percentile" (the values' distribution
            becomes that of the activations; equal values take the mean of their share of it). The
            last two are flat beyond the values that were fitted.
        true, simulated: floating `[N, E, T]`, of the calibration split; true ones count from 0.
            NaN where one is missing.
        applied: floating `[N, E', T]`, the values to calibrate.

    Returns:
        float64, as `applied`; NaN for a neuron without a token to fit on, unless `way` is "none".

    Raises:
        KeyError: there is no such way.
    """
    applied = np.asarray(applied, np.float64)
    if way == "none":
        return applied
    x = np.where(np.isnan(simulated), np.nan, np.maximum(true, 0)).astype(np.float64)
    y = np.where(np.isnan(true), np.nan, simulated).astype(np.float64)
    if way == "linear":
        return _linear(x, y, applied)
    fit = _FITS[way]
    found = np.full(applied.shape, np.nan)
    for neuron in range(len(applied)):
        known = ~np.isnan(x[neuron])
        if known.any():
            found[neuron] = np.interp(applied[neuron], *fit(x[neuron][known], y[neuron][known]))
    return found


def _linear(x: np.ndarray, y: np.ndarray, applied: np.ndarray) -> np.ndarray:
    """A line for each neuron; one that would fall, or whose values don't vary, is flat."""
    slope = np.maximum(np.nan_to_num(correlate(x, y).slope), 0)
    known = np.maximum((~np.isnan(x)).sum(axis=(1, 2)), np.finfo(float).tiny)
    with np.errstate(invalid="ignore", over="ignore"):
        mean_x, mean_y = (np.nansum(each, axis=(1, 2)) / known for each in (x, y))
    mean_x = np.where(known >= 1, mean_x, np.nan)
    lines = (each[:, None, None] for each in (mean_x, slope, mean_y))
    middle, rise, origin = lines
    return middle + rise * (applied - origin)


def isotonic(x: np.ndarray, y: np.ndarray) -> Knots:
    """The function of y that never falls and is nearest to x in squares; float64 `[n]` each."""
    values, which, counts = np.unique(y, return_inverse=True, return_counts=True)
    means: list[float] = []  # of blocks of equal level, from the left
    weights: list[float] = []
    sizes: list[int] = []
    for mean, weight in zip(np.bincount(which, x) / counts, counts, strict=True):
        size = 1
        while means and means[-1] >= mean:  # a violator: pool the two
            total = weights[-1] + weight
            mean = (means.pop() * weights[-1] + mean * weight) / total
            weights.pop()
            weight, size = total, size + sizes.pop()
        means.append(mean)
        weights.append(weight)
        sizes.append(size)
    return values, np.repeat(means, sizes)


def percentile(x: np.ndarray, y: np.ndarray) -> Knots:
    """The values of y and the mean of those of x that have the same ranks; float64 `[n]` each."""
    values, counts = np.unique(y, return_counts=True)
    starts = np.cumsum(counts) - counts
    return values, np.add.reduceat(np.sort(x), starts) / counts


_FITS: dict[str, Callable[[np.ndarray, np.ndarray], Knots]] = {
    "isotonic": isotonic,
    "percentile": percentile,
}

WAYS = ("none", "linear", *_FITS)
