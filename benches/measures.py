"""All measures of all neurons against a loop over SciPy and scikit-learn, and their bootstrap.

    python benches/measures.py [--neurons 46080] [--sample 100] [--resamples 1000]

The loop is timed on a sample of the neurons, and taken to be as slow on the others. Times are CPU
seconds of all threads, since they say the same on a machine that others use too; beside them the
wall's, and the load.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
import sklearn.metrics
from sklearn.metrics.pairwise import cosine_similarity

from fastexplain import kernels
from fastexplain.kernels.measuring import MEASURES, Binary

LAYER, EXCERPTS, TOKENS = 1536, 10, 64


def timed(function: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What a function returns, and its CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return result, np.array([time.process_time() - cpu, time.perf_counter() - wall])


def layer(rng: np.random.Generator, neurons: int) -> tuple[np.ndarray, np.ndarray, Binary]:
    """A fifth of the tokens above 0, simulated with noise."""
    true = rng.standard_normal((neurons, EXCERPTS, TOKENS), dtype=np.float32)
    true = np.where(rng.random(true.shape) < 0.6, -abs(true), true)
    simulated = np.maximum(true, 0) + rng.standard_normal(true.shape, dtype=np.float32) / 2
    scale = true.max(axis=(1, 2))
    return true, simulated, Binary(scale, np.full(neurons, 0.4, np.float32), 0.7 * simulated)


def loop(true: np.ndarray, simulated: np.ndarray, binary: Binary) -> np.ndarray:
    """The same measures, one neuron after the other, `[N, K]`."""
    rows = []
    for raw, y, c, scale in zip(true, simulated, binary.calibrated, binary.scale, strict=True):
        raw, y, c = raw.ravel().astype(float), y.ravel().astype(float), c.ravel().astype(float)
        x = np.maximum(raw, 0)
        active, predicted = 10 * x / float(scale) >= 1, y >= np.float32(0.4)
        rows.append([
            scipy.stats.pearsonr(x, y).statistic,
            scipy.stats.pearsonr(raw, y).statistic,
            scipy.stats.spearmanr(x, y).statistic,
            sklearn.metrics.r2_score(x, c),
            sklearn.metrics.d2_absolute_error_score(x, c),  # about the median in place of the mean
            sklearn.metrics.average_precision_score(active, y),
            sklearn.metrics.f1_score(active, predicted),
            sklearn.metrics.jaccard_score(active, predicted),
            cosine_similarity(active[None] * 1.0, predicted[None] * 1.0)[0, 0],
        ])  # fmt: skip
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--neurons", type=int, default=46080)
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=1000)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    top = np.broadcast_to(np.arange(EXCERPTS) < EXCERPTS // 2, (LAYER, EXCERPTS))
    first = layer(rng, LAYER)
    kernels.bootstrap(kernels.excerpt_sums(*first), top, resamples=1)  # compiles
    kernels.measures(kernels.excerpt_sums(*first))
    part = [*(x[: given.sample] for x in first[:2]), Binary(*(x[: given.sample] for x in first[2]))]
    expected, slow = timed(lambda: loop(*part))
    found = kernels.measures(kernels.excerpt_sums(*part))
    same = [place for place, name in enumerate(MEASURES) if name != "deviation_explained"]
    np.testing.assert_allclose(found[:, same], expected[:, same], atol=1e-6)
    slow *= given.neurons / given.sample

    fast, drawn = np.zeros(2), np.zeros(2)
    for _ in range(given.neurons // LAYER):
        own = layer(rng, LAYER)
        sums, seconds = timed(lambda own=own: kernels.excerpt_sums(*own))
        fast += seconds + timed(lambda sums=sums: kernels.measures(sums))[1]
        draw = timed(lambda sums=sums: kernels.bootstrap(sums, top, resamples=given.resamples))
        drawn += draw[1]
    print(f"{given.neurons:,} neurons of {EXCERPTS} x {TOKENS} tokens, {len(MEASURES)} measures")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; seconds of CPU (wall)")
    print(f"  loop, by {given.sample} neurons     {slow[0]:9.1f} ({slow[1]:.1f})")
    print(f"  kernels                  {fast[0]:9.1f} ({fast[1]:.1f})")
    print(f"  ratio                    {slow[0] / fast[0]:9.0f} ({slow[1] / fast[1]:.0f})")
    print(f"  bootstrap of {given.resamples:,}       {drawn[0]:9.1f} ({drawn[1]:.1f})")


if __name__ == "__main__":
    main()
