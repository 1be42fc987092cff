import asyncio

import numpy as np
import pytest

from fastexplain.llm import Connection
from fastexplain.simulate import expectation, simulate


class Reads(Connection):
    """A connection that returns given log-probabilities and keeps what it was asked."""

    model, concurrency = "reads", 1

    def __init__(self, log_probabilities):
        self.log_probabilities = np.array(log_probabilities)

    async def generate(self, messages, **options):
        raise NotImplementedError

    async def largest_integer(self):
        return self.log_probabilities.shape[1] - 1

    async def integer_log_probabilities(self, text, places, *, shared=0):
        self.asked = text, places, shared
        return self.log_probabilities


def test_a_value_is_the_expectation_over_renormalised_integers():
    probabilities = np.array([[0.1, 0.1, 0, 0, 0, 0, 0, 0, 0, 0, 0.2], [1e-9] * 11])
    with np.errstate(divide="ignore"):
        values = expectation(np.log(probabilities))
    assert values == pytest.approx([(0.1 * 1 + 0.2 * 10) / 0.4, 5.0])


def test_probabilities_too_small_for_a_float_still_count():
    assert expectation(np.array([[-2000.0, -np.inf, -2000.0]])) == pytest.approx([1.0])


def test_a_token_without_any_integer_is_missing_and_not_zero():
    values = expectation(np.array([[np.nan] * 10, [0.0] + [-np.inf] * 9]))
    assert np.isnan(values[0])
    assert values[1] == 0


@pytest.mark.parametrize("largest", [9, 10])
def test_an_excerpt_is_one_request_on_the_models_scale(largest):
    connection = Reads(np.zeros((3, largest + 1)))
    values = asyncio.run(simulate("rivers", ["the", " Rhine", "\n"], connection))
    assert values.tolist() == [largest / 2] * 3
    text, places, shared = connection.asked
    assert text[shared:].startswith(" rivers\n<start>\nthe\tunknown\n Rhine\tunknown\n\\n\tunknown")
    assert len(places) == 3
    assert ("10 is as strongly" in text) == (largest == 10)
