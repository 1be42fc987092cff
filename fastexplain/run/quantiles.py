"""Where a value stands in a neuron's own distribution, by the histogram that the sweep kept."""

from __future__ import annotations

import numpy as np

from fastexplain.kernels.scalars import LOWEST_OCTAVE, histogram_edges
from fastexplain.run.directory import Run

_LEAST = 2.0**LOWEST_OCTAVE  # below it the histogram tells nothing apart


class Quantiles:
    """The distributions of the largest activations of excerpts, of N neurons.

    The quantile of a value is the share of the sweep's excerpts that stay below it at all counted
    tokens. Inside a bin it is interpolated, linearly; a value from the largest of the sweep on has
    quantile 1, one in the lowest bin, below 2**-14, has 0.

    Args:
        histogram: int `[N, H]`, excerpts by the bin of their largest activation.
        maximum: floating `[N]`, the largest activation of all.

    Attributes:
        maximum: the same, float32.
    """

    def __init__(self, histogram: np.ndarray, maximum: np.ndarray) -> None:
        counts = histogram.astype(np.float32).T
        total = np.maximum(counts.sum(axis=0), 1)
        self._edges = histogram_edges()
        self.maximum = maximum.astype(np.float32)
        self._share = counts / total
        self._below = np.cumsum(self._share, axis=0) - self._share  # [H, N]
        self._below[0] = self._share[0] = 0
        low = np.append(np.float32(0), self._edges)[:, None]
        high = np.append(self._edges, np.float32(np.inf))[:, None]
        with np.errstate(divide="ignore"):
            self._per_unit = 1 / np.maximum(np.minimum(high, self.maximum) - low, 1e-30)
        self._low = low[:, 0]

    @classmethod
    def of(cls, run: Run, layer: int) -> Quantiles:
        """Those of a layer's neurons. Raises RunError where its file is missing or damaged."""
        return cls(run.array(layer, "histogram"), run.array(layer, "maximum"))

    def ranks(self, values: np.ndarray) -> np.ndarray:
        """What values are ranked by: their quantiles, and beyond the largest of the sweep more.

        There it is 1 and the share by which the largest is passed, so that 1.5 is half as much
        again.

        Args:
            values: float32 `[..., N]`.

        Returns:
            float32, as `values`.
        """
        bins = np.searchsorted(self._edges, values, side="right")
        neurons = np.arange(values.shape[-1])
        inside = (values - self._low[bins]) * self._per_unit[bins, neurons]
        found = self._below[bins, neurons] + self._share[bins, neurons] * np.clip(inside, 0, 1)
        beyond = 1 + (values - self.maximum) / np.maximum(self.maximum, np.float32(_LEAST))
        return np.where((values >= self.maximum) & (values >= _LEAST), beyond, found)
