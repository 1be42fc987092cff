"""The scorer of everything that a simulation tells, on one neuron."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fastexplain.errors import UsageError
from fastexplain.kernels.measuring import MEASURES
from fastexplain.results import Measured, Sample
from fastexplain.scorers.simulation import Simulation

RNG = np.random.default_rng(0)
TRUE = RNG.standard_normal((10, 20)) * RNG.uniform(0.5, 2, (10, 1))
TOPS = [True] * 3 + [False] * 2


def scored(simulate, *, scale: float = 5.0, calibration: bool = True, way: str = "linear"):
    """The rows by split and measure: 3 top and 2 random excerpts of each split."""
    excerpts = [
        Sample(i, TOPS[i % 5], true, simulate(true) if i < 5 or calibration else None, split=split)
        for i, (true, split) in enumerate(
            zip(TRUE, ["test"] * 5 + ["calibration"] * 5, strict=True)
        )
    ]
    top = [SimpleNamespace(activations=np.array([99.0, scale, 0]))]
    record = SimpleNamespace(skip=1, top=top)
    rows = Simulation(way).score(record, "", excerpts)
    assert all(isinstance(row, Measured) for row in rows)
    return {(row.split, row.measure): row for row in rows}


def test_a_perfect_simulation_scores_one_on_any_rising_scale() -> None:
    found = scored(lambda true: 3 + 2 * np.maximum(true, 0))
    assert set(found) == {(s, m) for s in ("random_only", "top_and_random") for m in MEASURES}
    for (split, measure), row in found.items():
        if measure in ("f1", "iou", "cosine"):  # the threshold is that of other excerpts
            assert row.low <= row.value <= row.high and row.value > 0.9
        elif measure != "raw_correlation":
            assert (row.value, row.low, row.high) == pytest.approx((1, 1, 1)), measure
        assert row.reason is None and row.excerpts == (2 if split == "random_only" else 5)


def test_calibration_does_not_turn_an_opposite_simulation_round() -> None:
    for way in ("linear", "isotonic"):
        found = scored(lambda true: -np.maximum(true, 0), way=way)
        assert found["top_and_random", "correlation"].value == pytest.approx(-1)
        assert found["top_and_random", "spearman"].value == pytest.approx(-1)
        assert found["top_and_random", "r_squared"].value < 0.01


def test_without_a_simulated_calibration_split_what_is_fitted_is_undefined() -> None:
    found = scored(lambda true: np.maximum(true, 0), calibration=False)
    why = "the calibration split was not simulated"
    reasons = {measure: row.reason for (split, measure), row in found.items() if split[0] == "t"}
    assert reasons == dict.fromkeys(MEASURES) | dict.fromkeys(
        ("r_squared", "deviation_explained", "f1", "iou", "cosine"), why
    )
    uncalibrated = scored(lambda true: np.maximum(true, 0), calibration=False, way="none")
    assert uncalibrated["top_and_random", "r_squared"].value == pytest.approx(1)


@pytest.mark.parametrize(
    "simulate, scale, measure, says",
    [
        (lambda true: np.ones(20), 5.0, "spearman", "one side has no variance"),
        (lambda true: np.full(20, np.nan), 5.0, "auprc", "no excerpt was simulated"),
        (lambda true: true, 0.0, "iou", "no exemplar of the explanation has an activation above 0"),
        (lambda true: true, 1e3, "auprc", "no token is active"),
        (lambda true: true, 1e3, "f1", "no token of the calibration split is active"),
    ],
)
def test_what_is_undefined_says_why(simulate, scale, measure, says) -> None:
    row = scored(simulate, scale=scale)["top_and_random", measure]
    assert (row.value, row.low, row.high, row.reason) == (None, None, None, says)


def test_an_unknown_calibration_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="no `calibration` 'cubic'; choose from none, linear,"):
        Simulation("cubic")
    assert Simulation("isotonic").name == "simulation-isotonic"
