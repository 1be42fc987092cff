"""Numbers of things in words."""

import pytest

from fastexplain.counting import counted


@pytest.mark.parametrize(
    "count, words",
    [(0, "0 neurons"), (1, "1 neuron"), (2, "2 neurons"), (46_080, "46,080 neurons")],
)
def test_one_thing_is_in_the_singular(count: int, words: str) -> None:
    assert counted(count, "neuron") == words
