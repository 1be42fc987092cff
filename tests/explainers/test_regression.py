"""The regression under the tables, held out, against one fitted without the excerpts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folded import SKIP, folded_run
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain import Run, open_run
from fastexplain.errors import RunError
from fastexplain.explainers import regression
from fastexplain.explainers.lookup import (
    explain_by_lookup,
    layer_tables,
    predict_by_lookup,
    predict_layer,
    simulate_by_lookup,
    split_excerpts,
)
from fastexplain.explainers.regression import PENALTY
from fastexplain.kernels.scalars import pair_estimate, token_estimate
from fastexplain.records import NeuronId
from fastexplain.run.splits import random_slots
from fastexplain.text.regressors import Regressors

EXCERPTS, LENGTH, WORDS, WIDTH, NEURONS = 150, 16, 30, 6, 8
NOISE, ONCE = 6, 7  # the last neurons; the others follow the text
FIRES = 70  # the only excerpt in which the last one does


def text(seed: int) -> tuple[np.ndarray, Regressors]:
    rng = np.random.default_rng(seed)
    token_ids = np.minimum(rng.geometric(0.12, (EXCERPTS, LENGTH)), WORDS).astype(np.int32) - 1
    return token_ids, Regressors.fit(rng.standard_normal((WORDS, WIDTH), np.float32), token_ids)


def activations(seed: int, token_ids: np.ndarray, regressors: Regressors) -> np.ndarray:
    """float32 `[excerpts, tokens, neurons]`: what a regression can say, and noise on it."""
    rng = np.random.default_rng(seed)
    x = regressors.of(token_ids)
    acts = 0.3 * x @ rng.standard_normal((x.shape[2], NEURONS))
    acts += rng.standard_normal(acts.shape)
    acts[:, :, NOISE:] = rng.standard_normal((*acts.shape[:2], NEURONS - NOISE))
    return acts.astype(np.float32)


def written(
    out: Path, token_ids: np.ndarray, acts: np.ndarray, regressors: Regressors | None
) -> Run:
    words = [b"%d" % word for word in range(WORDS)]
    return folded_run(out, token_ids, acts, words, rows=500, regressors=regressors)


def swept(out: Path, seed: int) -> tuple[Run, np.ndarray]:
    token_ids, regressors = text(seed)
    acts = activations(seed, token_ids, regressors)
    others = np.arange(EXCERPTS) != FIRES
    acts[others, :, ONCE] = np.minimum(acts[others, :, ONCE], 0)
    return written(out, token_ids, acts, regressors), acts


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Run, np.ndarray]:
    return swept(tmp_path_factory.mktemp("regressed") / "run", 0)


def plainly(
    run: Run, acts: np.ndarray, neuron: int, ids: np.ndarray, shared: list[int]
) -> np.ndarray:
    """The predictions of one neuron's excerpts, float64 `[E, counted]`, step by step."""
    regression = run.regression
    x = regression.regressors.of(run.excerpts)[:, SKIP:].astype(np.float64)
    a = np.maximum(acts[:, SKIP:, neuron], 0).astype(np.float64)
    rows = [own[:, SKIP:] for own in run.tables.rows(run.excerpts)]
    unseen = np.isin(np.arange(EXCERPTS), [*ids, *shared])
    kept = x[~unseen].reshape(-1, x.shape[2])
    penalty = np.full(kept.shape[1], PENALTY)
    penalty[-1] = 0
    products = kept.T @ kept + np.diag(penalty + 1e-5 * (penalty == 0))
    weights = np.linalg.solve(products, kept.T @ a[~unseen].ravel())
    weights *= a[~unseen].sum() > 0
    left = a - x @ weights
    others = ~np.isin(np.arange(EXCERPTS), ids)
    found = []
    for excerpt in ids:
        for t in range(x.shape[1]):
            estimate = left[others].mean() if left[others].any() else 0
            for own, formula in zip(rows, (token_estimate, *[pair_estimate] * 2), strict=True):
                if own[excerpt, t] >= 0:
                    values = left[others][own[others] == own[excerpt, t]]
                    estimate = formula(values.sum(), len(values), estimate)
            found.append(estimate + x[excerpt, t] @ weights)
    return np.maximum(np.reshape(found, (len(ids), -1)), 0)


@pytest.mark.parametrize("split", ["test", "calibration"])
def test_predictions_are_those_of_a_fit_without_the_excerpts(made, split: str) -> None:
    run, acts = made
    predicted = predict_layer(run, 0, run.tables.rows(run.excerpts), split)
    splits = ["test"] if split == "test" else ["test", "calibration"]
    shared = run.array(0, "random.ids")[random_slots(25, splits)]
    own_ids, _, _ = split_excerpts(run, 0, split=split)
    tested, _, _ = split_excerpts(run, 0)
    for neuron in range(NEURONS):
        own = predicted.simulated[neuron]
        there = ~np.isnan(own).any(axis=1)
        ids = own_ids[neuron][there]
        gone = ids if split == "test" else np.union1d(ids, tested[neuron])
        expected = plainly(run, acts, neuron, np.array([*ids, *np.setdiff1d(gone, ids)]), shared)
        np.testing.assert_allclose(own[there], expected[: len(ids)], rtol=1e-3, atol=1e-4)


