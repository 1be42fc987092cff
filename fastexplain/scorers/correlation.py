"""The correlation score: how well the simulated activations follow the true ones.

Source: Bills et al. 2023, "Step 3: Score the explanation by comparing".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastexplain.records import CORRELATION, Measured, Scores, Simulated


class Correlation:
    """Pearson's correlation over the random, the top and all held-out excerpts.

    Attributes:
        name: under which its scores are stored.
    """

    name = CORRELATION

    def score(self, excerpts: Sequence[Simulated]) -> list[Measured]:
        """Score one neuron's simulations; see `score`."""
        return score(
            [each.true for each in excerpts],
            [each.simulated for each in excerpts],
            [each.top for each in excerpts],
        ).measured()


def score(
    true: Sequence[np.ndarray], simulated: Sequence[np.ndarray | None], top: Sequence[bool]
) -> Scores:
    """Score one neuron's simulations.

    An explanation says what drives a neuron up, so true activations count from 0: relu first.
    The tokens of all excerpts are pooled before they are correlated.

    Args:
        true: per excerpt the activations at its counted tokens, float `[counted]`.
        simulated: per excerpt the simulated values at the same tokens, NaN where one is missing;
            None where the simulation failed.
        top: per excerpt, whether it is a top excerpt, not a random one.
    """
    from fastexplain.kernels import correlate

    rows = [
        (np.maximum(t, 0), np.full(len(t), np.nan) if s is None else s)
        for t, s in zip(true, simulated, strict=True)
    ]
    there = [bool(np.isfinite(s).any()) for _, s in rows]
    if not any(there):
        return Scores(None, None, None, 0, 0)
    pooled_true = np.concatenate([t for t, _ in rows]).astype(np.float64)
    pooled = np.concatenate([s for _, s in rows]).astype(np.float64)
    is_top = np.repeat(np.asarray(top, dtype=bool), [len(t) for t, _ in rows])
    each = correlate(
        np.tile(pooled_true, (3, 1)),
        np.stack([np.where(is_top, np.nan, pooled), pooled, np.where(is_top, pooled, np.nan)]),
    ).correlation
    random_only, both, top_only = (None if np.isnan(r) else float(r) for r in each)
    count_top = sum(h and t for h, t in zip(there, top, strict=True))
    return Scores(random_only, both, top_only, sum(there) - count_top, count_top)
