"""Scoring what a run has already, on neurons whose driving words are known."""

from __future__ import annotations

import json

import numpy as np
import planted
import pytest
import scipy.stats

import fastexplain
from fastexplain.cli.terminal import out
from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import predict_layer, store_lookup
from fastexplain.kernels.measuring import MEASURES
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Measured
from fastexplain.run.agreement import CALIBRATED
from fastexplain.run.splits import samples
from fastexplain.scorers.simulation import Simulation


def rows_of(run, neuron: int, scorer: str = "simulation") -> dict[tuple[str, str], Measured]:
    with run.database() as database:
        [row, *_] = database.explanations(NeuronId(0, neuron))
        return {
            (each.measured.split, each.measured.measure): each.measured
            for each in database.scores(row.id)
            if each.scorer == scorer
        }


def test_lookup_explanations_get_every_measure(run) -> None:
    store_lookup(run)
    found = fastexplain.score(run, scorers=["simulation"])
    assert (found.scored, found.lacking) == (planted.NEURONS, 0)
    rows = rows_of(run, planted.DIGIT)
    assert len(rows) == 2 * len(MEASURES)
    for (_, measure), row in rows.items():
        # The tables tell apart by rounding what is equally silent, and ranks see that.
        assert row.value > (0.7 if measure == "spearman" else 0.9)
        assert row.low <= row.value <= row.high
    # All neurons' predictions at once, as scored: one alone is rounded otherwise.
    predicted = predict_layer(run, 0, run.tables.rows(run.excerpts))
    true, pooled = (
        each[planted.DIGIT, :10].ravel()  # five top ones and as many random ones
        for each in (np.maximum(predicted.true, 0), predicted.simulated)
    )
    assert rows["top_and_random", "spearman"].value == pytest.approx(
        scipy.stats.spearmanr(true, pooled).statistic, abs=1e-10
    )
    assert (
        rows["top_and_random", "correlation"]
        == rows_of(run, planted.DIGIT, "correlation")["top_and_random", "correlation"]
    )
    silent = rows_of(run, planted.NEVER)["random_only", "auprc"]
    assert silent.reason == "no exemplar of the explanation has an activation above 0"
    whole = {(mean.split, mean.measure): mean for mean in found.means if not mean.site}
    for mean in whole.values():
        assert mean.low is None or mean.low <= mean.value <= mean.high
    assert ("random_only", "r_squared") not in whole  # it has no lower end


@pytest.mark.parametrize("way", ["isotonic", "percentile", "none"])
def test_calibrations_have_names_of_their_own(run, cli, way: str) -> None:
    """On the command line too; what is not calibrated is as the plain scorer has it."""
    store_lookup(run)
    neuron = f"0:{planted.DIGIT}"
    code, _, _ = cli("score", run.path, neuron, "--scorers", f"simulation,simulation-{way}")
    plain, own = (rows_of(run, planted.DIGIT, f"simulation{end}") for end in ("", f"-{way}"))
    assert code == 0 and plain.keys() == own.keys()
    fastexplain.score(run, neuron, scorers=[Simulation(way)])
    assert own == rows_of(run, planted.DIGIT, f"simulation-{way}")
    for key, row in plain.items():
        if key[1] in CALIBRATED:
            assert own[key] != row
        else:
            assert own[key] == row


def test_stored_simulations_are_scored_and_those_that_lack_are_counted(run) -> None:
    record = run.neuron("0:1")
    with run.database() as database:
        known, bare = database.add_explanations(
            [ExplanationRow(NeuronId(0, n), "model", "m", "1", "digits") for n in (1, 2)]
        )
        for split in ("test", "calibration"):
            for each in samples(record, split):
                values = np.concatenate([np.zeros(record.skip), np.maximum(each.true, 0)])
                database.add_simulation(known, "s", "v", each.excerpt, split, values)
    found = fastexplain.score(run, ["0:0-5"])
    assert (found.scored, found.lacking, found.means) == (1, 1, [])
    rows = rows_of(run, 1)
    assert all(
        row.value == pytest.approx(1) for (_, m), row in rows.items() if m != "raw_correlation"
    )
    assert rows_of(run, 1, "correlation")["top_and_random", "correlation"].low == pytest.approx(1)
    with run.database() as database:
        assert {(s.judge, s.version) for s in database.scores(known)} == {("s", "v")}
        assert database.scores(bare) == []


class Longest:
    name, measures, judge = "longest", ("length",), None

    def excerpts(self, record):
        return samples(record)

    def score(self, record, explanation, excerpts):
        simulated = [each for each in excerpts if each.simulated is not None]
        return [Measured("test", "length", float(len(simulated)), len(simulated))]


class Judged(Longest):
    judge = "model", "1"


def test_a_scorer_of_ones_own_scores_lookup_one_by_one(run) -> None:
    store_lookup(run)
    assert fastexplain.score(run, "0:1", scorers=[Longest()]).scored == 1
    assert rows_of(run, 1, "longest")["test", "length"].value == 10
    assert rows_of(run, 2, "longest") == {}


@pytest.mark.parametrize(
    "scorers, says",
    [
        (["nothing"], "no scorer 'nothing'; choose from correlation"),
        ("correlation", "`scorers` is 'correlation'; give a list"),
        ([3], "the scorer 3 can't be used"),
        ([Judged()], "the scorer 'longest' asks a model"),
    ],
)
def test_scorers_that_cannot_be_used_are_refused(run, scorers, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fastexplain.score(run, scorers=scorers)


def test_the_command_says_what_it_scored(run, cli, monkeypatch) -> None:
    monkeypatch.setattr(out, "_width", 160)
    store_lookup(run)
    with run.database() as database:
        database.add_explanations([ExplanationRow(NeuronId(0, 1), "model", "m", "1", "digits")])
    code, shown, _ = cli("score", run.path)
    assert code == 0
    assert f"{planted.NEURONS} explanations scored. Without simulations: 1;" in shown
    assert "spearman" in shown and " to " in shown
    assert "by lookup: its texts" in shown and "by lookup: its whole tables" in shown
    code, shown, _ = cli("score", run.path, "0:1", "--scorers", "simulation", "--json")
    expected = {"scored": 1, "lacking": 1, "means": [], "text_means": [], "document_means": []}
    assert json.loads(shown.splitlines()[-1]) == expected
    code, shown, _ = cli("show", run.path, "0:1", "--json")
    own = json.loads(shown.splitlines()[-1])["explanations"][0]["scores"]
    assert {each["measure"] for each in own} == set(MEASURES)
    code, shown, _ = cli("show", run.path, "0:1")
    headline = rows_of(run, 1, "correlation")["top_and_random", "correlation"]
    assert f"{headline.value:.2f} ({headline.low:.2f} to {headline.high:.2f})" in shown
    code, _, error = cli("score", run.path, "--scorers", "nothing")
    assert code == 2 and "there is no scorer 'nothing'" in error
