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
        """Score one neuron's simulations.

        An explanation says what drives a neuron up, so true activations count from 0: relu first.
        The tokens of all excerpts are pooled before they are correlated. What was not simulated is
        left out.
        """
        from fastexplain.kernels import correlate

        true = [np.maximum(each.true, 0, dtype=np.float64) for each in excerpts]
        simulated = [
            np.full(len(t), np.nan) if each.simulated is None else each.simulated
            for t, each in zip(true, excerpts, strict=True)
        ]
        tops = [
            bool(each.top)
            for each, s in zip(excerpts, simulated, strict=True)
            if np.isfinite(s).any()
        ]
        if not tops:
            return Scores(None, None, None, 0, 0).measured()
        pooled = np.concatenate(simulated).astype(np.float64)
        is_top = np.repeat([each.top for each in excerpts], [len(t) for t in true])
        rows = np.stack(
            [np.where(is_top, np.nan, pooled), pooled, np.where(is_top, pooled, np.nan)]
        )
        found = correlate(np.tile(np.concatenate(true), (3, 1)), rows).correlation
        random_only, both, top_only = (None if np.isnan(r) else float(r) for r in found)
        return Scores(random_only, both, top_only, tops.count(False), tops.count(True)).measured()
