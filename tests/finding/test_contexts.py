"""Marks of contexts: as their definitions say, token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.finding.contexts import breaks, repeats, seen_before

EXCERPTS = st.lists(
    st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=1, max_size=4
).map(np.array)


def followers(row: list[int], place: int, length: int) -> list[int]:
    """What followed the last `length` tokens before a place, each earlier time."""
    before = row[place - length : place] if place >= length else None
    return [
        row[j] for j in range(length, place) if before is not None and row[j - length : j] == before
    ]


def is_seen(row: list[int], place: int) -> bool:
    return row[place] in row[:place]


def is_repeat(row: list[int], place: int) -> bool:
    return followers(row, place, 2)[-1:] == [row[place]]


def is_break(row: list[int], place: int) -> bool:
    after_two, after_one = followers(row, place, 2), followers(row, place, 1)
    if after_two and after_two[-1] != row[place]:
        return True
    return len(after_one) > 1 and after_one[-1] == after_one[-2] != row[place]


@pytest.mark.parametrize(
    "mark, by_definition", [(seen_before, is_seen), (repeats, is_repeat), (breaks, is_break)]
)
@given(tokens=EXCERPTS)
@settings(max_examples=60)
def test_marks_are_what_their_definitions_say(mark, by_definition, tokens: np.ndarray) -> None:
    expected = [[by_definition(row, place) for place in range(len(row))] for row in tokens.tolist()]
    np.testing.assert_array_equal(mark(tokens), expected)


def test_a_series_that_is_left_out_of_is_broken_there() -> None:
    series = np.array([[1, 9, 2, 9, 3, 9, 4, 8, 5, 9]])  # 9 after every number but 4
    assert np.flatnonzero(breaks(series)[0]).tolist() == []
    series = np.array([[7, 1, 9, 7, 1, 9, 7, 1, 8]])
    assert np.flatnonzero(breaks(series)[0]).tolist() == [8]
    assert np.flatnonzero(repeats(series)[0]).tolist() == [5, 6, 7]


def test_excerpts_are_compared_in_blocks_that_change_nothing() -> None:
    tokens = np.random.default_rng(0).integers(0, 5, (600, 16))
    np.testing.assert_array_equal(breaks(tokens)[599:], breaks(tokens[599:]))
