"""Scores of one neuron's simulations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fastexplain.results import Sample, Scores
from fastexplain.scorers.correlation import Correlation


def score(true, simulated, top) -> Scores:
    excerpts = [Sample(i, *each) for i, each in enumerate(zip(top, true, simulated, strict=True))]
    return Scores.of(Correlation().score(None, "", excerpts))


def test_a_perfect_simulation_scores_one_and_negative_activations_count_as_zero():
    true = [np.array([1.0, -3.0, 2.0]), np.array([0.0, -1.0, 4.0])]
    simulated = [np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 4.0])]
    scores = score(true, simulated, [True, False])
    assert scores.top_and_random == pytest.approx(1)
    assert scores.random_only == pytest.approx(1)
    assert scores.top_only == pytest.approx(1)
    assert (scores.excerpts_top, scores.excerpts_random) == (1, 1)


def test_excerpts_are_pooled_before_they_are_correlated():
    rng = np.random.default_rng(1)
    true = [rng.random(9) for _ in range(4)]
    simulated = [rng.random(9) for _ in range(4)]
    scores = score(true, simulated, [True, True, False, False])
    for found, part in [
        (scores.top_and_random, slice(None)),
        (scores.top_only, slice(2)),
        (scores.random_only, slice(2, None)),
    ]:
        pooled = np.concatenate(true[part]), np.concatenate(simulated[part])
        assert found == pytest.approx(np.corrcoef(*pooled)[0, 1])


def test_a_failed_simulation_is_left_out_and_not_taken_for_zeros():
    rng = np.random.default_rng(2)
    true, simulated = [rng.random(9) for _ in range(3)], [rng.random(9) for _ in range(3)]
    top = [True, True, False]
    failed = score(true, [simulated[0], None, simulated[2]], top)
    without = score([true[0], true[2]], [simulated[0], simulated[2]], [True, False])
    assert dataclasses.astuple(failed)[:5] == pytest.approx(dataclasses.astuple(without)[:5])
    assert (failed.excerpts_top, failed.excerpts_random) == (1, 1)


def test_missing_tokens_are_left_out():
    true, simulated = [np.array([1.0, 2.0, 9.0, 4.0])], [np.array([1.0, 2.0, np.nan, 3.0])]
    expected = np.corrcoef([1, 2, 4], [1, 2, 3])[0, 1]
    assert score(true, simulated, [True]).top_only == pytest.approx(expected)


@pytest.mark.parametrize("missing, says", [(0, None), (2, None), (3, "85%"), (15, "25%")])
def test_scores_that_rest_on_too_few_tokens_say_so(missing, says):
    rng = np.random.default_rng(3)
    true, simulated = [rng.random(10), rng.random(10)], [rng.random(10), rng.random(10)]
    for place in range(missing):
        simulated[place % 2][place // 2] = np.nan
    scores = score(true, simulated, [True, False])
    assert scores.top_and_random is not None
    if says is None:
        assert scores.reason is None
    else:
        assert scores.reason.startswith(f"rests on {says} of the tokens: ")
    assert {m.reason for m in scores.measured()} == {scores.reason}
    assert Scores.of(scores.measured()) == scores


def test_without_variance_a_score_is_undefined():
    dead, varied = np.array([0.0, -1.0, -2.0]), np.array([1.0, 2.0, 3.0])
    for true, simulated in [(dead, varied), (varied, np.ones(3))]:
        scores = score([true, true], [simulated, simulated], [True, False])
        assert (scores.random_only, scores.top_and_random, scores.top_only) == (None,) * 3
        assert (scores.excerpts_top, scores.excerpts_random) == (1, 1)
    assert score([], [], []) == Scores(None, None, None, 0, 0)
