"""Krippendorff's alpha, beside published values and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judging_people import graded, ranked

from fastexplain.rating.agreement import (
    agreement_on_grades,
    agreement_on_order,
    coincidences,
    ordinal_alpha,
)

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", part C: four observers, twelve
# units, values missing.
PUBLISHED = [
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
]


def counts_of(observers, values):
    """How many observers gave each unit each value; a dot is none."""
    columns = zip(*(line.split() for line in observers), strict=True)
    return np.array([[column.count(str(value)) for value in values] for column in columns], float)


def alpha(counts):
    return float(ordinal_alpha(coincidences(counts).sum(axis=0)))


def slow_alpha(units, values):
    """The definition, value by value and pair by pair."""
    units = [unit for unit in units if len(unit) > 1]
    pool = [value for unit in units for value in unit]
    number = {value: pool.count(value) for value in values}

    def difference(c, k):
        low, high = min(c, k), max(c, k)
        between = sum(number[value] for value in values if low <= value <= high)
        return 0 if c == k else (between - (number[c] + number[k]) / 2) ** 2

    observed = sum(
        difference(c, k) / (len(unit) - 1)
        for unit in units
        for i, c in enumerate(unit)
        for j, k in enumerate(unit)
        if i != j
    ) / len(pool)
    expected = sum(difference(c, k) for c in pool for k in pool) / (len(pool) * (len(pool) - 1))
    return 1 - observed / expected if expected else None


def test_the_published_example() -> None:
    assert alpha(counts_of(PUBLISHED, range(1, 6))) == pytest.approx(0.815, abs=5e-4)


def test_an_example_by_hand() -> None:
    """Units (1, 1), (1, 2), (2, 2): n_1 = n_2 = 3, d = 9 for 1 and 2, which meet twice of 6 times;
    D_o = 2 * 9 / 6 = 3, D_e = 2 * 3 * 3 * 9 / (6 * 5) = 5.4, alpha = 1 - 3 / 5.4."""
    assert alpha(np.array([[2, 0], [1, 1], [0, 2]], float)) == pytest.approx(1 - 3 / 5.4)


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=12))
def test_it_is_the_definition(units) -> None:
    counts = np.array([[unit.count(value) for value in range(1, 6)] for unit in units], float)
    expected = slow_alpha(units, range(1, 6)) if any(len(unit) > 1 for unit in units) else None
    found = alpha(counts)
    assert np.isnan(found) if expected is None else found == pytest.approx(expected)


@settings(max_examples=30)
@given(st.lists(st.permutations([1, 2, 3]), min_size=2, max_size=20), st.integers(2, 4))
def test_raters_who_agree_have_an_alpha_of_1(rankings, raters) -> None:
    ratings = [
        ranked(neuron, f"rater {rater}", ranks)
        for neuron, ranks in enumerate(rankings)
        for rater in range(raters)
    ]
    found = agreement_on_order(ratings)
    assert found.alpha.value == pytest.approx(1) and found.units == 3 * len(rankings)


def test_raters_who_judge_by_chance_have_one_near_0_whatever_the_tasks_sizes() -> None:
    rng = np.random.default_rng(0)
    ratings = [
        ranked(neuron, rater, (1 + rng.permutation(2 + neuron % 3)).tolist())
        for neuron in range(600)
        for rater in "xyz"
    ]
    found = agreement_on_order(ratings).alpha
    assert found.low < 0 < found.high and abs(found.value) < 0.05


def test_raters_who_are_of_opposite_minds_are_below_0() -> None:
    ratings = [ranked(n, *each) for n in range(5) for each in (("x", (1, 2)), ("y", (2, 1)))]
    found = agreement_on_order(ratings).alpha
    # In both directions 10 values of -1 and 10 of 1, all of which differ: 1 - 19 / 10.
    assert found.value == pytest.approx(-0.9)
    assert found.low is None  # of five neurons there is no interval


def test_grades_and_rankings_agree_on_order_and_grades_alone_on_grades() -> None:
    ratings = [graded(0, "x", (5, 1)), ranked(0, "y", (1, 2)), graded(1, "x", (2, 4)),
               graded(1, "z", (2, 5)), graded(2, "x", (3, 3))]  # fmt: skip
    order = agreement_on_order(ratings)
    assert (order.alpha.value, order.units, order.neurons) == (1, 2, 2)
    grades = agreement_on_grades(ratings)
    # Units (2, 2) and (4, 5): n_2 = 2, n_4 = n_5 = 1; d(2, 4) = 1.5, d(4, 5) = 1, d(2, 5) = 2.5.
    # D_o = 2 * 1 / 4; D_e = 2 * (2 * 1.5^2 + 1 + 2 * 2.5^2) / (4 * 3) = 3.
    assert grades.alpha.value == pytest.approx(1 - 0.5 / 3)
    assert grades.alpha.value == pytest.approx(slow_alpha([[2, 2], [4, 5]], range(1, 6)))
    assert (grades.units, grades.neurons) == (2, 1)


def test_one_rater_alone_agrees_with_nobody() -> None:
    for found in (agreement_on_order, agreement_on_grades):
        assert found([graded(0, "x", (5, 1))]).alpha.value is None
        assert found([]).units == 0


@settings(max_examples=30)
@given(st.data())
def test_names_of_raters_and_the_order_of_ratings_mean_nothing(data) -> None:
    ranks = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=6))
    ratings = [ranked(n // 2, f"r{n % 2}", pair) for n, pair in enumerate(ranks)]
    mixed = [ratings[place] for place in data.draw(st.permutations(range(len(ratings))))]
    first, second = (agreement_on_order(each).alpha.value for each in (ratings, mixed))
    assert first == (second if second is None else pytest.approx(second))


@pytest.mark.scale
def test_the_interval_covers_the_truth() -> None:
    """Raters who see the truth, 1 or 2, and err in a fifth of cases; alpha is that of many."""
    rng = np.random.default_rng(1)

    def drawn(neurons):
        return [
            ranked(n, rater, (1, 2) if (rng.random() < 0.8) ^ (n % 2) else (2, 1))
            for n in range(neurons)
            for rater in "xyz"
        ]

    truth = agreement_on_order(drawn(20_000)).alpha.value
    found = [agreement_on_order(drawn(40)).alpha for _ in range(400)]
    covered = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.92 <= covered <= 0.98, covered
