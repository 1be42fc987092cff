"""Bradley and Terry's strengths: the likelihood's maximum, recovered preferences, intervals."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judging_people import graded, ranked, ranking_by
from scipy.optimize import minimize

from fastexplain.rating.pairs import pairs
from fastexplain.rating.strengths import groups, log_strengths, strengths

TRUTH = np.array([1.0, 0.3, -0.2, -1.1])
NAMES = "abcd"


def drawn(rng, neurons, truth=TRUTH):
    return pairs([ranked(n, "x", ranking_by(rng, truth)) for n in range(neurons)])


def slow_strengths(wins, ties):
    """The maximum of the likelihood, with a tie more for each two that were compared."""
    won = wins + ties / 2 + (wins + wins.T + ties > 0) / 2

    def surprise(found):
        return (won * np.log1p(np.exp(found[None] - found[:, None]))).sum()

    found = minimize(surprise, np.zeros(len(wins)), tol=1e-10).x
    return found - found.mean()


@settings(max_examples=30)
@given(st.data())
def test_they_are_the_maximum_of_the_likelihood(data) -> None:
    size = data.draw(st.integers(2, 4))
    rows = data.draw(
        st.lists(st.lists(st.integers(0, 9), min_size=size, max_size=size), min_size=size,
                 max_size=size)
    )  # fmt: skip
    wins = np.array(rows, float)
    np.fill_diagonal(wins, 0)
    wins[0, 1:] += 1  # all are compared with the first
    ties = np.triu(np.array(rows, float) % 3, 1)
    ties += ties.T
    found = log_strengths(wins, ties, np.zeros(size, int))
    np.testing.assert_allclose(found, slow_strengths(wins, ties), atol=1e-4)


def test_two_explainers_by_hand() -> None:
    """14 preferences to 6 and 4 ties, and one tie more: odds of 16.5 to 8.5."""
    ratings = [ranked(n, "x", (1, 2) if n < 14 else (2, 1)) for n in range(20)]
    ratings += [ranked(n, "x", (1, 1)) for n in range(20, 24)]
    first, second = strengths(pairs(ratings))
    assert first.explainer == ("model", "a", "1")
    assert first.strength.value - second.strength.value == pytest.approx(np.log(16.5 / 8.5))
    assert first.strength.value == pytest.approx(-second.strength.value)
    assert (first.wins, first.ties, first.losses, first.neurons) == (14, 4, 6, 24)
    assert first.preferred == pytest.approx(16 / 24)
    assert first.strength.low < first.strength.value < first.strength.high


def test_known_preferences_are_recovered() -> None:
    found = strengths(drawn(np.random.default_rng(0), 2000))
    assert [row.explainer[1] for row in found] == list(NAMES)
    np.testing.assert_allclose([row.strength.value for row in found], TRUTH, atol=0.15)


def test_one_that_is_always_preferred_has_a_finite_strength() -> None:
    first, second = strengths(pairs([ranked(n, "x", (1, 2)) for n in range(20)]))
    assert first.strength.value - second.strength.value == pytest.approx(np.log(20.5 / 0.5))
    assert first.preferred == 1 and np.isfinite(first.strength.high)


def test_explainers_that_were_never_compared_are_in_groups_of_their_own() -> None:
    ratings = [
        ranked(0, "x", (1, 2), "ab"),
        ranked(1, "x", (1, 2), "cd"),
        ranked(2, "x", (2, 1), "eb"),
    ]
    found = strengths(pairs(ratings))
    names = defaultdict(list)
    for row in found:
        names[row.group].append(row.explainer[1])
    assert list(names.values()) == [["a", "b", "e"], ["c", "d"]] and list(names) == [0, 1]
    for group in names:
        own = [row.strength.value for row in found if row.group == group]
        assert sum(own) == pytest.approx(0) and own == sorted(own, reverse=True)
    assert all(row.strength.low is None for row in found)  # of too few neurons


def test_groups_are_linked_through_others() -> None:
    compared = np.zeros((5, 5))
    for i, j in ((0, 4), (4, 2), (1, 3)):
        compared[i, j] = compared[j, i] = 1
    assert groups(compared).tolist() == [0, 1, 0, 1, 0]


def test_explainers_that_say_the_same_are_both_compared_with_others() -> None:
    rating = ranked(0, "x", (1, 2), "ab")
    first, second = rating.shown
    twin = first._replace(sources=(*first.sources, first.sources[0]._replace(model="z")))
    found = strengths(pairs([type(rating)(**{**vars(rating), "shown": (twin, second)})]))
    assert {(row.explainer[1], row.wins, row.losses) for row in found} == {
        ("a", 1, 0), ("z", 1, 0), ("b", 0, 2),
    }  # fmt: skip


def test_nobody_compared_nothing() -> None:
    assert strengths([]) == []


@settings(max_examples=8)
@given(st.lists(st.permutations([1, 2, 3]), min_size=1, max_size=8), st.randoms())
def test_order_and_whether_grades_or_ranks_were_given_mean_nothing(rankings, random) -> None:
    ratings = [ranked(n, "x", ranks) for n, ranks in enumerate(rankings)]
    others = [graded(n, "x", [5 - rank for rank in ranks]) for n, ranks in enumerate(rankings)]
    random.shuffle(others)
    for row, other in zip(strengths(pairs(ratings)), strengths(pairs(others)), strict=True):
        assert row.strength.value == pytest.approx(other.strength.value, abs=1e-6)


@pytest.mark.scale
@pytest.mark.parametrize("neurons, truth", [(20, (0.5, -0.5)), (40, TRUTH), (40, (2.0, 0, -2.0))])
def test_the_interval_covers_the_truth(neurons, truth) -> None:
    truth = np.array(truth) - np.mean(truth)
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(200):
        found = {row.explainer[1]: row.strength for row in strengths(drawn(rng, neurons, truth))}
        covered += [found[n].low <= t <= found[n].high for n, t in zip(NAMES, truth, strict=False)]
    assert 0.90 <= np.mean(covered) <= 0.99, np.mean(covered)
