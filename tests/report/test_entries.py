"""Entries of lists as they are shown: in whole words, with one place where they stand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import planted
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.explainers.lookup import store_lookup
from fastexplain.records import NeuronId
from fastexplain.report.entries import SearchedCorpus, shown_entries, whole_words


@pytest.fixture
def explained(run):
    """The planted run, and what reads a neuron's explanation by lookup."""
    store_lookup(run)

    def explanation(index: int):
        with run.database(read_only=True) as database:
            return database.explanations(NeuronId(0, index))[0]

    return run, explanation


def letters(token: str) -> str:
    return token if token.isalpha() else ""


def test_an_entry_stands_where_the_neuron_is_strongest_on_it(explained) -> None:
    """The planted subject's tokens stand without spaces, so that its words are one long one."""
    run, explanation = explained
    [entry] = shown_entries(run, explanation(planted.CAT))
    record = run.neuron(f"0:{planted.CAT}")
    kind, number = entry.source.split()
    exemplar = getattr(record, kind)[int(number) - 1]
    places = np.flatnonzero(exemplar.token_ids == planted.WORDS.index("cat"))
    places = places[places >= record.skip]
    assert entry.own == "cat" and entry.activation == exemplar.activations[places].max()
    kept = [*record.top, *record.random]
    assert entry.activation == max(e.activations[record.skip :].max() for e in kept)
    place = places[exemplar.activations[places].argmax()]
    assert "".join(exemplar.tokens[:place]).endswith(entry.before)
    assert "".join(exemplar.tokens[place + 1 :]).startswith(entry.after)
    assert "'cat'" in entry.text and entry.count == explanation(planted.CAT).data[0]["count"]
    if previous := letters(exemplar.tokens[place - 1]):
        assert entry.text.split("·")[0].endswith(previous)
    if following := letters(exemplar.tokens[place + 1]):
        assert entry.text.split("·")[-1].startswith(following)


def test_digits_are_no_pieces_of_words(explained) -> None:
    run, explanation = explained
    shown = [entry.text for entry in shown_entries(run, explanation(planted.DIGIT))]
    assert sorted(shown) == [repr(digit) for digit in "012345"]
    row = explanation(planted.DIGIT)
    assert whole_words(run, [row]) == {row.id: row.text}


def test_a_pair_has_its_word_around_both(explained) -> None:
    run, explanation = explained
    row = explanation(planted.MOON_AFTER_BRIGHT)
    [entry] = shown_entries(run, row)
    token, previous = entry.text.split(" after ")
    assert token.startswith("'moon'") and previous.endswith("'bright'")
    assert entry.own == "brightmoon" and entry.source.startswith("top ")
    words = whole_words(run, [row])[row.id]
    assert words.startswith(entry.text) and words.endswith("; else 0")


def test_an_entry_that_no_exemplar_has_stands_elsewhere_in_the_corpus(explained) -> None:
    run, explanation = explained
    row, record = explanation(planted.CAT), run.neuron(f"0:{planted.CAT}")
    kept = {e.excerpt for e in [*record.top, *record.random]}

    def pairs(excerpt: int) -> set[tuple[int, ...]]:
        ids = run.excerpt(excerpt)[record.skip :].tolist()
        return set(itertools.pairwise(ids))

    known = set().union(*map(pairs, kept))
    excerpt = next(e for e in range(400) if pairs(e) - known)
    ids = list(min(pairs(excerpt) - known))
    entry = row.data[0] | {"ids": ids, "token": "b", "previous": "a"}
    absent = row.data[0] | {"ids": [planted.WORDS.index("bird")], "token": "bird"}
    changed = dataclasses.replace(row, data=[entry, absent])
    found, nowhere = shown_entries(run, changed)
    assert found.source == f"text {excerpt}" and found.activation is None
    assert found.own == "".join(planted.WORDS[token] for token in ids)
    assert (nowhere.text, nowhere.source, nowhere.own) == ("'bird'", "", "")


def test_a_list_of_an_earlier_version_has_its_text_alone(explained) -> None:
    run, explanation = explained
    old = [{"token": "cat", "previous": None, "mean": 1.0, "count": 3}]
    row = dataclasses.replace(explanation(planted.CAT), data=old)
    assert shown_entries(run, row) == [] and whole_words(run, [row]) == {}


_IDS = st.integers(0, 3)


@given(
    st.lists(st.lists(_IDS, min_size=6, max_size=6), min_size=1, max_size=5),
    st.lists(st.integers(0, 4), min_size=1, max_size=2),
    st.integers(0, 3),
)
def test_the_first_place_in_the_corpus_is_the_first_one(rows, wanted, skip) -> None:
    places = (
        (excerpt, last)
        for excerpt, row in enumerate(rows)
        for last in range(max(skip, len(wanted) - 1), 6)
        if row[last + 1 - len(wanted) : last + 1] == wanted
    )
    corpus = SearchedCorpus(np.array(rows, np.int32))
    assert corpus.first(wanted, skip) == next(places, None)
