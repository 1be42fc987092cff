"""The lookup explainer, on neurons whose driving words are known and on a real subject."""

from __future__ import annotations

import numpy as np
import planted
import pytest

import fastexplain
from fastexplain.errors import RunError, UsageError
from fastexplain.explainers.lists import rounded, simulate_list, text_of
from fastexplain.explainers.lookup import (
    explain_by_lookup,
    lookup_is_stored,
    simulate_by_lookup,
    store_lookup,
)
from fastexplain.run.splits import held_out, samples

TOKEN_NEURONS = [planted.CAT, planted.DIGIT, planted.RIVER_OR_STONE]


@pytest.fixture(scope="module")
def layer(planted_run):
    (only,) = explain_by_lookup(planted_run)
    return only


def scores_of(layer, split) -> np.ndarray:
    return np.array([getattr(row.scores, split) for row in layer], float)  # NaN for None


def test_planted_neurons_score_near_one(layer) -> None:
    for scores in (scores_of(layer, "random_only"), scores_of(layer, "top_and_random")):
        assert (scores[TOKEN_NEURONS] > 0.95).all()
        assert scores[planted.MOON_AFTER_BRIGHT] > 0.9
    for neuron in TOKEN_NEURONS:
        assert layer[neuron].scores.excerpts_top == layer[neuron].scores.excerpts_random == 5


def test_neurons_that_do_not_vary_have_no_score(layer) -> None:
    for split in ("random_only", "top_and_random", "top_only"):
        assert np.isnan(scores_of(layer, split)[[planted.ALWAYS, planted.NEVER]]).all()


def test_entries_name_what_drives_the_neuron(layer) -> None:
    def tokens(neuron: int) -> list[str]:
        return [entry["token"] for entry in layer[neuron].data if entry["previous"] is None]

    assert tokens(planted.CAT) == ["cat"]
    assert sorted(tokens(planted.DIGIT)) == list("012345")
    row = layer[planted.MOON_AFTER_BRIGHT]
    assert (row.data[0]["previous"], row.data[0]["token"]) == ("bright", "moon")
    assert row.text == text_of(row.data, row.parameters["default"])
    assert row.data[0]["ids"] == [planted.WORDS.index("bright"), planted.WORDS.index("moon")]
    assert row.text.startswith("'moon' after 'bright' 2.")
    assert layer[planted.NEVER].data == []
    assert layer[planted.NEVER].text.startswith("nothing: no token")


def test_one_neurons_simulation_is_what_its_score_rests_on(planted_run, layer) -> None:
    record = planted_run.neuron(f"0:{planted.DIGIT}")
    simulated = simulate_by_lookup(planted_run, record)
    [ranks], [slots] = held_out(
        np.array([[e.excerpt for e in record.top]]),
        np.array([e.excerpt for e in record.random]),
        every=True,
    )
    assert len(slots) == 8  # all that the split has: predicting one is free
    exemplars = [record.top[rank] for rank in ranks] + [record.random[slot] for slot in slots]
    assert set(simulated) == {e.excerpt for e in exemplars}
    stored = {row.split: row for row in layer[planted.DIGIT].scores.measured()}
    for split, part, count in [
        ("top_and_random", slice(10), 10),
        ("random_only", slice(5, None), 8),
        ("top_only", slice(5), 5),
    ]:
        own = exemplars[part]
        true = np.concatenate([np.maximum(e.activations[record.skip :], 0) for e in own])
        predicted = np.concatenate([simulated[e.excerpt][record.skip :] for e in own])
        found = stored[split]
        assert np.corrcoef(true, predicted)[0, 1] == pytest.approx(found.value)
        assert found.excerpts == count and found.low <= found.value <= found.high


def test_the_text_alone_scores_planted_neurons_as_their_tables_do(layer) -> None:
    """One entry, or six, say all of them; what is scored is the text as it stands."""
    for neuron in (*TOKEN_NEURONS, planted.MOON_AFTER_BRIGHT):
        row = layer[neuron]
        assert row.text_scores.top_and_random > 0.9 and row.text_scores.random_only > 0.9
        assert row.text_scores.low <= row.text_scores.top_and_random <= row.text_scores.high
        assert row.text_scores.excerpts_random == 5
    assert layer[planted.NEVER].text_scores.top_and_random is None


def test_a_stored_list_predicts_what_its_score_rests_on(planted_run, layer) -> None:
    record, row = planted_run.neuron(f"0:{planted.DIGIT}"), layer[planted.DIGIT]
    assert all(entry["count"] >= 0 for entry in row.data)
    excerpts = {e.excerpt: e for e in [*record.top, *record.random]}
    used = [excerpts[excerpt] for excerpt in simulate_by_lookup(planted_run, record)]
    true, said = (
        np.concatenate([values[record.skip :] for values in own])
        for own in (
            [np.maximum(e.activations, 0) for e in used],
            [simulate_list(row.data, row.parameters["default"], e.token_ids) for e in used],
        )
    )
    # Over all excerpts, where a stored score is over a set of them: near it, not it.
    assert np.corrcoef(true, said)[0, 1] > 0.95
    assert len(set(said.tolist())) == len({e["mean"] for e in row.data}) + 1


