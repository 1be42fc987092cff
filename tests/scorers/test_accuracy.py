"""Accuracies of judges and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.scorers.accuracy import MEASURES, of_yes_and_no, wilson
from fastexplain.scorers.judging import Judged

PREDICTIONS = st.sampled_from([True, False, None])
ANSWERS = st.lists(st.tuples(st.booleans(), PREDICTIONS, st.integers(1, 5)), max_size=30)


def judged(answers):
    return [
        Judged(i, right, quantile if right else -1, said)
        for i, (right, said, quantile) in enumerate(answers)
    ]


def rows(answers, lacks=None):
    return {(m.split, m.measure): m for m in of_yes_and_no(judged(answers), lacks)}


@pytest.mark.parametrize(
    "right, count, low, high",
    # As R's prop.test(correct = FALSE) and Wilson's formula by hand give them.
    [(8, 10, 0.4901625, 0.9433178), (0, 5, 0.0, 0.4344825), (5, 5, 0.5655175, 1.0)],
)
def test_wilsons_interval(right, count, low, high):
    assert wilson(right, count) == pytest.approx((low, high), abs=1e-6)


@given(ANSWERS)
def test_measures_are_their_definitions_over_what_was_answered(answers):
    found = rows(answers)
    right = np.array([r for r, said, _ in answers if said is not None], dtype=bool)
    said = np.array([said for _, said, _ in answers if said is not None], dtype=bool)
    tp, fp, fn, tn = (
        int(np.sum(a & b))
        for a, b in ((right, said), (~right, said), (right, ~said), (~right, ~said))
    )

    def share(over, of):
        return over / of if of else None

    recall, specificity = share(tp, tp + fn), share(tn, tn + fp)
    both = recall is not None and specificity is not None
    expected = {
        "accuracy": share(tp + tn, len(said)),
        "precision": share(tp, tp + fp),
        "recall": recall,
        "specificity": specificity,
        "balanced_accuracy": (recall + specificity) / 2 if both else None,
        "f1": share(2 * tp, 2 * tp + fp + fn),
    }
    assert set(expected) == set(MEASURES)
    for measure, value in expected.items():
        row = found["held_out", measure]
        assert row.value == (None if value is None else pytest.approx(value))
        assert (row.reason is None) == (value is not None)
        if value is not None:
            assert 0 <= row.low <= row.value + 1e-12 and row.value - 1e-12 <= row.high <= 1
    for quantile in range(1, 6):
        of = [said for r, said, q in answers if r and q == quantile and said is not None]
        row = found[f"quantile_{quantile}", "recall"]
        assert row.value == share(sum(of), len(of)) and row.excerpts == len(of)


def test_what_answers_lack_is_every_defined_rows_reason():
    found = rows([(True, True, 1), (False, False, 1), (True, None, 2)], "1 of 2 failed")
    assert found["held_out", "balanced_accuracy"].reason == "1 of 2 failed"
    assert found["held_out", "balanced_accuracy"].excerpts == 2
    assert found["quantile_2", "recall"].reason == "no answer is about a right one"


@pytest.mark.parametrize("recall, specificity", [(0.5, 0.5), (0.9, 0.6), (0.8, 0.95)])
def test_intervals_cover_the_truth(recall, specificity):
    """Of 15 right and 15 wrong excerpts, as detection has them."""
    rng = np.random.default_rng(0)
    truth = {
        "balanced_accuracy": (recall + specificity) / 2,
        "recall": recall,
        # With as many right as wrong ones.
        "f1": 2 * recall / (2 * recall + (1 - specificity) + (1 - recall)),
    }
    covered = dict.fromkeys(truth, 0)
    for _ in range(1000):
        yes = rng.random(15) < recall, rng.random(15) < 1 - specificity
        found = rows(
            [(True, bool(said), 1) for said in yes[0]] + [(False, bool(said), 1) for said in yes[1]]
        )
        for measure, value in truth.items():
            row = found["held_out", measure]
            covered[measure] += row.low <= value <= row.high
    assert all(900 <= count <= 990 for count in covered.values()), covered
