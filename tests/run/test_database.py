import asyncio
import dataclasses
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fastexplain.errors import RunError, UsageError
from fastexplain.records import NeuronId
from fastexplain.report.search import explanations_with
from fastexplain.results import ExplanationRow, Measured, Raised, Score, Scores, Steering
from fastexplain.run.database import Database
from fastexplain.run.migrations import MIGRATIONS

NEURON = NeuronId(0, 0)


def lookup(neuron, value=0.5, text="x"):
    scores = Scores(value, value, None, 5, 5)
    return ExplanationRow(neuron, "lookup", "lookup", "1", text, {"t": [1]}, scores=scores)


def said(neuron, text="x", failure=None):
    return ExplanationRow(neuron, "model", "m", "v1", text, parameters={"seed": 0}, failure=failure)


def scores_of(database, explanation):
    return Scores.of([score.measured for score in database.scores(explanation)])


def failures(database, explanation):
    """Why each simulated excerpt failed, by its id; None where it did not."""
    query = "SELECT excerpt, failure FROM simulations WHERE explanation = ?"
    return dict(database.query(query, (explanation,)))


def search(database, words, limit=20):
    return explanations_with(database, None, words, limit)


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "run.sqlite") as opened:
        yield opened


def test_explanations_come_back_as_they_were_stored(database):
    neuron = NeuronId(5, 131)
    [first] = database.add_explanations([lookup(neuron)])
    [second] = database.add_explanations([said(neuron, "rivers")])
    oldest, newest = database.explanations(neuron)  # a lookup comes first
    assert (newest.id, newest.text, newest.method) == (second, "rivers", "model")
    assert newest.scores is None
    assert newest.parameters == {"seed": 0} and newest.created.endswith("+00:00")
    assert (oldest.id, oldest.data, oldest.simulator) == (first, {"t": [1]}, "lookup")
    assert oldest.scores == Scores(0.5, 0.5, None, 5, 5)
    assert oldest.neuron == neuron
    assert database.explanations(NeuronId(5, 132)) == []


def test_steering_comes_back_and_is_replaced(database):
    def steps(rise):
        tokens = [Raised(7, " moon", rise, 0.01), Raised(3, "é", rise / 2, 0.0)]
        return [Steering(tenths, tenths / 10, 1e-5, 4, tokens) for tenths in (1, 10)]

    assert database.steering(NEURON) == []
    database.add_steering(NEURON, steps(0.1))
    database.add_steering(NEURON, steps(0.2))
    database.add_steering(NeuronId(0, 1), [])
    assert database.steering(NEURON) == steps(0.2) and database.steering(NeuronId(0, 1)) == []
    with database.transaction() as sqlite:
        sqlite.execute("UPDATE steering SET steps = replace(steps, 'moon', 'noon')")
    with pytest.raises(RunError, match=r"run\.sqlite"):
        database.steering(NEURON)


@pytest.mark.scale
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
    assert database.best(method="model") == []
    assert database.best(by="top_only") == []
    with pytest.raises(UsageError, match="choose one of"):
        database.best(by="id; DROP TABLE scores")


def test_simulations_keep_what_is_missing_and_why(database):
    [key] = database.add_explanations([said(NeuronId(1, 2))])
    values = np.array([np.nan, 1.5, 0.0], dtype=np.float32)
    database.add_simulation(key, "s", "v", 7, "test", values)
    database.add_simulation(key, "s", "v", 9, "test", None, "no answer")
    assert failures(database, key) == {7: None, 9: "no answer"}
    [(excerpt, found)] = database.simulated(key, "s", "v").items()
    assert excerpt == 7
    np.testing.assert_array_equal(found, values)
    assert database.simulated(key, "s", "v2") == {}
    database.add_simulation(key, "s", "v", 9, "test", values)
    assert list(database.simulated(key, "s", "v")) == [7, 9]


