"""Columns, lists and search of a whole run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain import Run
from fastexplain.errors import UsageError
from fastexplain.finding.search import worth
from fastexplain.records import NeuronId
from fastexplain.report import search
from fastexplain.report.columns import (
    first_places,
    name_at,
    neurons_of,
    score_columns,
    statistic_columns,
)
from fastexplain.report.maps import is_statistic, maps_data, packed, score_key, score_map
from fastexplain.report.overview import overview_data
from fastexplain.report.search import TokenSearch, glance_data, search_data
from fastexplain.results import CORRELATION, ExplanationRow, Measured, Scores


def explained(index: int, method: str, score: float | None, text: str = "x", **more: object):
    scores = Scores(None if score is None else score / 2, score, score, 5, 5)
    model = {"lookup": "lookup", "rule": "rule"}.get(method, "m")
    return ExplanationRow(NeuronId(0, index), method, model, "1", text, scores=scores, **more)


def data_of(run: Run) -> dict:
    with run.database(read_only=True) as database:
        scores = score_columns(run, database)
        data = overview_data(run, database, statistic_columns(run), scores)
    json.dumps(data, allow_nan=False)
    return data


def test_columns_are_the_tables(run: Run) -> None:
    rng = np.random.default_rng(0)
    with run.database() as database:
        rows = [
            explained(index, method, value, f"text {index}")
            for index, *values in rng.uniform(-1, 1, (40, 3)).tolist()
            for index in [int(abs(index) * 100)]
            for method, value in zip(("lookup", "rule", "model"), [*values, None], strict=True)
        ]
        ids = database.add_explanations(rows)
        # A second judge, and a second explanation by another method, one of them better.
        database.add_scores(
            CORRELATION, "b", "1", {ids[2]: [Measured("top_and_random", CORRELATION, 0.25, 5)]}
        )
        database.add_explanations([explained(3, "human", 0.1), explained(3, "revised", 0.9)])
    table, statistics = run.table(), statistic_columns(run)
    with run.database(read_only=True) as database:
        scores = score_columns(run, database)
    for key in (each["key"] for each in maps_data()["maps"]):
        if is_statistic(key):
            assert np.array_equal(statistics[key], table[key].astype(np.float32), equal_nan=True)
    for kind, split in (("lookup", "top_and_random"), ("rule", "random_only")):
        found = score_map(scores, score_key(kind, split))
        wanted = table[f"{kind}_{split}"].astype(np.float32)
        assert np.array_equal(found, wanted, equal_nan=True)
        assert packed(found) == wanted.tobytes()
    assert scores.values["other", "top_and_random"][3] == np.float32(0.9)
    assert scores.values["other", "random_only"][3] == np.float32(0.45)
    first = rows[2].neuron.index
    assert scores.values["other", "top_and_random"][first] == np.float32(0.25)
    assert np.isnan(scores.values["other", "random_only"][first])
    assert scores.ids["other"][first] == ids[2]
    assert neurons_of(run) == 120
    assert name_at(run, 119) == "0:119"
    with pytest.raises(IndexError):
        name_at(run, 120)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, -3.0, np.nan, np.inf])), st.integers(1, 8))
@settings(derandomize=True, deadline=None)
def test_the_first_places_are_those_of_a_whole_sort(values: list[float], count: int) -> None:
    check_first_places(np.array(values), count)


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([1, 30, 10**6]))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_the_first_places_of_many(seed: int, count: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, distinct, rng.integers(1, 40_000)).astype(np.float64)
    keys[rng.random(len(keys)) < 0.2] = np.nan
    check_first_places(keys, count)


def check_first_places(keys: np.ndarray, count: int) -> None:
    wanted = [at for at in np.argsort(keys, kind="stable") if np.isfinite(keys[at])][:count]
    assert first_places(count, keys).tolist() == wanted


def test_lists_are_in_order_and_what_surprises_is_named(run: Run) -> None:
    with run.database() as database:
        database.add_explanations([explained(n, "lookup", n / 20) for n in range(20)])
        database.add_explanations([explained(n, "model", 0.5, f"text {n}") for n in range(20)])
        failed = ExplanationRow(NeuronId(0, 50), "model", "m", "1", None, failure="no answer")
        database.add_explanations([failed])
    data = data_of(run)
    lists = {(each["name"], each["kind"]): each["neurons"] for each in data["lists"]}
    beyond = lists["beyond_lookup", "other"]
    assert [row["neuron"] for row in beyond] == [f"0:{n}" for n in range(10)]
    assert beyond[3] == {
        **{"neuron": "0:3", "score": 0.5, "lookup": pytest.approx(0.15)},
        **{"method": "model", "model": "m", "text": "text 3"},
    }
    behind = lists["beyond_explanation", "other"]
    assert [row["neuron"] for row in behind] == [f"0:{n}" for n in range(19, 10, -1)]
    assert {"method": "model", "model": "m", "version": "1", "explained": 20, "failed": 1} in data[
        "explanations"
    ]
    [own] = [each for each in data["distributions"] if each["key"] == "lookup.top_and_random"]
    assert own["sites"] == [
        {
            "site": "0",
            "neurons": 20,
            "values": pytest.approx(np.percentile(np.arange(20) / 20, data["quantiles"])),
        }
    ]
    assert all(each["neurons"] for each in data["distributions"])


def test_a_run_without_explanations_has_statistics_alone(run: Run) -> None:
    data = data_of(run)
    assert data["lists"] == data["explanations"] == data["cost"] == []
    assert all(is_statistic(each["key"]) for each in data["distributions"])


@pytest.fixture
def find(run: Run):
    with run.database() as database:
        database.add_explanations(
            [
                explained(1, "lookup", 0.5, "rivers and stones"),
                explained(1, "model", 0.6, "names of rivers"),
                explained(2, "model", 0.7, "a stone in a river's bed"),
                explained(3, "model", None, "something else"),
            ]
        )
    tokens = TokenSearch(run, statistic_columns(run))
    with run.database(read_only=True) as database:
        headlines = score_columns(run, database).headlines
        yield lambda text, limit=8: search_data(run, database, tokens, headlines, text, limit)


def test_explanations_are_found_while_their_last_word_is_typed(find) -> None:
    def neurons(text: str) -> list[str]:
        return [each["neuron"] for each in find(text)["explanations"]]

    assert sorted(neurons("riv")) == ["0:1", "0:2"]
    assert sorted(neurons("stone riv")) == sorted(neurons("river stone")) == ["0:1", "0:2"]
    assert neurons("riv stone") == []  # only the last one may be cut short
    assert neurons("riv ") == []  # the word has ended
    assert neurons("something els") == ["0:3"]
    assert find("something")["explanations"][0]["score"] is None
    assert find("river", limit=1)["more"]
    assert not find("else")["more"]


def test_the_best_explanations_come_first_however_many_there_are(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = np.random.default_rng(0).permutation(np.linspace(-0.9, 0.9, 50)).tolist()
    with run.database() as database:
        database.add_explanations([explained(n, "model", s, "birds") for n, s in enumerate(scores)])
        database.add_explanations([explained(60, "model", None, "birds")])
        database.add_explanations([explained(61, "model_bottom", 0.95, "birds")])
    order = [f"0:{n}" for n in np.argsort(scores)[::-1]]
    tokens = TokenSearch(run, statistic_columns(run))
    with run.database(read_only=True) as database:
        known = score_columns(run, database).headlines

        def neurons(headlines: np.ndarray | None, limit: int, text: str = "birds") -> list[str]:
            found = search_data(run, database, tokens, headlines, text, limit)
            assert found["ranked"] == (headlines is not None or search._RANKED == 1000)
            return [each["neuron"] for each in found["explanations"]]

        few = neurons(known, 10)
        assert few[:9] == ["0:61", *order[:8]]
        assert set(neurons(None, 100)) == {f"0:{n}" for n in [*range(50), 60, 61]}
        monkeypatch.setattr(search, "_RANKED", 5)
        assert neurons(known, 10) == few
        assert neurons(known, 100) == ["0:61", *order, "0:60"]
        assert neurons(known, 100, "bird") == ["0:61", *order, "0:60"]
        # Those that are newer than the headlines come last, and without headlines first.
        assert neurons(known[:3], 100)[:2] == [f"0:{n}" for n in np.argsort(scores[:2])[::-1]]
        assert neurons(None, 3) == ["0:61", "0:60", "0:49"]


def test_a_word_that_fits_better_outweighs_a_somewhat_better_score(run: Run) -> None:
    with run.database() as database:
        database.add_explanations(
            [
                explained(1, "model", 0.5, "rivers"),
                explained(2, "model", 0.6, "rivers, boats, towers and nine other things of towns"),
                *(explained(n, "model", 0.5, "something else") for n in range(3, 30)),
            ]
        )
    tokens = TokenSearch(run, statistic_columns(run))
    with run.database(read_only=True) as database:
        headlines = score_columns(run, database).headlines
        found = search_data(run, database, tokens, headlines, "rivers", 8)
    assert [each["neuron"] for each in found["explanations"]] == ["0:1", "0:2"]


def test_a_lists_score_is_that_of_its_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's, which is often far higher, says nothing of the text that is found."""

    def text_scores(value: float | None) -> dict[str, Scores]:
        return {"text_scores": Scores(value, value, value, 5, 5)}

    with run.database() as database:
        *_, several = database.add_explanations(
            [
                explained(1, "lookup", 0.98, "birds, 1", **text_scores(0.07)),
                explained(2, "lookup", 0.97, "birds, 2", **text_scores(None)),
                explained(3, "lookup", 0.3, "birds, 3"),  # of an earlier version
                explained(4, "rule", 0.15, "birds, 4"),
                explained(5, "model", 0.2, "birds, 5"),
            ]
        )
        better = [Measured("top_and_random", CORRELATION, 0.25, 5)]
        database.add_scores(CORRELATION, "b", "1", {several: better})
    tokens = TokenSearch(run, statistic_columns(run))
    with run.database(read_only=True) as database:
        headlines = score_columns(run, database).headlines
        own = {
            row.id: (row.neuron, worth(row))
            for neuron in range(1, 6)
            for row in sorted(database.explanations(NeuronId(0, neuron)), key=worth)
        }
        for key, (_, value) in own.items():
            assert headlines[key] == np.float32(value) or np.isnan(headlines[key])
        for ranked in (1000, 1):
            monkeypatch.setattr(search, "_RANKED", ranked)
            found = search_data(run, database, tokens, headlines, "birds", 8)["explanations"]
            assert [(each["neuron"], each["score"]) for each in found] == [
                *(("0:3", 0.3), ("0:5", 0.25), ("0:4", 0.15), ("0:1", 0.07), ("0:2", None)),
            ]
            for each in found:
                assert glance_data(run, database, each["neuron"]) == each


