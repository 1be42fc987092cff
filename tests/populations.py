"""Made-up corpora of which every activation is known, to draw from and to estimate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastexplain.kernels.scalars import BINS, histogram_edges
from fastexplain.kernels.summary import KEPT_A_BIN, smallest_hashes
from fastexplain.run.splits import EXPLANATION_RANKS
from fastexplain.run.strata import Drawn, draw

RANDOM = 25
"""Random excerpts that a sweep keeps by default."""


@dataclass
class Population:
    """All of a corpus, for some neurons.

    Attributes:
        acts, simulated: float32 `[N, excerpts, T]`.
        explained: int32 `[N, 5]`, the excerpts that explanations are written from; -1 for none.
    """

    acts: np.ndarray
    simulated: np.ndarray
    explained: np.ndarray

    def others(self, neuron: int) -> np.ndarray:
        """The ids of all other excerpts."""
        every = np.arange(self.acts.shape[1])
        return np.setdiff1d(every, self.explained[neuron])


def population(
    rng: np.random.Generator, *, neurons: int, excerpts: int, tokens: int = 16
) -> Population:
    """Neurons with tails of different weight, some silent on most excerpts."""
    spread = rng.uniform(0.3, 1.6, (neurons, 1, 1))
    strength = np.exp(rng.standard_normal((neurons, excerpts, 1)) * spread)
    strength *= rng.random((neurons, excerpts, 1)) < rng.uniform(0.1, 1, (neurons, 1, 1))
    shape = (neurons, excerpts, tokens)
    acts = np.maximum(rng.standard_normal(shape), 0) * strength + 1e-3 * rng.random(shape)
    simulated = np.sqrt(acts) * rng.uniform(0.2, 2, (neurons, 1, 1))
    simulated += rng.standard_normal(shape) * rng.uniform(0.1, 0.5, (neurons, 1, 1))
    order = np.argsort(-acts.max(axis=2), axis=1, kind="stable").astype(np.int32)
    ranks = EXPLANATION_RANKS[excerpts > EXPLANATION_RANKS]
    explained = np.full((neurons, len(EXPLANATION_RANKS)), -1, np.int32)
    explained[:, : len(ranks)] = order[:, ranks]
    return Population(acts.astype(np.float32), simulated.astype(np.float32), explained)


def bins_of(acts: np.ndarray) -> np.ndarray:
    """The bin of each excerpt, `[N, excerpts]`."""
    return np.searchsorted(histogram_edges(), acts.max(axis=2), side="right")


def kept_by(largest: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histogram, kept and random excerpts of a sweep with that seed; `largest` is `[N, S]`."""
    neurons, excerpts = largest.shape
    bins = np.searchsorted(histogram_edges(), largest, side="right")
    histogram = np.zeros((neurons, BINS), np.int64)
    kept = np.full((neurons, BINS, KEPT_A_BIN), -1, np.int32)
    by_hash = smallest_hashes(np.arange(excerpts, dtype=np.int32), excerpts, seed)
    for neuron in range(neurons):
        histogram[neuron] = np.bincount(bins[neuron], minlength=BINS)
        for place in np.flatnonzero(histogram[neuron]):
            members = by_hash[bins[neuron, by_hash] == place][:KEPT_A_BIN]
            kept[neuron, place, : len(members)] = members
    return histogram, kept, by_hash[:RANDOM]


def drawn_from(own: Population, seed: int) -> Drawn:
    """Draw as from a sweep with that seed."""
    histogram, kept, random = kept_by(own.acts.max(axis=2), seed)
    rows = np.arange(len(own.acts))[:, None]
    largest = own.acts[rows, own.explained].max(axis=2)
    largest_random = own.acts[:, random].max(axis=2)
    return draw(histogram, kept, random, largest_random, own.explained, largest, seed)
