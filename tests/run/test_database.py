import sqlite3

import numpy as np
import pytest

from fastexplain.errors import RunError, UsageError
from fastexplain.records import ExplanationRow, NeuronId, Scores
from fastexplain.run.database import Database


def lookup(neuron, value=0.5, text="x"):
    scores = Scores(value, value, None, 5, 5)
    return ExplanationRow(neuron, "lookup", "lookup", "1", text, {"t": [1]}, scores=scores)


def said(neuron, text="x", failure=None):
    return ExplanationRow(neuron, "llm", "m", "v1", text, parameters={"seed": 0}, failure=failure)


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "run.sqlite") as opened:
        yield opened


def test_explanations_come_back_as_they_were_stored(database):
    neuron = NeuronId(5, 131)
    [first] = database.add_explanations([lookup(neuron)])
    [second] = database.add_explanations([said(neuron, "rivers")])
    oldest, newest = database.explanations(neuron)  # a lookup comes first
    assert (newest.id, newest.text, newest.method, newest.scores) == (second, "rivers", "llm", None)
    assert newest.parameters == {"seed": 0} and newest.created.endswith("+00:00")
    assert (oldest.id, oldest.data, oldest.simulator) == (first, {"t": [1]}, "lookup")
    assert oldest.scores == Scores(0.5, 0.5, None, 5, 5)
    assert oldest.neuron == neuron
    assert database.explanations(NeuronId(5, 132)) == []


def test_a_whole_model_is_stored_and_replaced_by_the_next_pass(database):
    neurons = [NeuronId(layer, index) for layer in range(30) for index in range(1536)]
    for value in (0.1, 0.2):
        database.add_explanations([lookup(neuron, value) for neuron in neurons])
    [only] = database.explanations(NeuronId(29, 1535))
    assert only.scores.top_and_random == 0.2
    means = database.layer_means("lookup")
    assert [m.layer for m in means] == list(range(30))
    assert means[0].scored == 1536
    assert means[0].top_and_random == pytest.approx(0.2)
    assert means[0].top_only is None


def test_a_lookup_leaves_other_explanations_alone(database):
    neuron = NeuronId(0, 0)
    database.add_explanations([said(neuron)])
    database.add_explanations([lookup(neuron)])
    database.add_explanations([lookup(neuron, text="y")])
    assert [e.text for e in database.explanations(neuron)] == ["y", "x"]


def test_the_best_come_first_and_undefined_scores_not_at_all(database):
    values = [0.1, None, 0.9, -0.5]
    database.add_explanations([lookup(NeuronId(0, i), value) for i, value in enumerate(values)])
    assert [e.neuron.index for e in database.best()] == [2, 0, 3]
    assert [e.neuron.index for e in database.best(1, "lookup", "random_only")] == [2]
    assert database.best(method="llm") == []
    assert database.best(by="top_only") == []
    with pytest.raises(UsageError, match="choose one of"):
        database.best(by="id; DROP TABLE scores")


def test_simulations_keep_what_is_missing_and_why(database):
    [key] = database.add_explanations([said(NeuronId(1, 2))])
    values = np.array([np.nan, 1.5, 0.0], dtype=np.float32)
    database.add_simulation(key, "s", "v", 7, "test", values)
    database.add_simulation(key, "s", "v", 9, "test", None, "no answer")
    good, bad = database.simulations(key)
    np.testing.assert_array_equal(good.values, values)
    assert (bad.excerpt, bad.values, bad.failure) == (9, None, "no answer")
    assert list(database.simulated(key, "s", "v")) == [7]
    assert database.simulated(key, "s", "v2") == {}
    database.add_simulation(key, "s", "v", 9, "test", values)
    assert list(database.simulated(key, "s", "v")) == [7, 9]


