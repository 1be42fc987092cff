"""All that a simulation tells of an explanation: nine measures with their intervals.

Correlation over picked excerpts alone fails checks that others pass (NeuronEval, ICML 2025), so it
stands beside rank correlation, errors after calibration, and how well active tokens are found. What
is fitted (the calibration, the threshold from which on a token is predicted to be active) is fitted
on the calibration split. The measures are those of `fastexplain.kernels.measures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.kernels import best_threshold
from fastexplain.kernels.measuring import MEASURES, Binary
from fastexplain.records import NeuronRecord
from fastexplain.results import Measured, Sample
from fastexplain.run.agreement import CALIBRATED, Agreement, agreement, stacked
from fastexplain.run.directory import Run
from fastexplain.run.splits import samples
from fastexplain.scorers.calibration import WAYS, calibrate
from fastexplain.scorers.registry import Connect

NAME = "simulation"

_SETS = ("random_only", "top_and_random")
_BINARY = ("auprc", "f1", "iou", "cosine")


def make(run: Run, connect: Connect) -> Simulation:
    """See `registry`."""
    return Simulation()


def make_uncalibrated(run: Run, connect: Connect) -> Simulation:
    """With values as they are; see `registry`."""
    return Simulation("none")


def make_isotonic(run: Run, connect: Connect) -> Simulation:
    """Calibrated by a function that never falls; see `registry`."""
    return Simulation("isotonic")


def make_percentile(run: Run, connect: Connect) -> Simulation:
    """Calibrated by distributions; see `registry`."""
    return Simulation("percentile")


class Found(NamedTuple):
    """What was measured of N neurons.

    Attributes:
        sets: over each set of excerpts.
        lacking: by neuron, why measures could not be taken, by their names.
    """

    sets: list[Agreement]
    lacking: list[dict[str, str]]

    def measured(self, neuron: int) -> list[Measured]:
        """One neuron's rows."""
        return [
            m for each in self.sets for m in each.measured(neuron, MEASURES, self.lacking[neuron])
        ]


class Simulation:
    """Every measure that follows from simulations of the test and the calibration split.

    Attributes:
        name, measures, judge: see `pipeline.protocols.Scorer`.
        calibration: for `r_squared` and `deviation_explained`; one of `calibration.WAYS`. Scores by
            another than "linear" are stored under a name of their own.

    Raises:
        UsageError: there is no such calibration.
    """

    measures = MEASURES
    judge: tuple[str, str] | None = None

    def __init__(self, calibration: str = "linear") -> None:
        if calibration not in WAYS:
            raise UsageError(
                f"there is no `calibration` '{calibration}'; choose from {', '.join(WAYS)}"
            )
        self.calibration = calibration
        self.name = NAME if calibration == "linear" else f"{NAME}-{calibration}"

    def excerpts(self, record: NeuronRecord) -> list[Sample]:
        """The test and the calibration split."""
        return samples(record) + samples(record, "calibration")

    def score(
        self, record: NeuronRecord, explanation: str, excerpts: Sequence[Sample]
    ) -> list[Measured]:
        """Score one neuron's simulations."""
        test, fitted_on = (
            stacked([each for each in excerpts if each.split == split])
            for split in ("test", "calibration")
        )
        # The largest activation over all exemplars is the first one's, which an explainer sees.
        strongest = [each.activations[record.skip :].max() for each in record.top[:1]]
        scale = np.array(strongest or [np.nan], np.float64)
        return self.measure(test, fitted_on[:2], scale).measured(0)

    def measure(
        self,
        test: tuple[np.ndarray, np.ndarray, np.ndarray],
        fitted_on: tuple[np.ndarray, np.ndarray],
        scale: np.ndarray,
    ) -> Found:
        """Measure N neurons at once.

        Args:
            test: true and simulated `[N, E, T]`, and which excerpts are top ones, bool `[N, E]`.
            fitted_on: true and simulated `[N, E', T]`, of the calibration split.
            scale: floating `[N]`, the largest activation over the explanation's exemplars.
        """
        true, simulated, top = test
        calibrated = calibrate(self.calibration, *fitted_on, simulated)
        binary = Binary(scale, best_threshold(*fitted_on, scale), calibrated)
        known = ~np.isnan(fitted_on[1]).all(axis=(1, 2))
        lacking = [
            _lacking(bool(there), float(m), float(threshold), self.calibration)
            for there, m, threshold in zip(known, scale, binary.threshold, strict=True)
        ]
        return Found(agreement(true, simulated, top, binary, _SETS), lacking)


def _lacking(known: bool, scale: float, threshold: float, calibration: str) -> dict[str, str]:
    """Why measures of one neuron can't be taken, by their names.

    Args:
        known: whether the calibration split was simulated.
        scale, threshold: as in `Binary`.
        calibration: the way of it.
    """
    if not scale > 0:
        reasons = dict.fromkeys(_BINARY, "no exemplar of the explanation has an activation above 0")
    elif known and np.isnan(threshold):
        reasons = dict.fromkeys(_BINARY[1:], "no token of the calibration split is active")
    else:
        reasons = {}
    if not known:
        why = "the calibration split was not simulated"
        reasons = dict.fromkeys(_BINARY[1:], why) | reasons
        if calibration != "none":
            reasons |= dict.fromkeys(CALIBRATED, why)
    return reasons
