"""Where a value stands in a neuron's own distribution, by what the sweep kept of it."""

from __future__ import annotations

import numpy as np

from fastexplain.kernels.scalars import LOWEST_OCTAVE, histogram_edges
from fastexplain.kernels.summary import widen
from fastexplain.run.directory import Run

_LEAST = np.float32(2.0**LOWEST_OCTAVE)
"""Below it the histogram tells nothing apart."""


class Quantiles:
    """The distributions of the largest activations of excerpts, of N neurons.

    The quantile of a value is the share of the sweep's excerpts that stay below it at all counted
    tokens:

    1. Above the lowest of the top exemplars it is exact, since all larger ones are there.
    2. Elsewhere it is the share of the histogram's lower bins, and a part of the value's own bin:
       as many as of the random excerpts in that bin are below it, and of one more the part that the
       bin is passed. (Of a bin's width alone a neuron of one token, whose values are all alike,
       would have any quantile.) In the lowest bin, below 2**-14, it is 0.

    Args:
        histogram: int `[N, H]`, excerpts by the bin of their largest activation.
        top: float32 `[N, K]`, the largest activations of the top exemplars; -inf where there is
            none.
        random: float32 `[R, N]`, those of random excerpts.

    Attributes:
        maximum: float32 `[N]`, the largest of all.
    """

    def __init__(self, histogram: np.ndarray, top: np.ndarray, random: np.ndarray) -> None:
        counts = histogram.astype(np.float32).T
        self._excerpts = np.maximum(counts.sum(axis=0), 1)
        share = counts / self._excerpts
        self._below = np.cumsum(share, axis=0) - share  # [H, N], as the next two
        self._below[0] = share[0] = 0
        self._edges = histogram_edges()
        bins = np.searchsorted(self._edges, random, side="right")
        inside = np.zeros_like(share)
        np.add.at(inside, (bins, np.broadcast_to(np.arange(share.shape[1]), bins.shape)), 1)
        self._random_below = np.cumsum(inside, axis=0) - inside
        self._part = share / (inside + 1)
        self._random, self._top = random, top
        self.maximum = top.max(axis=1, initial=-np.inf).astype(np.float32)
        self._low = np.append(np.float32(0), self._edges)
        high = np.append(self._edges, np.float32(np.inf))[:, None]
        width = np.minimum(high, self.maximum) - self._low[:, None]
        self._width = np.maximum(width, np.float32(1e-12))

    @classmethod
    def of(cls, run: Run, layer: int) -> Quantiles:
        """Those of a layer's neurons. Raises RunError where its file is missing or damaged."""
        acts = widen(run.array(layer, "top.activations"))[:, :, run.skip :]
        top = np.where(run.array(layer, "top.ids") >= 0, acts.max(axis=2), np.float32(-np.inf))
        random = widen(run.array(layer, "random.activations"))[:, run.skip :].max(axis=1)
        return cls(run.array(layer, "histogram"), top, random)

    def ranks(self, values: np.ndarray) -> np.ndarray:
        """What values are ranked by: their quantiles, and beyond the largest of the sweep more.

        There it is 1 and the share by which the largest is passed, so that 1.5 is half as much
        again.

        Args:
            values: float32 `[n, N]`.

        Returns:
            float32 `[n, N]`.
        """
        neurons = np.arange(values.shape[1])
        bins = np.searchsorted(self._edges, values, side="right")
        below = sum((own < values).astype(np.float32) for own in self._random)
        passed = np.clip((values - self._low[bins]) / self._width[bins, neurons], 0, 1)
        passed += below - self._random_below[bins, neurons]
        found = self._below[bins, neurons] + self._part[bins, neurons] * passed
        lowest = self._top.min(axis=1, initial=np.inf)
        found = np.minimum(found, 1 - self._top.shape[1] / self._excerpts)
        high = (values > lowest) & (values >= _LEAST)
        neuron = np.nonzero(high)[1]
        reach = (self._top[neuron] >= values[high][:, None]).sum(axis=1)
        found[high] = 1 - reach / self._excerpts[neuron]
        beyond = high & (values > self.maximum)
        over = (values - self.maximum) / np.maximum(self.maximum, _LEAST)
        return np.where(beyond, 1 + over, np.maximum(found, 0)).astype(np.float32)
