"""Lists that somebody typed."""

from __future__ import annotations

import numpy as np
import planted
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain import Run
from fastexplain.errors import UsageError
from fastexplain.explainers.lists import simulate_list, text_of
from fastexplain.explainers.lookup import explain_by_lookup
from fastexplain.explainers.typed import MOST_ENTRIES, read_list


def test_texts_of_lists_are_read_as_they_were_written(planted_run: Run) -> None:
    read = 0
    for [*rows] in explain_by_lookup(planted_run):
        for row in rows:
            if row.data:
                typed = read_list(planted_run, row.text)
                assert text_of(typed.entries, typed.default) == row.text
                assert [each["ids"] for each in typed.entries] == [e["ids"] for e in row.data]
                read += 1
    assert read > 3


def test_a_pair_goes_before_its_token(planted_run: Run) -> None:
    typed = read_list(planted_run, "\"moon\" after 'bright' 3, 'moon' .5; else -1e-1")
    ids = [planted.WORDS.index(word) for word in ("moon", "bright", "moon", "cat")]
    found = simulate_list(typed.entries, typed.default, planted_run.excerpt(0)[:0])
    assert found.size == 0
    assert simulate_list(typed.entries, typed.default, np.array(ids)).tolist() == pytest.approx(
        [0.5, -0.1, 3, -0.1]
    )


_IDS = st.integers(0, 3)
_ENTRIES = st.lists(
    st.fixed_dictionaries(
        {"ids": st.lists(_IDS, min_size=1, max_size=2), "mean": st.integers(1, 99)}
    ),
    max_size=6,
)


@given(_ENTRIES, st.lists(st.lists(_IDS, min_size=5, max_size=5), max_size=4))
def test_a_list_says_of_each_token_what_its_last_entry_of_most_tokens_says(entries, rows) -> None:
    token_ids = np.array(rows, np.int32).reshape(-1, 5)
    means = {tuple(entry["ids"]): entry["mean"] for entry in entries}
    expected = [
        [
            means.get((row[place - 1], token) if place else (), means.get((token,), 0.5))
            for place, token in enumerate(row)
        ]
        for row in rows
    ]
    found = simulate_list(entries, 0.5, token_ids)
    assert found.dtype == np.float32 and found.tolist() == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "an entry is expected at the end"),
        ("cats", "an entry is expected at 'cats'; write a list such as"),
        ("'cat'", "an entry is expected"),
        ("'cat' 1,", "an entry is expected at the end"),
        ("'cat' 1 'moon' 2", "a comma, or `; else`, is expected at \"'moon' 2\""),
        ("'cat' 1; 2", "`else` and a number are expected at '2'"),
        ("'cat' 1; else 2 3", "is expected at '3'"),
        ("'zebra' 1", "'zebra' is no token of the subject"),
        ("' cat' 1", "' cat' is no token of the subject; there is 'cat'"),
        ("'' 1", "is no token"),
        (r"'\x' 1", "has an escape that means nothing"),
        (r"'\ud800' 1", "is no token"),
        (", ".join(["'cat' 1"] * (MOST_ENTRIES + 1)), "more than 200 entries"),
    ],
    ids=range(13),
)
def test_what_is_no_list_is_said_to_be_none(planted_run: Run, text: str, line: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_list(planted_run, text)
    assert line in str(raised.value) and "\n" not in str(raised.value)


@given(st.text("'\"\\ca t1,;elsfr.\n", max_size=40))
def test_any_text_is_a_list_or_a_usage_error(planted_run: Run, text: str) -> None:
    try:
        typed = read_list(planted_run, text)
    except UsageError:
        return
    assert read_list(planted_run, text_of(typed.entries, typed.default)).entries
