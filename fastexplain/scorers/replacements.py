"""What a neuron's activations are replaced by, to score an explanation by ablation.

1. The simulation is calibrated: by the line that fits true activations, negatives included, best
   on the calibration split. A line that does not rise says nothing: the neuron's mean stands in.
2. Beside it stand the neuron's mean over the sweep, and its activations on another random excerpt
   of the run, one after the other of those that don't score it.
3. A token without a simulated value gets the mean, which can't flatter. Tokens that are not counted
   keep what they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastexplain.records import NeuronRecord
from fastexplain.results import Sample
from fastexplain.run.splits import samples


class Case(NamedTuple):
    """A neuron, and its excerpts of both splits, simulated where they could be."""

    record: NeuronRecord
    excerpts: Sequence[Sample]


def excerpts_of(record: NeuronRecord) -> list[Sample]:
    """What is to be simulated."""
    return [*samples(record, "test"), *samples(record, "calibration")]


class Replacements(NamedTuple):
    """What is to be run for one explanation.

    Attributes:
        tests: the test excerpts that were simulated.
        values: for each of these what the neuron becomes, float32 `[3, tokens]`, NaN where it stays
            as it is: simulated, mean, resampled (not the last where the run has no other excerpt).
        share: of the tests' tokens that have a simulated value.
        reason: why nothing is to be run; then there are no tests.
    """

    tests: list[Sample]
    values: list[np.ndarray]
    share: float = 1.0
    reason: str | None = None


def replacements(case: Case) -> Replacements:
    """What is to be run for an explanation, if its simulations suffice."""
    record = case.record
    there = [
        sample
        for sample in case.excerpts
        if sample.simulated is not None and np.isfinite(sample.simulated).any()
    ]
    tests = [sample for sample in there if sample.split == "test"]
    fitted = [sample for sample in there if sample.split == "calibration"]
    if not tests:
        return Replacements([], [], reason="no excerpt was simulated")
    if not fitted:
        return Replacements([], [], reason="the calibration split was not simulated")
    mean = record.statistics.mean
    line = rising_line(
        np.concatenate([np.asarray(sample.simulated, np.float64) for sample in fitted]),
        np.concatenate([sample.true.astype(np.float64) for sample in fitted]),
    )
    tested = {sample.excerpt for sample in case.excerpts if sample.split == "test"}
    others = [each for each in record.random if each.excerpt not in tested]
    values = []
    for number, sample in enumerate(tests):
        simulated = np.asarray(sample.simulated, np.float64)
        calibrated = (
            np.full_like(simulated, mean) if line is None else line[0] + line[1] * simulated
        )
        rows = [np.where(np.isnan(simulated), mean, calibrated), np.full_like(simulated, mean)]
        if others:
            rows.append(others[number % len(others)].activations[record.skip :])
        values.append(_counted(record, np.stack(rows)))
    share = np.isfinite(np.concatenate([np.asarray(each.simulated) for each in tests])).mean()
    return Replacements(tests, values, float(share))


def _counted(record: NeuronRecord, values: np.ndarray) -> np.ndarray:
    """Values at counted tokens as values of whole excerpts: what does not count stays as it is."""
    padding = np.full((len(values), record.skip), np.nan)
    return np.concatenate([padding, values], axis=1).astype(np.float32)


def rising_line(simulated: np.ndarray, true: np.ndarray) -> tuple[float, float] | None:
    """Intercept and slope of the least-squares line; None where it does not rise.

    Args:
        simulated, true: float64 `[tokens]`; tokens at which `simulated` is NaN are left out.
    """
    known = np.isfinite(simulated)
    x, y = simulated[known], true[known]
    centred = x - x.mean()
    variance = (centred**2).sum()
    slope = (centred * (y - y.mean())).sum() / variance if variance > 0 else 0.0
    return (float(y.mean() - slope * x.mean()), float(slope)) if slope > 0 else None
