"""The table of all neurons: a run's numbers in columns."""

import sys

import numpy as np
import pytest

import fastexplain
from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import store_lookup
from fastexplain.records import NeuronId
from fastexplain.results import CORRELATION, ExplanationRow, Scores

LAYERS = [1, 3]  # so that places are not layers


@pytest.fixture
def run(tiny_subject, tmp_path):
    tokens = np.random.default_rng(0).integers(1, 257, (40, 64)).astype(np.int32)
    corpus = fastexplain.Corpus.from_excerpts(tokens)
    return fastexplain.sweep(tiny_subject, corpus, tmp_path / "run", layers=LAYERS)


def explain(run, name, text, *scores, model="someone", method="model"):
    """Store an explanation with scores by as many simulators, each on top and random excerpts."""
    row = ExplanationRow(NeuronId.parse(name), method, model, "v1", text)
    with run.database() as database:
        [explanation] = database.add_explanations([row])
        for number, score in enumerate(scores):
            own = Scores(-0.5, score, 0.25, 5, 5)
            judge = f"simulator {number}"
            database.add_scores(CORRELATION, judge, "v1", {explanation: own.measured()})


def test_rows_are_all_neurons_by_layer_and_index(run):
    table = run.table()
    assert len(table) == 2 * 48
    assert table["site"].tolist() == ["1"] * 48 + ["3"] * 48
    assert table["layer"].tolist() == [1] * 48 + [3] * 48
    assert table["index"].tolist() == list(range(48)) * 2
    assert repr(table).startswith("NeuronTable(96 neurons: site, layer, index, mean, variance, ")
    assert not (run.path / "run.sqlite").exists()  # reading makes no database


def test_statistics_are_those_of_each_neuron(run):
    table = run.table()
    for row, name in ((0, "1:0"), (47, "1:47"), (48, "3:0"), (59, "3:11")):
        statistics = run.neuron(name).statistics
        for column in ("mean", "variance", "kurtosis", "fraction_positive", "maximum"):
            assert table[column][row] == getattr(statistics, column)


def test_scores_are_the_lookups_and_of_language_models_the_best(run):
    nothing = run.table()
    assert np.isnan(nothing["lookup_top_and_random"]).all()
    assert np.isnan(nothing["model_top_only"]).all()
    store_lookup(run)
    explain(run, "3:11", "weak", 0.1)
    explain(run, "3:11", "good", 0.2, 0.7, 0.3, model="another")
    explain(run, "3:11", "undefined", None, model="third")
    explain(run, "1:47", "undefined", None)
    explain(run, "1:0", "not scored")
    explain(run, "1:5", "what somebody thinks", 0.4, method="human")
    table = run.table()
    with run.database(read_only=True) as database:
        for row, name in ((0, "1:0"), (95, "3:47")):
            [stored] = [
                found
                for found in database.explanations(NeuronId.parse(name))
                if found.method == "lookup"
            ]
            for measure in ("top_and_random", "random_only", "top_only"):
                expected = getattr(stored.scores, measure)
                found = table[f"lookup_{measure}"][row]
                assert np.isnan(found) if expected is None else found == expected
    assert np.flatnonzero(~np.isnan(table["model_top_and_random"])).tolist() == [48 + 11]
    assert table["model_top_and_random"][48 + 11] == 0.7
    assert np.flatnonzero(~np.isnan(table["human_top_and_random"])).tolist() == [5]
    assert "human_top_and_random" not in nothing.columns
    # Where the headline is undefined the others need not be.
    assert np.flatnonzero(~np.isnan(table["model_random_only"])).tolist() == [47, 48 + 11]


def test_a_column_that_is_not_there(run):
    with pytest.raises(
        UsageError, match="there is no column 'skew'; there are: site, layer, index"
    ):
        run.table()["skew"]


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_as_a_data_frame(run, package, monkeypatch):
    pytest.importorskip(package)
    table = run.table()
    convert = getattr(table, f"to_{package}")
    frame = convert()
    assert list(frame.columns) == list(table.columns) and len(frame) == 96
    for name, column in table.columns.items():
        np.testing.assert_array_equal(frame[name].to_numpy(), column)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f"{package} is not installed; pip install 'fastexplain"):
        convert()
