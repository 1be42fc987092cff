"""A rater's session: the order of neurons, blind tasks of held-out text, what is stored."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest

from fastexplain import open_run
from fastexplain.errors import RunError, UsageError
from fastexplain.explainers.lookup import store_lookup
from fastexplain.rating.session import RatingSession
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow
from fastexplain.run.ratings import GRADES, RANKING, SKIPPED, Judgement, Ratings
from fastexplain.run.splits import EXPLANATION_RANKS, samples


def explain(run, index, model, text):
    row = ExplanationRow(NeuronId(0, index), "model", model, "v1", text)
    with run.database() as database:
        return database.add_explanations([row])[0]


@pytest.fixture(scope="module")
def explained(planted_run, tmp_path_factory):
    run = open_run(shutil.copytree(planted_run.path, tmp_path_factory.mktemp("rating") / "run"))
    store_lookup(run)
    for index in range(10):
        explain(run, index, "gpt-w", "any token")
    for index in (1, 3):
        explain(run, index, "gpt-x", "words that are nouns")
    explain(run, 1, "gpt-y", "digits")
    return run


@pytest.fixture
def run(explained, tmp_path):
    return open_run(shutil.copytree(explained.path, tmp_path / "run"))


def ranking(task):
    return Judgement(RANKING, tuple(range(1, 1 + len(task.texts))))


def judge(session, task):
    return session.store(task.neuron, task.key, ranking(task))


def test_all_raters_see_the_same_neurons_first_those_with_most_explanations(run) -> None:
    first, second = RatingSession(run, "Ada"), RatingSession(run, "Bob")
    assert first.neurons == second.neurons and len(first.neurons) == len(set(first.neurons))
    assert first.neurons[:2] == [NeuronId(0, 1), NeuronId(0, 3)]
    others = [neuron.index for neuron in first.neurons[2:]]
    assert others != sorted(others)
    other_seed = RatingSession(run, "Ada", seed=1)
    assert other_seed.neurons != first.neurons and set(other_seed.neurons) == set(first.neurons)


def test_what_is_judged_or_skipped_comes_no_more_for_this_rater(run) -> None:
    ada, bob = RatingSession(run, " Ada "), RatingSession(run, "Bob")
    all_of_them = ada.left()
    task = ada.next_task()
    stored = judge(ada, task)
    assert stored.rater == "Ada" and stored.neuron == task.neuron == ada.neurons[0]
    ada.skip(ada.neurons[1], ada.task(ada.neurons[1]).key)
    assert ada.next_task().neuron == ada.neurons[2] and ada.left() == all_of_them - 2
    assert bob.next_task().neuron == ada.neurons[0] and bob.left() == all_of_them
    assert RatingSession(run, "Ada").next_task().neuron == ada.neurons[2]  # the next day


def test_exemplars_are_those_of_the_test_split(run) -> None:
    task = RatingSession(run, "Ada").next_task()
    record = run.neuron(task.neuron)
    tested = {(sample.top, sample.excerpt) for sample in samples(record)}
    shown = {(kind == "top", exemplar.excerpt) for kind, exemplar in task.exemplars}
    assert shown <= tested and Counter(kind for kind, _ in task.exemplars) == {
        "top": 5,
        "random": 3,
    }
    written_from = {record.top[rank].excerpt for rank in EXPLANATION_RANKS}
    assert written_from.isdisjoint(exemplar.excerpt for _, exemplar in task.exemplars)
    exemplar = task.exemplars[0].exemplar
    [own] = [e for e in record.top if e.excerpt == exemplar.excerpt]
    assert (exemplar.activations == own.activations).all()
    assert task.largest == max(record.statistics.maximum, 0) and task.skip == run.skip


def test_what_a_face_gets_says_nothing_of_whose_a_text_is(run) -> None:
    task = RatingSession(run, "Ada").next_task()
    data = json.loads(json.dumps(task.data(), allow_nan=False))
    assert data["neuron"] == str(task.neuron) and data["explanations"] == task.texts
    assert data["judgement"] is None and data["rating"] is None
    without_texts = json.dumps(data | {"explanations": []})
    for source in (source for shown in task.rating.shown for source in shown.sources):
        assert source.model not in without_texts and source.version not in without_texts
    assert not {"sources", "method", "model", "version", "id"} & set(data)


def test_the_order_of_texts_is_drawn_for_each_rater_and_neuron_alone(run) -> None:
    places = Counter()
    for number in range(20):
        session = RatingSession(run, f"rater {number}", [NeuronId(0, 1)])
        task = session.next_task()
        assert session.next_task().texts == task.texts and len(task.texts) == 4
        places[task.texts.index("digits")] += 1
    assert set(places) == {0, 1, 2, 3} and max(places.values()) < 12


def test_of_many_texts_all_raters_see_the_same_few(run) -> None:
    sets = {
        frozenset(RatingSession(run, f"rater {n}", texts=2).task(NeuronId(0, 1)).texts)
        for n in range(8)
    }
    assert len(sets) == 1 and len(next(iter(sets))) == 2


def test_explainers_that_say_the_same_are_one_text(run) -> None:
    explain(run, 3, "gpt-z", " words that are nouns ")
    shown = RatingSession(run, "Ada").task(NeuronId(0, 3)).rating.shown
    [same] = [each for each in shown if each.text == "words that are nouns"]
    assert [source.model for source in same.sources] == ["gpt-x", "gpt-z"]


def test_going_back_shows_what_was_shown_whatever_became_of_it(run) -> None:
    session = RatingSession(run, "Ada")
    stored = judge(session, first := session.next_task())
    session.skip((second := session.next_task()).neuron, second.key)
    explain(run, 1, "gpt-x", "something else")
    again = session.earlier()
    assert again.neuron == second.neuron and again.judgement == Judgement(SKIPPED)
    again = session.earlier(again.rating.id)
    assert (again.texts, again.key, again.judgement) == (first.texts, first.key, ranking(first))
    assert again.data()["rating"] == stored.id
    assert again.data()["judgement"] == {"kind": "ranking", "values": (1, 2, 3, 4)}
    assert session.earlier(again.rating.id) is None
    grades = Judgement(GRADES, (1, 5, 1, 1))
    assert session.store(again.neuron, again.key, grades).replaces == stored.id
    assert session.task(again.neuron).judgement == grades


def test_undo_brings_a_neuron_back(run) -> None:
    session = RatingSession(run, "Ada")
    assert session.undo() is None and session.earlier() is None
    judge(session, task := session.next_task())
    assert session.undo().neuron == task.neuron
    assert session.next_task().neuron == task.neuron


def test_a_judgement_of_what_has_changed_is_not_stored(run) -> None:
    session = RatingSession(run, "Ada")
    task = session.task(NeuronId(0, 1))
    explain(run, 1, "gpt-x", "something else")
    with pytest.raises(UsageError, match="have changed since they were shown; nothing is stored"):
        judge(session, task)
    with run.database() as database:
        assert Ratings(database).all() == []
    judge(session, session.task(NeuronId(0, 1)))


def test_a_neuron_whose_explanations_are_gone_meanwhile_is_left_out(run) -> None:
    session = RatingSession(run, "Ada")
    with run.database() as database, database.transaction() as sqlite:
        sqlite.execute("DELETE FROM explanations WHERE unit = 1")
    assert session.next_task().neuron == session.neurons[1]
    with pytest.raises(UsageError, match="neuron 0:1 has no explanations to compare"):
        session.task(NeuronId(0, 1))


def test_a_selection_is_kept_to_its_end(run) -> None:
    chosen = [NeuronId(0, 2), NeuronId(0, 1), NeuronId(0, 119)]
    session = RatingSession(run, "Ada", chosen[:2])
    assert session.neurons == [NeuronId(0, 1), NeuronId(0, 2)]
    for _ in range(2):
        judge(session, session.next_task())
    assert session.next_task() is None and session.left() == 0


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"rater": " "}, "no name of a rater"),
        ({"texts": 1}, "1 explanations can't be compared; `texts` takes 2 or more"),
        ({"neurons": []}, "no neuron of the 0 named has two explanations that differ"),
    ],
)
def test_what_makes_no_session(run, arguments, said) -> None:
    with pytest.raises(UsageError, match=said):
        RatingSession(run, **{"rater": "Ada"} | arguments)


def test_wrong_judgements_and_neurons_are_refused(run) -> None:
    session = RatingSession(run, "Ada")
    task = session.next_task()
    with pytest.raises(UsageError, match="a judgement of 4 texts"):
        session.store(task.neuron, task.key, Judgement(RANKING, (1, 2)))
    with pytest.raises(UsageError, match="there is no neuron 0:120"):
        session.task(NeuronId(0, 120))
    assert session.left() == len(session.neurons)


def test_a_run_that_is_not_explained_says_so(planted_run, tmp_path) -> None:
    run = open_run(shutil.copytree(planted_run.path, tmp_path / "bare"))
    with pytest.raises(UsageError, match=r"no neuron of .*bare has two explanations that differ"):
        RatingSession(run, "Ada")


def test_a_run_that_cant_be_written_is_refused_before_anything_is_judged(run, monkeypatch) -> None:
    (run.path / "run.sqlite").unlink()
    (run.path / "run.sqlite").mkdir()
    with pytest.raises(RunError):
        RatingSession(run, "Ada")