def test_neurons_are_predicted_alike_where_a_corpus_is_too_large_to_keep(made, monkeypatch) -> None:
    run, _ = made
    rows = run.tables.rows(run.excerpts)
    whole = predict_layer(run, 0, rows)
    monkeypatch.setattr(regression, "_KEPT_BYTES", 0)
    monkeypatch.setattr(regression, "_BLOCK", 3)
    again = predict_layer(open_run(run.path), 0, rows)
    np.testing.assert_allclose(again.simulated, whole.simulated, rtol=1e-5, atol=1e-6)


def test_products_that_are_none_are_refused(made) -> None:
    run = open_run(made[0].path)
    run.regression.products[2, 2] = -(10**9)
    with pytest.raises(RunError, match=r"no sums of squares; sweep again"):
        predict_layer(run, 0, run.tables.rows(run.excerpts))


def test_a_regression_improves_on_the_tables(made, tmp_path: Path) -> None:
    run, acts = made
    token_ids, _ = text(0)
    plain = written(tmp_path / "plain", token_ids, acts, None)
    assert plain.regression is None
    [with_], [without] = (list(explain_by_lookup(each)) for each in (run, plain))
    scores = np.array(
        [[row.scores.random_only for row in rows[:NOISE]] for rows in (with_, without)], float
    )
    assert (scores[0] > scores[1] + 0.05).all()
    assert {row.version for row in with_} == {"lookup-4"}
    assert {row.version for row in without} == {"lookup-3"}


def test_one_neurons_simulation_is_the_layers(made) -> None:
    run, _ = made
    for split in ("test", "calibration"):
        layer = predict_layer(run, 0, run.tables.rows(run.excerpts), split)
        ids, _, _ = split_excerpts(run, 0, split=split)
        for neuron in (0, NOISE, ONCE):
            one = simulate_by_lookup(run, run.neuron(NeuronId(0, neuron)), split)
            assert one
            for place, excerpt in enumerate(ids[neuron]):
                if int(excerpt) in one:
                    np.testing.assert_allclose(
                        one[int(excerpt)][SKIP:], layer.simulated[neuron, place],
                        rtol=1e-3, atol=1e-5,
                    )  # fmt: skip


def test_excerpts_by_themselves_are_predicted_without_themselves(made) -> None:
    run, acts = made
    ids = np.array([[3, 70, -1], [149, 3, 5]])
    true = np.stack([acts[own, :, n] for own, n in zip(ids, (1, 4), strict=True)])
    found = predict_by_lookup(run, 0, np.array([1, 4]), ids, true)
    assert np.isnan(found[0, 2]).all()
    for row, neuron in enumerate((1, 4)):
        for place, excerpt in enumerate(ids[row]):
            if excerpt >= 0:
                expected = plainly(run, acts, neuron, ids[row, place : place + 1], [])
                np.testing.assert_allclose(
                    found[row, place, SKIP:], expected[0], rtol=1e-3, atol=1e-4
                )


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_what_is_held_out_changes_no_prediction(tmp_path_factory, seed: int) -> None:
    """In its test excerpts each neuron does the same at other tokens, and is predicted the same."""
    directory = tmp_path_factory.mktemp("held-out")
    run, acts = swept(directory / "run", seed)
    token_ids, regressors = text(seed)
    rng = np.random.default_rng(seed)
    ids, _, _ = split_excerpts(run, 0)
    changed = acts.copy()
    for neuron in range(NEURONS):
        for excerpt in ids[neuron][ids[neuron] >= 0]:
            changed[excerpt, SKIP:, neuron] = rng.permutation(acts[excerpt, SKIP:, neuron])
    other = written(directory / "other", token_ids, changed, regressors)
    assert (split_excerpts(other, 0)[0] == ids).all()
    rows = run.tables.rows(run.excerpts)
    first, second = (predict_layer(each, 0, rows) for each in (run, other))
    assert not np.array_equal(first.true, second.true)
    np.testing.assert_allclose(second.simulated, first.simulated, rtol=1e-3, atol=2e-5)


def test_a_neuron_that_fires_in_what_is_held_out_alone_is_predicted_by_zeros(made) -> None:
    run, acts = made
    true = acts[None, [FIRES], :, ONCE]
    assert true.max() > 1
    found = predict_by_lookup(run, 0, np.array([ONCE]), np.array([[FIRES]]), true)
    assert (found[:, :, SKIP:] == 0).all()


def test_a_neuron_of_pure_noise_scores_about_zero(tmp_path: Path) -> None:
    token_ids, regressors = text(5)
    rng = np.random.default_rng(5)
    acts = rng.standard_normal((EXCERPTS, LENGTH, 300)).astype(np.float32)
    run = written(tmp_path / "run", token_ids, acts, regressors)
    [rows] = explain_by_lookup(run)
    for split in ("top_and_random", "random_only"):
        scores = np.array([getattr(row.scores, split) for row in rows], float)
        assert abs(np.nanmean(scores)) < 0.02, split


def test_tables_know_nothing_of_a_regression(made) -> None:
    """Its sums stand behind the pairs' and the situations', and are no row of theirs."""
    run, _ = made
    tables = layer_tables(run, 0)
    assert len(tables.pair_sums) == len(run.tables.pairs) == len(tables.pair_counts)
    assert run.array(0, "tables.regression").shape == (run.regression.regressors.count, NEURONS)
