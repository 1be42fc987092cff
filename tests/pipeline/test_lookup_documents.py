"""Lookup's scores with whole documents left out, on a subject whose activations are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planted
import pytest
import torch

import fastexplain
from fastexplain import Corpus, NeuronId, Run, Subject
from fastexplain.cli.terminal import out
from fastexplain.errors import RunError, UsageError
from fastexplain.explainers.lookup import explain_by_lookup, split_excerpts, store_lookup
from fastexplain.kernels.scalars import pair_estimate, token_estimate
from fastexplain.pipeline.lookup_documents import score_without_documents
from fastexplain.report.figures import run_figures
from fastexplain.report.pages import markdown_page
from fastexplain.results import DOCUMENTS

WORDS = [planted.CAT, planted.DIGIT, planted.MOON_AFTER_BRIGHT, planted.RIVER_OR_STONE]


def swept(subject: Subject, corpus: Corpus, documents: np.ndarray, path: Path, **more) -> Run:
    """A sweep of the same excerpts, each of the given document."""
    own = Corpus.from_excerpts(corpus.tokens, documents=documents)
    return fastexplain.sweep(subject, own, path, batch_size=48, **more)


@pytest.fixture(scope="module")
def run_of_documents(planted_subject, planted_corpus, tmp_path_factory) -> Run:
    documents = np.arange(len(planted_corpus.tokens)) // 7
    path = tmp_path_factory.mktemp("documents") / "run"
    return swept(planted_subject, planted_corpus, documents, path)


def values(run: Run, subject: Subject) -> np.ndarray:
    """By neuron, NaN where undefined."""
    [(layer, over, top)] = score_without_documents(run, run.layers, subject)
    assert layer == 0 and not top.any()
    return over.values[:, 0]


def brute_force(run: Run, subject: Subject, layer: int, neuron: int) -> float:
    """The score from tables that are summed anew over the excerpts which are not left out."""
    seen: list[np.ndarray] = []
    subject.trunk(
        torch.from_numpy(run.excerpts), lambda _, acts: seen.append(acts.numpy()), [layer]
    )
    acts = np.maximum(seen[0][:, len(subject.lead) :, neuron].astype(np.float64), 0)
    every = {int(excerpt) for excerpt in run.array(layer, "random.ids")[2::3]}
    documents = {int(run.documents[excerpt]) for excerpt in every}
    ids, _, top = split_excerpts(run, layer, slice(neuron, neuron + 1))
    tops = set(ids[top].tolist())
    kept = [
        excerpt
        for excerpt in range(len(acts))
        if run.documents[excerpt] not in documents and excerpt not in tops
    ]
    tables = []
    for rows in run.tables.rows(run.excerpts):
        sums, counts = {}, {}
        for excerpt in kept:
            for t in range(run.skip, 64):
                row = rows[excerpt, t]
                sums[row] = sums.get(row, 0.0) + acts[excerpt, t]
                counts[row] = counts.get(row, 0) + 1
        tables.append((rows, sums, counts))
    mean = acts[kept, run.skip :].mean()
    true, predicted = [], []
    for excerpt in (each for each in ids[~top].tolist() if each >= 0):
        for t in range(run.skip, 64):
            estimate = mean
            for (rows, sums, counts), formula in zip(
                tables, (token_estimate, pair_estimate, pair_estimate), strict=True
            ):
                row = rows[excerpt, t]
                if row >= 0:
                    estimate = formula(sums.get(row, 0.0), counts.get(row, 0), estimate)
            true.append(acts[excerpt, t])
            predicted.append(estimate)
    return float(np.corrcoef(true, predicted)[0, 1])


def test_it_is_what_tables_without_these_documents_give(run_of_documents, planted_subject) -> None:
    found = values(run_of_documents, planted_subject)
    for neuron in WORDS:
        expected = brute_force(run_of_documents, planted_subject, 0, neuron)
        assert found[neuron] == pytest.approx(expected, abs=1e-5)
    assert np.isnan(found[planted.NEVER])


@pytest.mark.scale
def test_so_it_is_for_neurons_that_lookup_knows_little_of(tiny_subject, tmp_path) -> None:
    """Random weights: scores of all sizes, in layers of which one is not asked for."""
    ids = np.random.default_rng(4).integers(0, 12, (150, 64)).astype(np.int32)
    run = swept(tiny_subject, Corpus.from_excerpts(ids), np.arange(150) // 8, tmp_path / "run")
    for layer, over, _ in score_without_documents(run, [1, 3], tiny_subject):
        expected = [brute_force(run, tiny_subject, layer, neuron) for neuron in range(6)]
        np.testing.assert_allclose(over.values[:6, 0], expected, atol=1e-5)
        assert np.ptp(expected) > 0.05


def test_where_every_excerpt_is_a_document_it_is_the_usual_score(
    planted_subject, planted_corpus, tmp_path
) -> None:
    """But for neurons that are not tested on an excerpt, which is left out here alone."""
    documents = np.arange(len(planted_corpus.tokens))
    few = 900 * planted.NEURONS * 4  # rows in bytes, too few for a regression
    run = swept(planted_subject, planted_corpus, documents, tmp_path / "run", table_bytes=few)
    assert run.regression is None
    [rows] = explain_by_lookup(run)
    usual = np.array([row.scores.random_only for row in rows], float)
    ids, _, top = split_excerpts(run, 0)
    whole = ((ids >= 0) | top).all(axis=1)
    assert whole[WORDS].any()
    np.testing.assert_allclose(values(run, planted_subject)[whole], usual[whole], atol=1e-5)


def test_nothing_is_known_where_all_is_one_document(
    planted_subject, planted_corpus, tmp_path
) -> None:
    documents = np.zeros(len(planted_corpus.tokens))
    run = swept(planted_subject, planted_corpus, documents.astype(int), tmp_path / "run")
    [(_, over, _)] = score_without_documents(run, run.layers, planted_subject)
    [measured] = over.measured(planted.CAT, ("correlation",))
    assert (measured.value, measured.reason) == (None, "one side has no variance")


def test_a_word_of_one_document_is_not_known_without_it(planted_subject, tmp_path) -> None:
    """Activations elsewhere are exactly 0, and no rounding of what is subtracted gives it away."""
    rng = np.random.default_rng(3)
    rare = planted.WORDS.index("rare")
    ids = rng.integers(0, rare, (90, 64)).astype(np.int32)
    first = fastexplain.sweep(planted_subject, Corpus.from_excerpts(ids), tmp_path / "first")
    tested = first.array(0, "random.ids")[2::3]
    documents = np.arange(90)
    own = np.concatenate([[tested[0]], np.setdiff1d(documents, first.array(0, "random.ids"))[:30]])
    documents[own] = 1000
    ids[own, 10::9] = rare
    ids[np.setdiff1d(np.arange(90), own), 20] = planted.WORDS.index("bird")
    run = swept(planted_subject, Corpus.from_excerpts(ids), documents, tmp_path / "run")
    assert (run.array(0, "random.ids") == first.array(0, "random.ids")).all()
    [rows] = explain_by_lookup(run)
    assert rows[planted.RARE].scores.random_only > 0.9
    assert np.isnan(values(run, planted_subject)[planted.RARE])


def test_the_command_stores_shows_and_reports_it(
    run_of_documents, cli, monkeypatch, planted_subject
) -> None:
    monkeypatch.setattr(out, "_width", 160)
    run = run_of_documents
    store_lookup(run)
    code, shown, _ = cli("score", run.path, "--scorers", "documents", "--subject",
                         planted_subject.name)  # fmt: skip
    assert code == 0 and f"{planted.NEURONS} explanations scored." in shown
    assert "whole documents left out" in " ".join(shown.split())
    found = values(run, planted_subject)
    with run.database(read_only=True) as database:
        [row, *_] = database.explanations(NeuronId(0, planted.DIGIT))
        [score] = [each for each in database.scores(row.id) if each.scorer == DOCUMENTS]
        [whole] = [each for each in database.means("lookup", DOCUMENTS) if not each.site]
    assert score.measured.value == pytest.approx(found[planted.DIGIT])
    assert (score.judge, score.measured.split) == ("lookup", "random_only")
    assert whole.value == pytest.approx(np.nanmean(found))
    assert row.scores.random_only != score.measured.value  # the headline is what it was
    code, shown, _ = cli("show", run.path, f"0:{planted.DIGIT}")
    assert f"whole documents left out: {score.measured.value:.2f} (" in shown
    figures = run_figures(run)
    [measure] = [each for each in figures["measures"] if each["scorer"] == DOCUMENTS]
    assert measure["all"]["mean"] == pytest.approx(whole.value)
    assert measure["all"]["error_excerpts"] is not None
    title = "lookup, whole documents left out: correlation, random"
    assert title in markdown_page(figures, []).replace("\\", "")


def test_what_it_lacks_is_said(run_of_documents, planted_subject, planted_corpus, tmp_path) -> None:
    none = swept(planted_subject, planted_corpus, np.arange(400)[: len(planted_corpus.tokens)],
                 tmp_path / "run", random=0)  # fmt: skip
    with pytest.raises(RunError, match="has no random excerpts to be tested on; sweep again"):
        list(score_without_documents(none, none.layers, planted_subject))
    with pytest.raises(UsageError, match="`subject` is for the scorers corpus and documents"):
        fastexplain.score(run_of_documents, scorers=["simulation"], subject=planted_subject)
    with pytest.raises(UsageError, match="'documents' is for lookup, by its tables; run: fastexp"):
        fastexplain.explain(
            run_of_documents, "0:1", explainer=Says(), simulator=Says(), scorers=["documents"]
        )


class Says:
    method, model, version = "rule", "says", "1"

    def explain(self, record) -> object:
        raise AssertionError

    def simulate(self, explanation, tokens) -> list[float]:
        raise AssertionError
