"""The correlation score: how well the simulated activations follow the true ones.

Source: Bills et al. 2023, "Step 3: Score the explanation by comparing".
"""

from __future__ import annotations

from collections.abc import Sequence

from fastexplain.records import NeuronRecord
from fastexplain.results import CORRELATION, Measured, Sample
from fastexplain.run.agreement import agreement, stacked
from fastexplain.run.directory import Run
from fastexplain.run.splits import samples
from fastexplain.scorers.registry import Connect


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
        scores have a reason that says so. Intervals are of other excerpts of the same kinds; see
        `kernels.bootstrap`.
        """
        return [
            row for each in agreement(*stacked(excerpts)) for row in each.measured(0, self.measures)
        ]