def test_neurons_are_found_by_the_beginning_of_their_name(find) -> None:
    assert find("0:1")["neurons"] == ["0:1", *(f"0:{n}" for n in range(10, 17))]
    assert find(" 0:11 ")["neurons"] == ["0:11", *(f"0:{n}" for n in range(110, 117))]
    assert find("0:", 3)["neurons"] == ["0:0", "0:1", "0:2"]
    assert find("0:0")["neurons"] == ["0:0"]
    for nothing in ("0:01", "0:120", "7:1", "0", "0:1:2"):
        assert find(nothing)["neurons"] == []


def test_a_neurons_name_finds_no_explanations_by_its_numbers(find, run: Run) -> None:
    with run.database() as database:
        database.add_explanations([explained(9, "lookup", 0.9, "'x' 0.1, 'y' 0:11; else 0")])
    for name in ("0:11", "0:1", "0:", " 0:0"):
        found = find(name)
        assert found["neurons"][0] == (name.strip() if name[-1] != ":" else "0:0")
        assert (found["explanations"], found["more"], found["token"]) == ([], False, None)
    [other] = find("11")["explanations"]
    assert other["neuron"] == "0:9"


def test_the_neurons_that_a_token_drives_come_first(find, run: Run) -> None:
    found = find("Cat ")["token"]
    assert find("' cat'")["token"] == found  # as in a list
    assert found["text"] == "cat"
    assert found["neurons"][0]["neuron"] == "0:0"  # planted to fire on this word alone
    assert found["neurons"][0]["told"] > 0.9
    top = run.neuron("0:0").top[0].activations.max()
    assert found["neurons"][0]["mean"] == pytest.approx(top, rel=0.05)
    assert find("nothing of the kind")["token"] is None


@pytest.mark.parametrize(
    "text", ['"', "*", "NEAR(a b)", "a OR", "text : x", "_", "\0", "a" * 10_000, "^x -y", "'); --"]
)
def test_no_text_is_an_error(find, text: str) -> None:
    assert find(text)["explanations"] == []


def test_any_text_is_searched_for(find) -> None:
    @given(st.text(max_size=40))
    @settings(derandomize=True, max_examples=25, deadline=None)
    def check(text: str) -> None:
        json.dumps(find(text), allow_nan=False)

    check()


def test_a_glance_is_the_best_explanation(find, run: Run) -> None:
    with run.database(read_only=True) as database:
        assert glance_data(run, database, "0:1") == {
            **{"neuron": "0:1", "method": "model", "model": "m", "text": "names of rivers"},
            "score": 0.6,
        }
        assert glance_data(run, database, "0:9")["text"] is None
        with pytest.raises(UsageError, match="no neuron 0:120"):
            glance_data(run, database, "0:120")
