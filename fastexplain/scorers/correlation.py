"""The correlation score: how well the simulated activations follow the true ones.

Source: Bills et al. 2023, "Step 3: Score the explanation by comparing".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastexplain.records import CORRELATION, Measured, NeuronRecord, Sample, Scores
from fastexplain.run.directory import Run
from fastexplain.run.splits import samples
from fastexplain.scorers.registry import Connect

# A score that rests on less of its excerpts' tokens says so.
_ENOUGH = 0.9


def make(run: Run, connect: Connect) -> Correlation:
    """See `registry`."""
    return Correlation()


class Correlation:
    """Pearson's correlation over the random, the top and all held-out excerpts.

    Attributes:
        name, measures, judge: see `pipeline.protocols.Scorer`.
    """

    name = CORRELATION
    measures: tuple[str, ...] = (CORRELATION,)
    judge: tuple[str, str] | None = None

    def excerpts(self, record: NeuronRecord) -> list[Sample]:
        """The test split."""
        return samples(record)

    def score(
        self, record: NeuronRecord, explanation: str, excerpts: Sequence[Sample]
    ) -> list[Measured]:
        """Score one neuron's simulations.

        An explanation says what drives a neuron up, so true activations count from 0: relu first.
        The tokens of all excerpts are pooled before they are correlated. What was not simulated is
        left out; where that is more than a tenth of the tokens of those excerpts that were, the
        scores have a reason that says so.
        """
        from fastexplain.kernels import correlate

        there = [
            (each.top, np.maximum(each.true, 0, dtype=np.float64), each.simulated)
            for each in excerpts
            if each.simulated is not None and np.isfinite(each.simulated).any()
        ]
        if not there:
            return Scores(None, None, None, 0, 0).measured()
        tops, true, simulated = zip(*there, strict=True)
        pooled = np.concatenate(simulated).astype(np.float64)
        is_top = np.repeat(tops, [len(values) for values in true])
        rows = [np.where(is_top, np.nan, pooled), pooled, np.where(is_top, pooled, np.nan)]
        found = correlate(np.tile(np.concatenate(true), (3, 1)), np.stack(rows)).correlation
        random_only, both, top_only = (None if np.isnan(r) else float(r) for r in found)
        share = np.isfinite(pooled).mean()
        lacks = None
        if share < _ENOUGH:
            lacks = f"rests on {share:.0%} of the tokens: the others have no simulated value"
        counts = tops.count(False), tops.count(True)
        return Scores(random_only, both, top_only, *counts, lacks).measured()