def test_scores_are_kept_for_each_simulator(database):
    neuron = NeuronId(1, 2)
    [key] = database.add_explanations([said(neuron)])
    for simulator, value in [("a", 0.1), ("b", 0.2), ("a", 0.3)]:
        measured = Scores(None, value, None, 4, 5).measured()
        database.add_scores("correlation", simulator, "v", {key: measured})
    found = [(e.simulator, e.scores.top_and_random) for e in database.explanations(neuron)]
    assert found == [("a", 0.3), ("b", 0.2)]


def test_a_new_explanation_takes_the_old_ones_simulations_along(database):
    neuron = NeuronId(1, 2)
    [old] = database.add_explanations([said(neuron)])
    database.add_simulation(old, "s", "v", 7, "test", np.zeros(3))
    [new] = database.add_explanations([said(neuron, "better")])
    assert database.find_explanation(neuron, "model", "m", "v1") == (new, "better")
    assert failures(database, old) == {}


def test_the_same_explanation_again_keeps_its_row(database):
    neuron = NeuronId(0, 0)
    [first] = database.add_explanations([said(neuron)])
    database.add_scores("correlation", "s", "v", {first: Scores(0.5, 0.5, None, 5, 5).measured()})
    assert database.add_explanations([said(neuron)]) == [first]
    assert scores_of(database, first) == Scores(0.5, 0.5, None, 5, 5)
    assert database.add_explanations([said(neuron, "another")]) != [first]


def test_what_hangs_on_an_explanation_that_was_replaced_is_dropped(database):
    """Two commands explain the same neuron at once, and the explainer says different things."""
    neuron = NeuronId(0, 0)
    [first] = database.add_explanations([said(neuron)])
    [second] = database.add_explanations([said(neuron, "another")])
    database.add_simulation(first, "s", "v", 3, "test", np.ones(4))
    database.add_scores("correlation", "s", "v", {first: Scores(0.5, 0.5, None, 5, 5).measured()})
    assert failures(database, first) == {} and database.scores(first) == []
    database.add_scores("correlation", "s", "v", {second: Scores(0.5, 0.5, None, 5, 5).measured()})
    assert scores_of(database, second) == Scores(0.5, 0.5, None, 5, 5)


def test_a_failure_does_not_replace_an_explanation(database):
    neuron = NeuronId(1, 2)
    [good] = database.add_explanations([said(neuron)])
    database.add_explanations([said(neuron, None, "no answer")])
    database.add_explanations([said(neuron, None, "still none")])
    assert [e.failure for e in database.explanations(neuron)] == ["still none", None]
    assert database.find_explanation(neuron, "model", "m", "v1") == (good, "x")
    assert database.find_explanation(neuron, "model", "other", "v1") is None


