import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain import score

FIRST_SLOT = {"calibration": 0, "validation": 1, "test": 2}
ids = st.integers(0, 40)
tops = st.lists(ids, unique=True, max_size=24)
randoms = st.lists(ids, unique=True, max_size=25)


def plain_split(top, random, name):
    """The rule as it is written, for one neuron."""
    ranks = [r for r in range(FIRST_SLOT[name] + 1, 20, 4) if r < len(top)]
    explanation = {top[r] for r in range(0, 20, 4) if r < len(top)}
    slots = []
    for slot in range(FIRST_SLOT[name], len(random), 3):
        used = explanation | {top[r] for r in ranks}
        if random[slot] not in used and len(slots) < 5:
            slots.append(slot)
    return ranks, slots


@given(tops, randoms)
def test_splits_follow_the_rule(top, random):
    dealt = score.splits(np.array(top, dtype=np.int64), np.array(random, dtype=np.int64))
    assert dealt["explanation"].top.tolist() == [r for r in range(0, 20, 4) if r < len(top)]
    assert dealt["explanation"].random.size == 0
    for name in FIRST_SLOT:
        assert (dealt[name].top.tolist(), dealt[name].random.tolist()) == plain_split(
            top, random, name
        )


@given(st.lists(tops, min_size=1, max_size=5), randoms)
def test_all_neurons_at_once_are_dealt_as_one_by_one(rows, random):
    padded = np.full((len(rows), 24), -1)
    for row, top in enumerate(rows):
        padded[row, : len(top)] = top
    top_ids, slots = score.held_out_excerpts(padded, np.array(random, dtype=np.int64))
    assert top_ids.dtype == slots.dtype == np.int32
    for row, top in enumerate(rows):
        ranks, own = plain_split(top, random, "test")
        assert top_ids[row][top_ids[row] >= 0].tolist() == [top[r] for r in ranks]
        assert slots[row][slots[row] >= 0].tolist() == own


@given(tops, randoms)
def test_what_scores_an_explanation_is_not_what_it_was_written_from(top, random):
    dealt = score.splits(np.array(top, dtype=np.int64), np.array(random, dtype=np.int64))
    shown = {top[r] for r in dealt["explanation"].top}
    pooled = [top[r] for r in dealt["test"].top] + [random[s] for s in dealt["test"].random]
    assert not shown & set(pooled)
    assert len(pooled) == len(set(pooled))


def test_splits_as_published():
    dealt = score.splits(np.arange(20), np.arange(100, 125))
    assert dealt["test"].top.tolist() == [3, 7, 11, 15, 19]
    assert dealt["test"].random.tolist() == [2, 5, 8, 11, 14]
    assert dealt["explanation"].top.tolist() == [0, 4, 8, 12, 16]


def test_a_perfect_simulation_scores_one_and_negative_activations_count_as_zero():
    true = [np.array([1.0, -3.0, 2.0]), np.array([0.0, -1.0, 4.0])]
    simulated = [np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 4.0])]
    scores = score.score(true, simulated, [True, False])
    assert scores.top_and_random == pytest.approx(1)
    assert scores.random_only == pytest.approx(1)
    assert scores.top_only == pytest.approx(1)
    assert (scores.excerpts_top, scores.excerpts_random) == (1, 1)


def test_excerpts_are_pooled_before_they_are_correlated():
    rng = np.random.default_rng(1)
    true = [rng.random(9) for _ in range(4)]
    simulated = [rng.random(9) for _ in range(4)]
    scores = score.score(true, simulated, [True, True, False, False])
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
    failed = score.score(true, [simulated[0], None, simulated[2]], top)
    without = score.score([true[0], true[2]], [simulated[0], simulated[2]], [True, False])
    assert dataclasses.astuple(failed) == pytest.approx(dataclasses.astuple(without))
    assert (failed.excerpts_top, failed.excerpts_random) == (1, 1)


def test_missing_tokens_are_left_out():
    true, simulated = [np.array([1.0, 2.0, 9.0, 4.0])], [np.array([1.0, 2.0, np.nan, 3.0])]
    expected = np.corrcoef([1, 2, 4], [1, 2, 3])[0, 1]
    assert score.score(true, simulated, [True]).top_only == pytest.approx(expected)


def test_without_variance_a_score_is_undefined():
    dead, varied = np.array([0.0, -1.0, -2.0]), np.array([1.0, 2.0, 3.0])
    for true, simulated in [(dead, varied), (varied, np.ones(3))]:
        scores = score.score([true, true], [simulated, simulated], [True, False])
        assert (scores.random_only, scores.top_and_random, scores.top_only) == (None,) * 3
        assert (scores.excerpts_top, scores.excerpts_random) == (1, 1)
    assert score.score([], [], []) == score.Scores(None, None, None, 0, 0)
