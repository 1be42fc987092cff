"""The demo's parts, on the planted run."""

from __future__ import annotations

import sys

import planted

from fastexplain.cli import demo
from fastexplain.explainers.lookup import store_lookup
from fastexplain.records import NeuronId
from fastexplain.results import Measured


def test_baselines_stand_beside_each_explanation(run) -> None:
    store_lookup(run)
    neuron = NeuronId(0, planted.MOON_AFTER_BRIGHT)
    with run.database() as database:
        [row] = database.explanations(neuron)
        rows = [Measured("top_and_random", "correlation", 0.125, 10)]
        beside = demo._beside(run, [row])[row.id]
        assert list(beside) == ["mismatched", "token", "position"]
        assert beside["token"] < 0.8
        database.add_scores("mismatched", "m", "1", {row.id: rows})
    # A language model's own takes its place.
    assert demo._beside(run, [row])[row.id] == beside | {"mismatched": 0.125}


def test_without_matplotlib_a_line_takes_the_reports_place(run, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert demo._report(run) is None and demo._beside_means(None) == []
    assert capsys.readouterr().err == (
        "No report is written: matplotlib is not installed; pip install 'fastexplain[report]'.\n"
    )
    assert not (run.path / "report").exists()


def test_the_report_lies_in_the_run_and_its_means_are_said(run, capsys) -> None:
    [line] = demo._beside_means(demo._report(run))
    assert str(run.path / "report" / "index.html") in capsys.readouterr().err
    assert "lookup by token alone 0." in line and " ± 0." in line