def test_a_half_stored_batch_is_not_stored_at_all(database):
    bad = ExplanationRow(NeuronId(0, 1), "model", None, "1", "x")
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
        connection.execute("CREATE TABLE migrations (name TEXT)")
        connection.execute("INSERT INTO migrations VALUES ('99 of the future')")
    with pytest.raises(RunError, match="newer fastexplain"):
        Database(newer)
    other = tmp_path / "other.sqlite"
    other.write_bytes(b"not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(RunError, match="not a database"):
        Database(other)
    with pytest.raises(RunError, match="unable to open"):
        Database(tmp_path / "nowhere" / "run.sqlite")


def test_the_same_row_is_treated_alike_alone_and_among_others(database):
    rows = [said(NeuronId(0, n), f"text {n}") for n in range(3)]
    ids = database.add_explanations(rows)
    for key in ids:
        database.add_simulation(key, "s", "v", 7, "test", np.zeros(3))
    assert database.add_explanations(rows) == ids
    assert database.add_explanations([rows[1], rows[1]]) == [ids[1], ids[1]]
    assert all(failures(database, key) == {7: None} for key in ids)
    with_scores = [lookup(NeuronId(1, n)) for n in range(2)]
    assert database.add_explanations(with_scores) == database.add_explanations(with_scores)
    assert all(scores_of(database, e.id).top_and_random == 0.5 for e in database.best())


def test_ids_of_deleted_explanations_are_not_used_again(database):
    texts = ("first", "second", "third")
    ids = [database.add_explanations([said(NEURON, text)])[0] for text in texts]
    assert ids == sorted(set(ids))


def test_methods_are_free_and_an_explanation_may_have_a_parent(database):
    neuron = NeuronId(5, 3, "e17")
    [parent] = database.add_explanations([ExplanationRow(neuron, "human", "Ada", "1", "rivers")])
    row = ExplanationRow(neuron, "revised", "m", "1", "rivers in spring", parent=parent)
    database.add_explanations([row])
    revised, human = database.explanations(neuron)
    assert (revised.parent, human.parent) == (parent, None)
    assert str(revised.neuron) == "5.e17:3"
    assert database.methods() == ["human", "revised"]
    database.add_explanations([ExplanationRow(neuron, "human", "Ada", "1", "streams")])
    [revised] = [e for e in database.explanations(neuron) if e.method == "revised"]
    assert revised.parent is None  # what it was made from is gone, it is not


def test_several_new_texts_by_one_explainer_stay(database):
    """As an import may bring them; only what was there before is replaced."""
    rows = [ExplanationRow(NEURON, "imported", "x", "1", text) for text in ("a", "b")]
    database.add_explanations(rows)
    assert {e.text for e in database.explanations(NEURON)} == {"a", "b"}
    database.add_explanations(rows[1:])
    assert {e.text for e in database.explanations(NEURON)} == {"b"}


def test_a_score_of_minus_0_is_no_damage(database):
    """SQLite stores it as 0; ends of intervals are -0.0 where a measure is 0 in all resamples."""
    [key] = database.add_explanations([lookup(NEURON)])
    measured = Measured("random_only", "f1", -0.0, 5, low=-0.0, high=None)
    database.add_scores("simulation", "lookup", "1", {key: [measured]})
    [found] = [each for each in database.scores(key) if each.scorer == "simulation"]
    assert found.measured == measured and database.site_values(NEURON.site)


def test_other_measures_stand_beside_the_correlation(database):
    [key] = database.add_explanations([lookup(NEURON)])
    balanced = Measured("held_out", "balanced_accuracy", 0.75, 20, low=0.6, high=0.9)
    missing = Measured("held_out", "recall", None, 0, reason="no answer")
    database.add_scores("detection", "gpt-x", "detection-1", {key: [balanced, missing]})
    *correlations, first, second = database.scores(key)
    assert len(correlations) == 3
    assert first == Score("detection", "gpt-x", "detection-1", balanced)
    assert second.measured == missing
    [row] = database.explanations(NEURON)  # the correlation alone makes a row
    assert row.scores.top_and_random == 0.5


def test_explanations_are_found_by_their_words(database):
    texts = ["rivers and streams", "the word 'river' after a verb", "mountains", None]
    rows = [said(NeuronId(0, n), text, text and None) for n, text in enumerate(texts)]
    keys = database.add_explanations(rows)
    for value in (0.1, 0.9):
        measured = Scores(None, value, None, 5, 5).measured()
        database.add_scores("correlation", f"judge {value}", "v", {keys[0]: measured})
    found = {e.neuron.index: e for e in search(database, "river")}
    assert set(found) == {0, 1} and found[0].scores.top_and_random == 0.9
    assert [e.neuron.index for e in search(database, "verb rivers")] == [1]
    assert search(database, 'OR "') == [] == search(database, "river*mountain")
    assert len(search(database, "river", limit=1)) == 1
    database.add_explanations([said(NeuronId(0, 0), "lakes")])
    assert [e.neuron.index for e in search(database, "river")] == [1]
    with pytest.raises(UsageError, match="name a word"):
        search(database, """ " ' """)


def test_writes_share_a_transaction_and_one_that_fails_leaves_the_others(database):
    async def main():
        good = [
            database.write(database.add_explanations, [said(NeuronId(0, n))]) for n in range(20)
        ]
        bad = database.write(database.add_explanations, [ExplanationRow(1, 2, 3, 4, 5)])
        return await asyncio.gather(*good, bad, return_exceptions=True)

    *good, bad = asyncio.run(main())
    assert isinstance(bad, AttributeError) and len({key for [key] in good}) == 20
    assert database.explained("model", "v1") == 20


def test_what_was_handed_over_is_written_although_its_caller_is_cancelled(tmp_path):
    path, held = tmp_path / "run.sqlite", threading.Event()

    async def main(database):
        first = asyncio.create_task(database.write(held.wait))
        second = asyncio.create_task(database.write(database.add_explanations, [said(NEURON)]))
        await asyncio.sleep(0)
        second.cancel()
        held.set()
        await asyncio.gather(first, second, return_exceptions=True)

    with Database(path) as database:
        asyncio.run(main(database))
    with Database(path, read_only=True) as database:
        assert len(database.explanations(NEURON)) == 1


def test_a_full_disk_is_told_to_everyone_who_writes(database):
    [[pages]] = database.query("PRAGMA page_count")

    async def main():
        await database.write(database.query, f"PRAGMA max_page_count = {pages + 2}")
        rows = [said(NeuronId(0, n), "x" * 9000) for n in range(9)]
        with pytest.raises(RunError, match="disk is full"):
            await database.write(database.add_explanations, rows)
        await database.write(database.query, "PRAGMA max_page_count = 100000")
        await database.write(database.add_explanations, rows[:1])

    asyncio.run(main())
    assert database.explained("model", "v1") == 1


def test_threads_may_share_a_database(database):
    def add(index):
        database.add_explanations([said(NeuronId(0, index))])
        return len(database.explanations(NeuronId(0, index)))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(add, range(40))) == [1] * 40


