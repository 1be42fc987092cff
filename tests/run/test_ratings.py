"""Ratings in the database: stored, changed, undone, and never lost."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.errors import RunError, UsageError
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow
from fastexplain.run.checking import damages
from fastexplain.run.database import Database
from fastexplain.run.ratings import (
    GRADES,
    RANKING,
    SKIPPED,
    Judgement,
    Rating,
    Ratings,
    ShownText,
    Source,
    rater_name,
)

NEURON, OTHER = NeuronId(5, 131), NeuronId(5, 132)
SHOWN = (
    ShownText("rivers", (Source(7, "model", "gpt-x", "v1"), Source(9, "revised", "gpt-x", "v2"))),
    ShownText("'river' 2.1; else 0", (Source(3, "lookup", "lookup", "lookup-3"),)),
)
EXCERPTS = {"top": [4, 2], "random": [9]}


def rating(neuron=NEURON, rater="Ada", judgement=Judgement(RANKING, (2, 1))):  # noqa: B008
    return Rating(neuron, rater, judgement, SHOWN, EXCERPTS, 0)


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "run.sqlite") as opened:
        yield opened


@pytest.fixture
def ratings(database):
    return Ratings(database)


def test_a_rating_comes_back_as_it_was_stored(ratings) -> None:
    stored = ratings.add(rating())
    assert replace(stored, id=0, created="") == rating()
    assert stored.id == 1 and stored.created.endswith("+00:00")
    assert ratings.all() == [stored] == [ratings.current("Ada", NEURON)]
    assert ratings.current("Bob", NEURON) is None and ratings.current("Ada", OTHER) is None
    assert ratings.rated("Ada") == {("5", 131)} and ratings.rated("Bob") == set()


def test_a_changed_judgement_counts_and_the_former_is_kept(ratings) -> None:
    first = ratings.add(rating())
    second = ratings.add(rating(judgement=Judgement(GRADES, (5, 1))))
    assert second.replaces == first.id and ratings.current("Ada", NEURON) == second
    assert [(r.id, r.withdrawn) for r in ratings.all()] == [(1, second.created), (2, None)]


def test_undo_goes_back_step_by_step(ratings) -> None:
    first = ratings.add(rating())
    other = ratings.add(rating(OTHER, judgement=Judgement(SKIPPED)))
    bob = ratings.add(rating(rater="Bob"))
    changed = ratings.add(rating(judgement=Judgement(RANKING, (1, 1))))
    assert ratings.undo("Ada") == changed
    assert ratings.current("Ada", NEURON) == first  # as before it was changed
    assert ratings.undo("Ada") == other and ratings.undo("Ada") == first
    assert ratings.undo("Ada") is None and ratings.rated("Ada") == set()
    assert len(ratings.all()) == 4 and ratings.current("Bob", NEURON) == bob


def test_earlier_ratings_of_a_rater_are_found_one_after_another(ratings) -> None:
    first, second = ratings.add(rating()), ratings.add(rating(OTHER))
    ratings.add(rating(rater="Bob"))
    assert ratings.before("Ada") == second and ratings.before("Ada", second.id) == first
    assert ratings.before("Ada", first.id) is None


def test_ratings_outlive_what_they_judge(database, ratings) -> None:
    def said(text):
        return ExplanationRow(NEURON, "model", "gpt-x", "v1", text)

    [id_] = database.add_explanations([said("rivers")])
    shown = (ShownText("rivers", (Source(id_, "model", "gpt-x", "v1"),)), SHOWN[1])
    stored = ratings.add(replace(rating(), shown=shown))
    database.add_explanations([said("lakes")])
    assert [row.text for row in database.explanations(NEURON)] == ["lakes"]
    assert ratings.all() == [stored] and stored.shown == shown


def test_only_neurons_with_texts_that_differ_can_be_rated(database, ratings) -> None:
    rows = [
        *[("0", 0, "a"), ("0", 0, "b"), ("0", 1, "a"), ("0", 1, "a"), ("0", 2, None)],
        *[("0", 2, "a"), ("1.e3", 4, "a"), ("1.e3", 4, "b"), ("1.e3", 4, "c")],
    ]
    database.add_explanations(
        [
            ExplanationRow(NeuronId.of(site, unit), "model", f"m{n}", "v", text)
            for n, (site, unit, text) in enumerate(rows)
        ]
    )
    assert ratings.candidates() == [(NeuronId(0, 0), 2), (NeuronId(1, 4, "e3"), 3)]


def test_a_rater_has_one_judgement_of_a_neuron_that_counts(database, ratings) -> None:
    ratings.add(rating())
    with pytest.raises(RunError, match="UNIQUE"), database.transaction() as sqlite:
        sqlite.execute(
            """INSERT INTO ratings SELECT NULL, site, unit, rater, kind, judgement, shown, excerpts,
            seed, created, NULL, NULL, NULL FROM ratings"""
        )


@pytest.mark.parametrize(
    "change",
    ["judgement = '[1, 2]'", "shown = replace(shown, 'rivers', 'lakes')", "rater = 'Bob'",
     "withdrawn = created", "replaces = 1", "created = ''"],
)  # fmt: skip
def test_a_changed_row_is_found_and_not_given_a_new_hash(run, change) -> None:
    with run.database() as database:
        Ratings(database).add(rating())
        Ratings(database).add(rating(OTHER))
    assert damages(run) == []
    with sqlite3.connect(run.path / "run.sqlite") as sqlite:
        sqlite.execute(f"UPDATE ratings SET {change} WHERE id = 2")
    with run.database() as database:
        with pytest.raises(RunError, match="a row of its ratings is not what was stored"):
            Ratings(database).all()
        if change not in ("withdrawn = created", "rater = 'Bob'"):
            with pytest.raises(RunError, match="not what was stored"):
                Ratings(database).undo("Ada")
    [line] = damages(run)
    assert "1 rows of its ratings are not what was stored" in line


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[2J", "x" * 65, "\udc80", "\u202eb"])
def test_what_is_no_name_is_refused(name) -> None:
    with pytest.raises(UsageError, match="no name of a rater"):
        rater_name(name)


def test_a_name_may_be_in_any_script() -> None:
    assert rater_name("  Žofie Å ") == "Žofie Å"


@pytest.mark.parametrize(
    "judgement, said",
    [
        (Judgement(RANKING, (1,)), "with 2 whole numbers"),
        (Judgement(RANKING, (1, 3)), "3 is no rank; give 1 to 2"),
        (Judgement(RANKING, (0, 1)), "0 is no rank"),
        (Judgement(GRADES, (6, 1)), "6 is no grade; give 1 to 5"),
        (Judgement(GRADES, (True, 1)), "whole numbers"),
        (Judgement(GRADES, (1.5, 1)), "whole numbers"),
        (Judgement("likes", (1, 2)), "this is 'likes' with"),
        (Judgement(SKIPPED, (1, 2)), "this is 'skipped' with"),
    ],
)
def test_what_is_no_judgement_is_refused(judgement, said) -> None:
    with pytest.raises(UsageError, match=said):
        judgement.checked(2)


@given(st.lists(st.integers(1, 5), min_size=5, max_size=5))
def test_ranks_keep_their_order_and_leave_room_for_ties(values) -> None:
    found = Judgement(RANKING, tuple(values)).checked(5).values
    assert min(found) == 1 and all(
        (own < other) == (rank < against)
        for own, rank in zip(values, found, strict=True)
        for other, against in zip(values, found, strict=True)
    )
    assert all(rank == 1 + sum(other < rank for other in found) for rank in found)
    liking = Judgement(RANKING, found).liking()
    assert liking == tuple(-rank for rank in found)
