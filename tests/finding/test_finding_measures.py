"""What the searches measure, against definitions and on neurons made by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.finding.beyond_lookup import beyond
from fastexplain.finding.marked import shares
from fastexplain.finding.positions import by_position
from fastexplain.finding.rates import Rates
from fastexplain.finding.single_tokens import by_form, form
from fastexplain.finding.wordings import misspelt
from fastexplain.finding.writing import fires_and_writes


@given(seed=st.integers(0, 100), inside=st.booleans())
def test_expected_rates_leave_the_excerpt_out(seed: int, inside: bool) -> None:
    rng = np.random.default_rng(seed)
    tokens, marks = rng.integers(0, 4, (5, 8)), rng.random((5, 8)) < 0.4
    skip = 1
    ids = np.array([2 if inside else 5])
    row, own = (tokens[2], marks[2]) if inside else (rng.integers(0, 6, 8), rng.random(8) < 0.5)
    found = Rates(tokens, marks, skip).expected(ids, row[None], own[None])[0]
    others = [e for e in range(5) if not (inside and e == 2)]
    rate = marks[:, skip:].mean()
    for place in range(skip, 8):
        back_off = rate
        for length in (1, 2):
            key = row[place - length + 1 : place + 1].tolist()
            same = [
                marks[e, j]
                for e in others
                for j in range(skip, 8)
                if tokens[e, j - length + 1 : j + 1].tolist() == key
            ]
            back_off = (sum(same) + 2 * back_off) / (len(same) + 2)
        expected = back_off + marks[:, place].mean() - rate
        assert found[place] == pytest.approx(np.clip(expected, 0, 1))


def test_shares_are_means_over_exemplars_and_count_from_zero() -> None:
    acts = np.zeros((4, 5, 4), np.float32)
    acts[:, :, 0] = 100  # not counted
    acts[0, :, 2] = 3  # all on the marked token
    acts[0, :, 3] = -50
    acts[1, :, 2], acts[1, :, 3] = 1, 1  # half
    acts[2, :4, 2] = 3  # all, of four exemplars only
    acts[3, 0, 2], acts[3, 1:, 3] = 100, 1  # one strong exemplar of five
    marks = np.array([[False, False, True, False]])
    expected = np.array([[0.0, 0.0, 0.1, 0.5]])
    found = shares(acts, np.zeros((4, 5), int), marks, expected, skip=1)
    np.testing.assert_allclose(found.details["share"], [1, 0.5, 1, 0.2])
    np.testing.assert_allclose(found.details["expected"], [0.1, 0.3, 0.1, 0.42], rtol=1e-6)
    np.testing.assert_allclose(found.values, [0.9, np.nan, np.nan, np.nan], rtol=1e-6)


def test_what_a_token_brings_with_it_is_not_found() -> None:
    """A comma's neuron fires on what was seen before: as commas are."""
    acts = np.zeros((1, 5, 4), np.float32)
    acts[0, :, 2] = 1
    marks, expected = np.array([[False, False, True, True]]), np.array([[0.0, 0.0, 0.9, 0.9]])
    assert np.isnan(shares(acts, np.zeros((1, 5), int), marks, expected, skip=1).values[0])


def test_positions_are_found_and_chance_is_not() -> None:
    rng = np.random.default_rng(0)
    acts = np.maximum(rng.standard_normal((25, 64, 60)), 0).astype(np.float32)
    acts[:, 20, 0] += 8
    acts[3, 9, 1] = 1000  # one outlier is no position
    acts[:, :, 2] = 1
    acts[:, 0] = 50  # not counted
    found = by_position(acts, skip=1)
    assert np.flatnonzero(~np.isnan(found.values)).tolist() == [0]
    assert found.details["position"][0] == 20


def test_a_single_token_is_told_by_the_correlation_with_it() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 6, 3000)
    acts = np.maximum(rng.normal(0.1, 0.3, (3000, 3)), 0)
    acts[:, 1] += 3 * (tokens == 4)
    acts[7, 2] = 500  # one occurrence of many
    forms = np.array([0, 1, 2, 3, 2, 4])  # tokens 2 and 4 are forms of one
    sums = np.stack([acts[forms[tokens] == f].sum(axis=0) for f in range(5)]).astype(np.float32)
    counts = np.bincount(forms[tokens], minlength=5)
    best, told = by_form(sums, counts, acts.mean(axis=0), acts.var(axis=0), 3000)
    expected = [
        max(np.corrcoef(acts[:, n], forms[tokens] == f)[0, 1] for f in range(5)) for n in range(3)
    ]
    np.testing.assert_allclose(told, expected, rtol=1e-3, atol=1e-4)
    assert best[1] == 2 and told[2] < 0.1
    rare = by_form(sums, np.array([4, 4, 4, 4, 4]), acts.mean(axis=0), acts.var(axis=0), 3000)
    assert (rare[1] == 0).all()


def test_forms_of_a_token_and_parts_of_characters() -> None:
    assert form(" Not", 1) == form("not", 2) == "not"
    assert form("  ", 3) == "  " and form("\ufffd", 4) != form("\ufffd", 5)


def test_beyond_lookup_needs_a_failure_and_a_success() -> None:
    lookup = np.array([0.1, 0.5, 0.1, np.nan, 0.2])
    others = np.array([[0.7, 0.9, 0.4, 0.9, np.nan], [0.1, np.nan, np.nan, np.nan, np.nan]])
    found = beyond(lookup, others)
    np.testing.assert_allclose(found.values, [0.6, np.nan, np.nan, np.nan, np.nan])


def test_misspelt_words_are_rare_neighbours_of_frequent_ones() -> None:
    words = Counter({
        "receive": 40, "recieve": 2, "occurred": 30, "occured": 1, "until": 99, "untill": 3,
        "latter": 100, "later": 90, "letter": 1, "form": 500, "from": 10, "planed": 1, "planned": 9,
    })  # fmt: skip
    assert misspelt(words) == {"recieve", "occured", "untill"}


def test_firing_for_one_form_and_writing_another() -> None:
    fires = np.array([[1] * 5, [1] * 5, [1, 1, 2, 2, 0], [0] * 5, [3, 3, 3, 3, 1]])
    used = np.ones((5, 5), bool)
    used[3] = False
    writes = np.array([[2, 1], [1, 2], [3, 0], [2, 1], [2, 0]])
    names = np.array(["zero", "one", "two", "three"])
    deviations = np.array([7.0, 9.0, 9.0, 9.0, 6.5])
    found = fires_and_writes(fires, used, writes, deviations, names)
    np.testing.assert_allclose(found.values, [7, np.nan, np.nan, np.nan, 6.5])
    assert found.details["fires for"][4] == "three" and found.details["share"][4] == 0.8
    assert found.details["writes"][0] == "'two' 'one'"