def snapshot(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}


def test_read_only_writes_nothing(tmp_path):
    with Database(tmp_path / "run.sqlite", read_only=True) as database:
        assert database.best() == [] and database.methods() == []
    assert list(tmp_path.iterdir()) == []
    with Database(tmp_path / "run.sqlite") as database:
        database.add_explanations([lookup(NEURON)])
    before = snapshot(tmp_path)
    with Database(tmp_path / "run.sqlite", read_only=True) as database:
        assert len(database.best()) == 1
        with pytest.raises(RunError, match="read-only"):
            database.add_explanations([lookup(NEURON, text="y")])
    assert snapshot(tmp_path)["run.sqlite"] == before["run.sqlite"]


@pytest.fixture
def former(tmp_path):
    """A run of schema 1, as fastexplain 0.1.0 of November 2026 wrote it."""
    kept = Path(__file__).parents[1] / "data" / "run-schema-1"
    return Path(shutil.copytree(kept, tmp_path / "run"))


def check_former(database):
    neuron = NeuronId(2, 5)
    by_lookup, other, judged = database.explanations(neuron)
    assert (by_lookup.method, by_lookup.simulator) == ("lookup", "lookup")
    assert (judged.method, judged.model, judged.text) == ("model", "gpt-x", "words for stones")
    assert judged.parameters == {"seed": 0, "request": "r1"} and judged.cost == 0.001
    assert (judged.simulator, judged.scores) == ("sim", Scores(None, 0.5, 0.25, 4, 1))
    assert (other.simulator, other.scores) == ("other", Scores(0.125, None, None, 4, 0))
    reasons = {s.measured.split: s.measured.reason for s in database.scores(other.id)[:3]}
    assert reasons == {
        "random_only": None,
        "top_and_random": "one side has no variance",
        "top_only": "no excerpt was simulated",
    }
    [(good, values)] = database.simulated(judged.id, "sim", judged.simulation).items()
    stored = failures(database, judged.id)
    assert values[-1] == 9 and stored.pop(good) is None
    assert list(stored.values()) == ["no answer"]
    [failed] = [e for e in database.explanations(NeuronId(0, 1)) if e.method == "model"]
    assert (failed.text, failed.failure) == (None, "no answer")
    assert [mean.layer for mean in database.layer_means("lookup")] == [0, 2]
    assert database.explained("lookup", "lookup-1") == 48
    assert [e.text for e in search(database, "stone")] == ["words for stones"]


