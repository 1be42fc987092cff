"""The lookup explainer, on neurons whose driving words are known and on a real subject."""

from __future__ import annotations

import numpy as np
import planted
import pytest

import fastexplain
from fastexplain.errors import RunError
from fastexplain.explainers.lookup import explain_by_lookup, simulate_by_lookup, text_of
from fastexplain.run.splits import splits

TOKEN_NEURONS = [planted.CAT, planted.DIGIT, planted.RIVER_OR_STONE]


@pytest.fixture(scope="module")
def layer(planted_run):
    (only,) = explain_by_lookup(planted_run)
    return only


def test_planted_neurons_score_near_one(layer) -> None:
    for scores in (layer.random_only, layer.top_and_random):
        assert (scores[TOKEN_NEURONS] > 0.95).all()
        assert scores[planted.MOON_AFTER_BRIGHT] > 0.9
    assert (layer.top_excerpts[TOKEN_NEURONS] == 5).all()
    assert (layer.random_excerpts[TOKEN_NEURONS] == 5).all()


def test_neurons_that_do_not_vary_have_no_score(layer) -> None:
    for scores in (layer.random_only, layer.top_and_random, layer.top_only):
        assert np.isnan(scores[[planted.ALWAYS, planted.NEVER]]).all()


def test_entries_name_what_drives_the_neuron(layer) -> None:
    def tokens(neuron: int) -> list[str]:
        return [entry.token for entry in layer.entries[neuron] if entry.previous is None]

    assert tokens(planted.CAT) == ["cat"]
    assert sorted(tokens(planted.DIGIT)) == list("012345")
    first = layer.entries[planted.MOON_AFTER_BRIGHT][0]
    assert (first.previous, first.token) == ("bright", "moon")
    assert layer.entries[planted.NEVER] == []
    assert text_of(layer.entries[planted.MOON_AFTER_BRIGHT]).startswith("'moon' after 'bright' 2.")


def test_one_neurons_simulation_is_what_its_score_rests_on(planted_run, layer) -> None:
    record = planted_run.neuron(f"0:{planted.DIGIT}")
    simulated = simulate_by_lookup(planted_run, record)
    test = splits(
        np.array([e.excerpt for e in record.top]), np.array([e.excerpt for e in record.random])
    )["test"]
    exemplars = [record.top[i] for i in test.top] + [record.random[i] for i in test.random]
    assert set(simulated) == {e.excerpt for e in exemplars}
    true = np.concatenate([np.maximum(e.activations[record.skip :], 0) for e in exemplars])
    predicted = np.concatenate([simulated[e.excerpt][record.skip :] for e in exemplars])
    assert np.corrcoef(true, predicted)[0, 1] == pytest.approx(layer.top_and_random[planted.DIGIT])


def test_all_neurons_of_a_real_model_get_a_score(stdlib_run) -> None:
    layers = list(explain_by_lookup(stdlib_run))
    scores = np.stack([layer.top_and_random for layer in layers])
    assert scores.shape == (30, 1536)
    assert np.isfinite(scores).mean() > 0.99
    # 200 excerpts are few; what is near the tokens, layer 0, is well explained all the same.
    assert np.nanmean(scores[0]) > 0.6 and np.nanmean(scores) > 0.3


def test_a_run_without_tables_has_no_lookup(planted_subject, planted_corpus, tmp_path) -> None:
    run = fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", table_bytes=0)
    with pytest.raises(RunError, match="has no tables"):
        list(explain_by_lookup(run))


def test_a_run_without_random_exemplars_scores_top_alone(
    planted_subject, planted_corpus, tmp_path
) -> None:
    run = fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", random=0)
    (layer,) = explain_by_lookup(run)
    assert run.neuron("0:0").random == []
    assert np.isnan(layer.random_only).all()
    assert (layer.top_and_random[TOKEN_NEURONS] > 0.9).all()
