import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.records import NeuronId
from fastexplain.report.neuron import full_of
from fastexplain.results import StoredExplanation
from fastexplain.simulators.readouts import contrast, expected

ROWS = st.lists(
    st.lists(st.floats(-30, 0, width=32), min_size=10, max_size=10), min_size=1, max_size=5
)


def test_a_value_is_the_expectation_over_renormalised_integers():
    probabilities = np.array([[0.1, 0.1, 0, 0, 0, 0, 0, 0, 0, 0, 0.2], [1e-9] * 11])
    with np.errstate(divide="ignore"):
        values = expected(np.log(probabilities))
    assert values == pytest.approx([(0.1 * 1 + 0.2 * 10) / 0.4, 5.0])


def test_probabilities_too_small_for_a_float_still_count():
    assert expected(np.array([[-2000.0, -np.inf, -2000.0]])) == pytest.approx([1.0])


def test_a_token_without_any_integer_is_missing_and_not_zero():
    values = expected(np.array([[np.nan] * 10, [0.0] + [-np.inf] * 9]))
    assert np.isnan(values[0])
    assert values[1] == 0


@given(ROWS)
def test_no_explanation_raises_nothing(rows):
    assert contrast(np.array(rows), np.array(rows)).tolist() == [0] * len(rows)


@given(ROWS, st.floats(-5, 5))
def test_a_rows_constant_does_not_matter(rows, constant):
    rows = np.array(rows)
    null = np.log(np.linspace(1, 0.1, 10))[None].repeat(len(rows), axis=0)
    moved = contrast(rows + constant, null - constant)
    np.testing.assert_allclose(moved, contrast(rows, null), atol=1e-9)


def test_a_contrast_is_how_much_the_explanation_raises_a_value():
    null = np.log([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2]])
    rows = np.log([[0.2, 0.8], [0.6, 0.4], [0.9, 0.1]])
    assert contrast(rows, null) == pytest.approx([np.log(4), np.log(2), 0])


def test_a_contrast_with_several_is_with_their_mean():
    rows = np.log([[0.2, 0.8], [0.9, 0.1]])
    nulls = [np.log([[0.9, 0.1], [0.8, 0.2]]), np.log([[0.7, 0.3], [0.6, 0.4]])]
    assert contrast(rows, *nulls) == pytest.approx([np.log(0.8 / 0.2), 0])
    assert contrast(rows, nulls[0], nulls[0]) == pytest.approx(contrast(rows, nulls[0]))


def test_what_a_server_does_not_list_raises_little():
    """The second is next to nothing too; only the first server did not list it."""
    none, little, much = [0.0, -np.inf], np.log([0.999, 0.001]), np.log([0.5, 0.5])
    values = contrast(np.array([little, much]), np.array([none, none]))
    assert values == pytest.approx([0, np.log(50)])


def test_a_contrast_is_missing_where_either_reading_is():
    row, missing = [0.0, -1.0], [np.nan, np.nan]
    values = contrast(np.array([row, missing, row]), np.array([row, row, missing]))
    assert np.isnan(values).tolist() == [False, True, True]


@pytest.mark.parametrize("readout", ["expected", "contrast", "contrast-others"])
@pytest.mark.parametrize("more", ["", " with-unknown", " mixed-examples"])
def test_a_contrast_is_shown_on_the_scale_of_its_own_values(readout, more) -> None:
    row = StoredExplanation(
        NeuronId(0, 0), "model", "m", "1", "words", simulator="m",
        simulation=f"all-at-once-1 prompt-logprobs {readout}{more}",
    )  # fmt: skip
    excerpts = {1: np.array([np.nan, 0.4, 0.0]), 2: np.array([0.1, 1.25, 0.0])}
    assert full_of(row, excerpts, 80.0) == (10 if readout == "expected" else 1.25)
    nothing = {1: np.full(3, np.nan)}
    assert full_of(row, nothing, 80.0) == 10  # never a scale without a length
    assert full_of(dataclasses.replace(row, method="lookup"), excerpts, 80.0) == 80