def test_a_database_of_schema_1_is_read_without_a_change(former):
    before = snapshot(former)
    with Database(former / "run.sqlite", read_only=True) as database:
        check_former(database)
    assert snapshot(former) == before


def test_a_database_of_schema_1_is_migrated_when_it_is_written(former):
    path = former / "run.sqlite"
    last = sqlite3.connect(path).execute("SELECT max(id) FROM explanations").fetchone()[0]
    with Database(path) as database:
        check_former(database)
        [new] = database.add_explanations([said(NeuronId(0, 2))])
        assert new == last + 1
        [[broken]] = database.query("SELECT count(*) FROM pragma_foreign_key_check")
        assert broken == 0
        assert database.query("SELECT name FROM migrations") == [(name,) for name in MIGRATIONS]
        assert database.query("SELECT model FROM responses") == [("gpt-x",)]
    with Database(path) as database:  # once only
        check_former(database)


def test_a_migration_that_fails_leaves_the_database_as_it_was(former, monkeypatch):
    path = former / "run.sqlite"
    broken = MIGRATIONS | {"4 broken": ("CREATE TABLE extra (x)", "SELECT nonsense")}
    monkeypatch.setattr("fastexplain.run.migrations.MIGRATIONS", broken)
    monkeypatch.setattr("fastexplain.run.readers.MIGRATIONS", broken)
    with pytest.raises(RunError, match="nonsense"):
        Database(path)
    tables = sqlite3.connect(path).execute("SELECT name FROM sqlite_master").fetchall()
    assert ("extra",) not in tables and ("migrations",) not in tables
    monkeypatch.undo()
    with Database(path) as database:
        check_former(database)


def test_what_another_writes_is_seen_where_nothing_can_be_written(tmp_path, monkeypatch):
    """As by a colleague who may read a run only, while it is being explained."""
    path = tmp_path / "run.sqlite"
    monkeypatch.setattr("fastexplain.run.readers.os.access", lambda *_: False)
    with Database(path) as writer:
        writer.add_explanations([said(NEURON)])
        with Database(path, read_only=True) as reader:
            assert len(reader.explanations(NEURON)) == 1
    with Database(path, read_only=True) as reader:
        assert len(reader.explanations(NEURON)) == 1


def test_nothing_is_written_to_a_closed_database(tmp_path):
    with Database(tmp_path / "run.sqlite") as database:
        pass
    with pytest.raises(RunError, match="is closed"):
        asyncio.run(database.write(database.add_explanations, [said(NEURON)]))


def test_deleting_looks_for_children_by_an_index(database):
    plan = database.query("EXPLAIN QUERY PLAN SELECT 1 FROM explanations WHERE parent = 1")
    assert "explanations_by_parent" in str(plan)


def test_an_explainer_of_ones_own_by_the_method_of_rules_is_not_taken_for_them(database):
    own = ExplanationRow(NeuronId(0, 1), "rule", "mine", "1", "cats")
    rule = ExplanationRow(
        NeuronId(0, 1), "rule", "rule", "rule-1", "dogs", parameters={"first": False}
    )
    database.add_explanations([own, rule])
    database.add_explanations([dataclasses.replace(rule, version="rule-2", text="birds")])
    database.add_explanations([dataclasses.replace(own, version="2", text="pets")])
    texts = [row.text for row in database.explanations(NeuronId(0, 1))]
    assert texts == ["birds", "pets", "cats"]
    assert database.other_explanation(NeuronId(0, 0)) == "pets"
    assert database.unsimulated("0") == [1, 1]