def test_scores_are_kept_for_each_simulator(database):
    neuron = NeuronId(1, 2)
    [key] = database.add_explanations([said(neuron)])
    for simulator, value in [("a", 0.1), ("b", 0.2), ("a", 0.3)]:
        database.add_scores(key, simulator, "v", Scores(None, value, None, 4, 5))
    found = [(e.simulator, e.scores.top_and_random) for e in database.explanations(neuron)]
    assert found == [("a", 0.3), ("b", 0.2)]


def test_a_new_explanation_takes_the_old_ones_simulations_along(database):
    neuron = NeuronId(1, 2)
    [old] = database.add_explanations([said(neuron)])
    database.add_simulation(old, "s", "v", 7, "test", np.zeros(3))
    [new] = database.add_explanations([said(neuron, "better")])
    assert database.find_explanation(neuron, "llm", "m", "v1") == (new, "better")
    assert database.simulations(old) == []


def test_the_same_explanation_again_keeps_its_row(database):
    neuron = NeuronId(0, 0)
    [first] = database.add_explanations([said(neuron)])
    database.add_scores(first, "s", "v", Scores(0.5, 0.5, None, 5, 5))
    assert database.add_explanations([said(neuron)]) == [first]
    assert database.scores(first, "s", "v") == Scores(0.5, 0.5, None, 5, 5)
    assert database.add_explanations([said(neuron, "another")]) != [first]


def test_what_hangs_on_an_explanation_that_was_replaced_is_dropped(database):
    """Two commands explain the same neuron at once, and the explainer says different things."""
    neuron = NeuronId(0, 0)
    [first] = database.add_explanations([said(neuron)])
    [second] = database.add_explanations([said(neuron, "another")])
    database.add_simulation(first, "s", "v", 3, "test", np.ones(4))
    database.add_scores(first, "s", "v", Scores(0.5, 0.5, None, 5, 5))
    assert database.simulations(first) == [] and database.scores(first, "s", "v") is None
    database.add_scores(second, "s", "v", Scores(0.5, 0.5, None, 5, 5))
    assert database.scores(second, "s", "v") == Scores(0.5, 0.5, None, 5, 5)


def test_a_failure_does_not_replace_an_explanation(database):
    neuron = NeuronId(1, 2)
    [good] = database.add_explanations([said(neuron)])
    database.add_explanations([said(neuron, None, "no answer")])
    database.add_explanations([said(neuron, None, "still none")])
    assert [e.failure for e in database.explanations(neuron)] == ["still none", None]
    assert database.find_explanation(neuron, "llm", "m", "v1") == (good, "x")
    assert database.find_explanation(neuron, "llm", "other", "v1") is None


def test_a_half_stored_batch_is_not_stored_at_all(database):
    bad = ExplanationRow(NeuronId(0, 1), "magic", "m", "1", "x")
    with pytest.raises(RunError):
        database.add_explanations([lookup(NeuronId(0, 0)), bad])
    assert database.explanations(NeuronId(0, 0)) == []


def test_a_disk_that_is_full_says_so_and_half_a_batch_is_not_stored(database):
    [[pages]] = database.query("PRAGMA page_count")
    database.query(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(RunError, match="disk is full"):
        database.add_explanations([said(NeuronId(0, n), "x" * 9000) for n in range(9)])
    assert database.explanations(NeuronId(0, 0)) == []
    database.query("PRAGMA max_page_count = 100000")
    database.add_explanations([said(NeuronId(0, 0))])
    assert len(database.explanations(NeuronId(0, 0))) == 1


def test_a_reader_sees_what_a_writer_has_stored(tmp_path):
    path = tmp_path / "run.sqlite"
    with Database(path) as writer, Database(path) as reader:
        writer.add_explanations([said(NeuronId(0, 0))])
        assert len(reader.explanations(NeuronId(0, 0))) == 1
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_databases_that_cannot_be_used_say_why(tmp_path):
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RunError, match="newer fastexplain"):
        Database(newer)
    other = tmp_path / "other.sqlite"
    other.write_bytes(b"not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(RunError, match="not a database"):
        Database(other)
    with pytest.raises(RunError, match="unable to open"):
        Database(tmp_path / "nowhere" / "run.sqlite")