def test_means_are_rounded_as_the_text_shows_them() -> None:
    values = np.array([0.0, 1.25, 0.0123456, 99.6, 100.4, 12345.6, 3e-30, 9.96])
    entries = [{"token": "a", "previous": None, "mean": mean} for mean in rounded(values).tolist()]
    shown = [float(part.split()[1]) for part in text_of(entries).split(", ")]
    assert shown == pytest.approx(rounded(values).tolist(), abs=1e-22)
    assert text_of(entries[1:3], 0.5) == "'a' 1.2, 'a' 0.012; else 0.5"
    assert rounded(values).tolist()[3:6] == [100, 100, 12346]


def test_lists_have_as_many_entries_as_are_asked_for(run) -> None:
    store_lookup(run, entries=4)
    assert lookup_is_stored(run) and lookup_is_stored(run, 4) and not lookup_is_stored(run, 8)
    with run.database() as database:
        [row] = database.explanations(fastexplain.NeuronId(0, planted.DIGIT))
    assert len(row.data) == 4 and row.parameters["entries"] == 4
    with pytest.raises(UsageError, match=r"`entries` is 5; choose one of 4, 8, 16, 32"):
        store_lookup(run, entries=5)
    assert lookup_is_stored(run, 4)  # nothing is lost


def test_both_scores_of_a_lookup_explanation_come_back_and_texts_rank_it(run) -> None:
    store_lookup(run)
    neuron = fastexplain.NeuronId(0, planted.DIGIT)
    with run.database() as database:
        [row] = database.explanations(neuron)
        judges = {(score.judge, score.version) for score in database.scores(row.id)}
        best = database.best(50, "lookup")
        means = database.means("list")
        [layer_mean] = database.layer_means("lookup")
    assert judges == {("lookup", row.version), ("list", row.version)}
    assert len({each.neuron for each in best}) == len(best)
    texts = [each.text_scores.top_and_random for each in best]
    assert texts == sorted(texts, reverse=True)
    own = {mean.split: mean.value for mean in means if not mean.site}
    assert own["top_and_random"] == pytest.approx(np.mean(texts))
    tables = [each.scores.top_and_random for each in best]
    assert layer_mean.top_and_random == pytest.approx(np.mean(tables), abs=0.1)
    table = run.table()
    place = neuron.index
    assert table["list_top_and_random"][place] == pytest.approx(row.text_scores.top_and_random)
    assert table["lookup_top_and_random"][place] == pytest.approx(row.scores.top_and_random)


def test_means_over_neurons_have_an_error_over_the_excerpts_that_they_share(run) -> None:
    store_lookup(run)
    with run.database() as database:
        means = {(mean.site, mean.split): mean for mean in database.means("lookup")}
        rows = database.best(1000, "lookup", "top_only")
    values = [row.scores.random_only for row in rows if row.scores.random_only is not None]
    assert set(means) == {
        (site, split)
        for site in ("", "0")
        for split in ("random_only", "top_and_random", "top_only")
    }
    own = means["0", "random_only"]
    assert (own.neurons, own.value) == (len(values), pytest.approx(np.mean(values)))
    assert own.low <= own.value <= own.high
    assert means["", "random_only"] == own._replace(site="")


def test_the_calibration_split_is_predicted_without_the_tests(
    planted_subject, planted_corpus, tmp_path
) -> None:
    """ "rare" stands in eight excerpts: without those of both splits the table hardly knows it."""
    rows = 900  # too few for a regression
    planted_run = fastexplain.sweep(
        planted_subject, planted_corpus, tmp_path / "run", table_bytes=rows * planted.NEURONS * 4
    )
    assert planted_run.regression is None
    record = planted_run.neuron(f"0:{planted.RARE}")
    found = simulate_by_lookup(planted_run, record, "calibration")
    tested = simulate_by_lookup(planted_run, record)
    assert set(found) >= {each.excerpt for each in samples(record, "calibration")}
    assert not set(found) & set(tested)
    exemplars = {e.excerpt: e for e in [*record.top, *record.random]}
    rare = planted.WORDS.index("rare")
    row = planted_run.tables.tokens.tolist().index(rare)
    rest = planted_run.array(0, "tables.tokens")[row, planted.RARE]
    left = planted_run.tables.token_counts[row]
    at_rare = []
    for excerpt in [*found, *tested]:
        there = np.flatnonzero(exemplars[excerpt].token_ids[record.skip :] == rare) + record.skip
        rest -= exemplars[excerpt].activations[there].sum()
        left -= len(there)
        at_rare += found[excerpt][there].tolist() if excerpt in found else []
    assert 0 < left < planted_run.tables.token_counts[row] and at_rare
    # The pair is not in the table, so the token's estimate stands: (S + g / 2) / (C + 1 / 2).
    assert at_rare == pytest.approx([rest / (left + 0.5)] * len(at_rare), rel=0.05)


@pytest.mark.scale
def test_all_neurons_of_a_real_model_get_a_score(stdlib_run) -> None:
    layers = list(explain_by_lookup(stdlib_run))
    scores = np.stack([scores_of(layer, "top_and_random") for layer in layers])
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
    assert np.isnan(scores_of(layer, "random_only")).all()
    assert (scores_of(layer, "top_and_random")[TOKEN_NEURONS] > 0.9).all()
