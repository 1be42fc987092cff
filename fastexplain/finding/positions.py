"""Neurons that fire by the place in the excerpt, whatever stands there."""

from __future__ import annotations

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.finding.results import LayerFound
from fastexplain.kernels.summary import widen
from fastexplain.run.directory import Run

EXPLAINED = 0.3
_FEWEST = 3  # random excerpts


class PositionSearch:
    """The search through a run's random excerpts; raises UsageError where it has too few."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def layer(self, layer: int) -> LayerFound:
        """Search one layer's neurons."""
        acts = widen(self._run.array(layer, "random.activations"))
        if len(acts) < _FEWEST:
            raise UsageError(
                f"{self._run.path} has {len(acts)} random excerpts, and positions need {_FEWEST}; "
                "sweep again with a larger `random`"
            )
        return by_position(acts, self._run.skip)


def by_position(acts: np.ndarray, skip: int) -> LayerFound:
    """The share of variance that positions explain, for N neurons.

    It is epsilon squared (Kelley 1935): the sum of squares between positions, less what chance puts
    there, over the whole, of max(activation, 0). Found are those from `EXPLAINED` on.

    Args:
        acts: float32 `[R, T, N]`, of random excerpts.
        skip: first counted token.
    """
    positive = np.maximum(acts[:, skip:], 0).astype(np.float64)
    excerpts, positions, _ = positive.shape
    means = positive.mean(axis=0)
    whole = means.mean(axis=0)
    between = excerpts * ((means - whole) ** 2).sum(axis=0)
    total = ((positive - whole) ** 2).sum(axis=(0, 1))
    within = (total - between) / (positions * (excerpts - 1))
    surplus = between - (positions - 1) * within
    share = np.divide(surplus, total, out=np.zeros_like(total), where=total > 0)
    values = np.where(share >= EXPLAINED, share, np.nan)
    return LayerFound(values, {"position": means.argmax(axis=0) + skip})
