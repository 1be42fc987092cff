"""Automatic scores beside people's preferences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judging_people import ranked

from fastexplain.rating.pairs import pairs
from fastexplain.rating.scores import ITSELF, _tau, missing, score_agreement
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Measured, Scores
from fastexplain.run.database import Database
from fastexplain.run.ratings import RANKING, Judgement, Rating, ShownText, Source


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "run.sqlite") as opened:
        yield opened


def add(database, neuron, method, model, value, **of_text):
    """An explanation with a correlation, which is stored as its method's are; as it was shown."""
    scores = None if value is None else Scores(None, value, None, 5, 5)
    own = scores if method in ("lookup", "rule") else None
    row = ExplanationRow(
        NeuronId(0, neuron), method, model, "1", f"{neuron} {model}", scores=own, **of_text
    )
    [id_] = database.add_explanations([row])
    if own is None and scores is not None:
        database.add_scores("correlation", "judge", "j1", {id_: scores.measured()})
    return ShownText(row.text, (Source(id_, method, model, "1"),))


def rated(neuron, ranks, *shown, rater="x"):
    judgement = Judgement(RANKING, tuple(ranks))
    return Rating(NeuronId(0, neuron), rater, judgement, shown, {"top": [], "random": []}, 0)


def agreement(database, ratings):
    found = score_agreement(database, pairs(ratings))
    return {(e.kind.scorer, e.kind.judge): e for e in found if e.kind.split == "top_and_random"}


def slow_tau(first, second):
    """Kendall's tau-b of two lists: concordant, discordant and tied pairs, one by one."""
    signs = [
        ((a > b) - (a < b), (c > d) - (c < d))
        for (a, c), (b, d) in itertools.combinations(zip(first, second, strict=True), 2)
    ]
    score = sum(x * y for x, y in signs)
    return score / np.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))


def test_by_hand(database) -> None:
    """Of the six pairs ab, ac, ad and cd are ordered alike; of bc the scores are the same, and the
    person takes b and d for equally good. Alike (4 + 1/2) / 5, tau 4 / sqrt(5 * 5)."""
    values = {"a": 0.9, "b": 0.5, "c": 0.5, "d": 0.1}
    shown = [add(database, 0, "model", name, value) for name, value in values.items()]
    found = agreement(database, [rated(0, (1, 3, 2, 3), *shown)])["correlation", "judge"]
    assert found.alike.value == pytest.approx(0.9) and found.tau.value == pytest.approx(0.8)
    assert (found.pairs, found.neurons, found.alike.low) == (6, 1, None)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=7))
def test_tau_is_kendalls(both) -> None:
    counts = np.zeros(4)
    for (a, c), (b, d) in itertools.combinations(both, 2):
        order = int(np.sign(a - b) * np.sign(c - d))
        if order:
            counts[0 if order > 0 else 1] += 1
        elif a != b or c != d:
            counts[3 if a != b else 2] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        np.testing.assert_allclose(_tau(counts), slow_tau(*zip(*both, strict=True)))


def test_a_table_is_not_what_people_saw(database) -> None:
    """The lookup's list scores less than the rule, its table more; the person prefers the rule."""
    text = Scores(None, 0.2, None, 5, 5)
    ratings = []
    for neuron in range(3):
        shown = add(database, neuron, "lookup", "lookup", 0.9, text_scores=text)
        ratings.append(rated(neuron, (2, 1), shown, add(database, neuron, "rule", "rule", 0.5)))
    found = agreement(database, ratings)
    assert set(found) == {("correlation", ITSELF)}
    assert found["correlation", ITSELF].alike.value == 1


def test_what_predicts_by_itself_stands_beside_each_judge(database) -> None:
    shown = [
        add(database, 0, "rule", "rule", 0.5),
        add(database, 0, "model", "m", 0.7),
        add(database, 0, "rule", "of mine", None),  # another explainer's method may be "rule" too
    ]
    mine = shown[2].sources[0].id
    database.add_scores(
        "correlation", "judge", "j1", {mine: Scores(None, 0.1, None, 5, 5).measured()}
    )
    found = agreement(database, [rated(0, (2, 1, 3), *shown)])
    assert found["correlation", "judge"].pairs == 3 and len(found) == 1
    assert found["correlation", "judge"].alike.value == 1


def test_undefined_scores_and_other_measures_each_stand_alone(database) -> None:
    shown = [add(database, 0, "model", name, value) for name, value in (("a", None), ("b", 0.4))]
    for text, value in zip(shown, (0.6, 0.8), strict=True):
        rows = [Measured("held_out", "recall", value, 20), Measured("held_out", "f1", None, 0)]
        database.add_scores("detection", "judge", "d1", {text.sources[0].id: rows})
    [found] = score_agreement(database, pairs([rated(0, (1, 2), *shown)]))
    assert (found.kind.scorer, found.kind.measure, found.alike.value) == ("detection", "recall", 0)


def test_of_several_explanations_that_say_the_same_the_newest_counts(database) -> None:
    first, second = (add(database, 0, "model", name, v) for name, v in (("a", 0.1), ("b", 0.9)))
    same = ShownText("same", first.sources + second.sources)
    other = add(database, 0, "model", "c", 0.5)
    found = agreement(database, [rated(0, (1, 2), same, other)])
    assert found["correlation", "judge"].alike.value == 1


def test_explanations_that_are_gone_are_counted(database) -> None:
    shown = [add(database, 0, "model", name, value) for name, value in (("a", 0.1), ("b", 0.4))]
    ratings = [rated(0, (1, 2), *shown), rated(0, (1, 2), *shown, rater="y")]
    assert missing(database, pairs(ratings)) == 0
    database.add_explanations([ExplanationRow(NeuronId(0, 0), "model", "a", "1", "another text")])
    assert missing(database, pairs(ratings)) == 1 and agreement(database, ratings) == {}


def test_a_score_that_is_what_people_like_is_told_from_noise(database) -> None:
    rng = np.random.default_rng(0)
    ratings = []
    for neuron in range(60):
        good = rng.random(3)
        shown = [
            add(database, neuron, "model", name, v) for name, v in zip("abc", good, strict=True)
        ]
        for text in shown:
            row = Measured("top_and_random", "f1", float(rng.random()), 9)
            database.add_scores("noise", "judge", "1", {text.sources[0].id: [row]})
        ranks = (1 + np.argsort(np.argsort(-(good + rng.normal(0, 0.2, 3))))).tolist()
        ratings.append(rated(neuron, ranks, *shown))
    found = agreement(database, ratings)
    score, noise = found["correlation", "judge"], found["noise", "judge"]
    assert score.alike.low > 0.6 and score.tau.low > 0.3
    assert noise.alike.low < 0.5 < noise.alike.high and noise.tau.low < 0 < noise.tau.high
    assert next(iter(found)) == ("correlation", "judge")  # the best comes first


def test_ratings_of_texts_without_scores_say_nothing(database) -> None:
    assert score_agreement(database, pairs([ranked(0, "x", (1, 2))])) == []
