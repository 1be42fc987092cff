"""The kernels of scores in NumPy, slow: the truth for `cpu/sums.py` and `cpu/measures.py`."""

from __future__ import annotations

import math

import numpy as np

from fastexplain.kernels.measuring import (
    AUPRC,
    MEASURES,
    SUMS,
    Binary,
    Bootstrap,
    ExcerptSums,
    interval_share,
    measure_sums,
)
from fastexplain.kernels.reference import _exact, _varies


def excerpt_sums(
    true: np.ndarray, simulated: np.ndarray, binary: Binary | None = None
) -> ExcerptSums:
    """See `fastexplain.kernels.excerpt_sums`."""
    raw, simulated = _exact(true), _exact(simulated)
    neurons, excerpts, tokens = raw.shape
    sums = np.zeros((neurons, excerpts, len(SUMS)))
    ranked = np.full((neurons, excerpts * tokens), -1, np.int16)
    for neuron in range(neurons):
        known = ~(np.isnan(raw[neuron]) | np.isnan(simulated[neuron]))
        x = np.maximum(raw[neuron], 0)[known]
        columns = _moments(x, raw[neuron][known], simulated[neuron][known])
        unknown = np.full(len(x), np.nan)
        columns += [unknown] * (len(SUMS) - len(columns))
        if binary is not None:
            y = simulated[neuron][known]
            c = _exact(binary.calibrated)[neuron][known]
            active = _is_active(raw[neuron][known], float(binary.scale[neuron]))
            threshold = float(binary.threshold[neuron])
            predicted = unknown if math.isnan(threshold) else (y >= threshold) * 1.0
            p, q = _ranks(x), _ranks(y)
            columns[9:] = [p, q, p * p, p * q, q * q, (x - c) ** 2, abs(x - c),
                           abs(_centred(x)), predicted * active, predicted, active,
                           np.sign(_centred(x))]  # fmt: skip
            if not np.isnan(active).any():
                where = np.nonzero(known)[0]
                order = np.argsort(-y, kind="stable")
                last = np.append(np.diff(y[order]) != 0, True)[: len(order)]
                ranked[neuron, : len(order)] = 4 * where[order] + 2 * active[order] + last
        for excerpt, own in enumerate(_split(known)):
            sums[neuron, excerpt] = [column[own].sum() for column in columns]
            if not own.any() and np.isnan(columns).any():
                sums[neuron, excerpt] = 0
    return ExcerptSums(sums, ranked)


def _split(known: np.ndarray) -> list[np.ndarray]:
    """For each excerpt, which of the known tokens are its own; known is bool `[E, T]`."""
    places = np.nonzero(known)[0]
    return [places == excerpt for excerpt in range(len(known))]


def _moments(x: np.ndarray, raw: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The terms of the first sums, of tokens `[n]`."""
    x, raw, y = _centred(x), _centred(raw), _centred(y)
    return [np.ones(len(x)), x, y, x * x, x * y, y * y, raw, raw * raw, raw * y]


def _centred(x: np.ndarray) -> np.ndarray:
    """Values less their mean; exactly 0 where they do not vary."""
    return x - x.mean() if _varies(x) else np.zeros(len(x))


def _is_active(raw: np.ndarray, scale: float) -> np.ndarray:
    """1 where a token's discretised activation is 1 or more, else 0; NaN where that is unknown."""
    if not scale > 0:
        return np.full(len(raw), np.nan)
    return (10 * np.maximum(raw, 0) / scale >= 1) * 1.0


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks about their mean, ties at their mean rank; `[n]`."""
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + 1 + ends) / 2 - (len(x) + 1) / 2)[which]


def measures(sums: ExcerptSums, weights: np.ndarray | None = None) -> np.ndarray:
    """See `fastexplain.kernels.measures`."""
    if weights is None:
        weights = np.ones(sums.sums.shape[:2])
    found = np.full((len(sums.sums), len(MEASURES)), np.nan)
    for neuron, own in enumerate(weights):
        counts = own > 0
        total = (sums.sums[neuron] * own[:, None])[counts].sum(axis=0)
        with np.errstate(all="ignore"):
            measure_sums(total[:, None], found[neuron, :, None])
        found[neuron, AUPRC] = _average_precision(sums.ranked[neuron], own)
    return found


def _average_precision(ranked: np.ndarray, weights: np.ndarray) -> float:
    """Average precision of one neuron's ranked tokens, excerpts weighted `[E]`."""
    codes = ranked[ranked >= 0].astype(np.int64)
    own = weights[codes // 4]
    active = own * (codes // 2 % 2)
    if not active.sum() > 0:
        return math.nan
    last = codes % 2 == 1  # of a value
    found, seen = np.cumsum(active)[last], np.cumsum(own)[last]
    gained = np.diff(found, prepend=0)
    return float(((gained * found)[gained > 0] / seen[gained > 0]).sum() / active.sum())


def bootstrap(
    sums: ExcerptSums, top: np.ndarray, resamples: int = 1000, seed: int = 0
) -> Bootstrap:
    """See `fastexplain.kernels.bootstrap`."""
    neurons, excerpts = top.shape
    chance = np.random.default_rng(seed).random((2, excerpts, resamples))
    drawn = np.zeros((resamples, neurons, excerpts))
    lone = np.zeros(neurons, bool)
    for neuron in range(neurons):
        for kind, chances in enumerate(chance):
            own = np.flatnonzero((sums.sums[neuron, :, 0] > 0) & (top[neuron] == kind))
            lone[neuron] |= len(own) == 1
            for place in range(len(own)):
                for resample in range(resamples):
                    drawn[resample, neuron, own[int(chances[place, resample] * len(own))]] += 1
    values = np.stack([measures(sums, weights) for weights in drawn])  # [D, N, K]
    values[:, np.isnan(measures(sums))] = np.nan
    defined = ~np.isnan(values)
    low, high = np.full((2, neurons, len(MEASURES)), np.nan)
    for neuron, measure in zip(*np.nonzero(defined.sum(axis=0) * 2 >= resamples), strict=True):
        if not lone[neuron]:
            own = values[defined[:, neuron, measure], neuron, measure]
            known = sums.sums[neuron, :, 0] > 0
            share = interval_share((known & top[neuron]).sum(), (known & ~top[neuron]).sum())
            low[neuron, measure], high[neuron, measure] = np.quantile(own, [share, 1 - share])
    return Bootstrap(low, high, np.nansum(values, axis=1), defined.sum(axis=1))


def best_threshold(true: np.ndarray, simulated: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """See `fastexplain.kernels.best_threshold`."""
    raw, simulated = _exact(true), _exact(simulated)
    found = np.full(len(raw), np.nan)
    for neuron in range(len(raw)):
        known = ~(np.isnan(raw[neuron]) | np.isnan(simulated[neuron]))
        y, active = simulated[neuron][known], _is_active(raw[neuron][known], float(scale[neuron]))
        if active.sum() > 0:
            values = np.unique(y)[::-1]
            predicted = y >= values[:, None]
            f1 = 2 * (predicted * active).sum(axis=1) / (active.sum() + predicted.sum(axis=1))
            found[neuron] = values[f1.argmax()]
    return found
